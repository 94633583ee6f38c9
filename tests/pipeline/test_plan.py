"""The plan of a build: it names what the next build does and skips, and why, and it changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.golden import BUILD
from helpers.terminal import made
from helpers.tiny import TASK, TINY
from skillweave.base import Checkpoint, fingerprint, open_base
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.pipeline import PlannedStep, build, plan_build, read_weave_config
from skillweave.pipeline.config import SkillConfig
from skillweave.pipeline.plan import dtype_in_memory
from skillweave.pipeline.step import base_key, remember_base

SKILL = {"task": TASK, "settings": TINY}
ORDER = [
    "sort/score-base",
    "sort/delta",
    "sort/score-specialist",
    "sort/pack",
    "weave/router",
    "weave/woven",
    "sort/score-pack",
    "sort/score-routed",
    "weave/confusion",
    "weave/speed",
]


@pytest.fixture(scope="module")
def settings(micro_base: Path) -> dict[str, Any]:
    """The contents of weave.yaml."""
    return {
        "name": "micro",
        "base": str(micro_base),
        "skills": {"sort": SKILL},
        "zip": {"ratio": 0.5},
        "score": {"max_new_tokens": 4},
    }


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weave of one skill, with its work folder beside it (read only)."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "weave.yaml").write_text(yaml.safe_dump(settings))
    build(read_weave_config(str(folder / "weave.yaml")), folder / "weave", command="test")
    return folder / "weave"


def plan(settings: dict[str, Any], out: Path, folder: Path) -> list[PlannedStep]:
    file = folder / "planned.yaml"
    file.write_text(yaml.safe_dump(settings))
    return plan_build(read_weave_config(str(file)), out)


def states(steps: list[PlannedStep]) -> dict[str, str]:
    return {step.name: step.state for step in steps}


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_before_the_first_build_everything_is_to_do(settings: dict[str, Any], tmp_path: Path) -> None:
    steps = plan(settings, tmp_path / "weave", tmp_path)
    assert [step.name for step in steps] == ORDER
    assert {step.state for step in steps} == {"to do"}
    assert {step.seconds for step in steps} == {None}
    assert [path.name for path in tmp_path.iterdir()] == ["planned.yaml"]


def test_after_a_build_everything_is_done(settings: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    before = contents(finished.parent)
    steps = plan(settings, finished, tmp_path)
    assert [step.name for step in steps] == ORDER
    assert {step.state for step in steps} == {"done"}
    assert all(step.seconds is not None and not step.because for step in steps)
    assert contents(finished.parent) == before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("base.json", '{"a fingerprint": []}'),
        ("sort/delta/step.json", "[]"),
        ("sort/delta/step.json", '{"key": "", "done": true, "inputs": {"built_on": {}}, "seconds": "x"}'),
        ("sort/delta/step.json", '{"key": "", "done": true, "inputs": {"built_on": []}}'),
        ("sort/score-base/score.json", '{"mean": 1}'),
        ("sort/score-base/score.json", '{"mean": NaN, "low": 0, "high": 1, "n": 8}'),
        ("sort/score-base/score.json", '{"mean": true, "low": 0, "high": 1, "n": 8}'),
        ("weave/confusion/confusion.json", None),
    ],
)
def test_a_damaged_file_of_the_work_is_told_with_what_to_do(
    settings: dict[str, Any], finished: Path, tmp_path: Path, file: str, text: str | None
) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    out, damaged = tmp_path / "copy" / "weave", tmp_path / "copy" / "weave.work" / file
    damaged.unlink() if text is None else damaged.write_text(text)
    config = read_weave_config(str(finished.with_name("weave.yaml")))
    with pytest.raises(UserError, match=rf"{damaged}.*Delete {damaged.parent} "):
        plan_build(config, out) if damaged.name in ("base.json", "step.json") else build(config, out, command="test")
    if text is None:
        shutil.rmtree(damaged.parent)
        build(config, out, command="test")
        assert set(states(plan_build(config, out)).values()) == {"done"}


def test_a_half_done_build_of_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[1] / "golden" / "1", tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    steps = plan(BUILD, Path("built"), tmp_path)
    assert states(steps) == {**dict.fromkeys(ORDER, "to do"), "sort/score-base": "done", "sort/delta": "begun"}
    assert {step.because for step in steps} == {()}


EDITS: list[tuple[dict[str, Any], dict[str, str]]] = [
    (
        {"zip": {"ratio": 0.4}},
        {
            "sort/pack": "zip.ratio (0.5, now 0.4)",
            "weave/woven": "sort/pack",
            "sort/score-pack": "sort/pack",
            "sort/score-routed": "sort/pack",
            "weave/confusion": "sort/score-routed",
            "weave/speed": "weave/woven",
        },
    ),
    ({"budget": "1GB"}, {"weave/woven": "budget (null, now 1000000000)", "weave/speed": "weave/woven"}),
    (
        {"router": {"miss": 0.02}},
        {
            "weave/router": "router.miss (0.01, now 0.02)",
            "weave/woven": "weave/router",
            "sort/score-routed": "weave/router",
            "weave/confusion": "sort/score-routed",
            "weave/speed": "weave/woven",
        },
    ),
    (
        {"skills": {"sort": {**SKILL, "settings": {**TINY, "warm_start": {**TINY["warm_start"], "steps": 5}}}}},
        {
            "sort/delta": "settings.warm_start.steps (4, now 5)",
            "sort/score-specialist": "sort/delta",
            "sort/pack": "sort/delta, sort/score-specialist",
            "weave/woven": "sort/pack",
            "sort/score-pack": "sort/pack",
            "sort/score-routed": "sort/pack",
            "weave/confusion": "sort/score-routed",
            "weave/speed": "weave/woven",
        },
    ),
    ({"skills": {"sort": {**SKILL, "task": {**TASK, "splits": {"train": 39, "calibration": 8, "test": 6}}}}}, {}),
]


@pytest.mark.parametrize(("edit", "expected"), EDITS)
def test_an_edit_names_the_steps_that_are_done_again_and_the_build_agrees(
    settings: dict[str, Any], finished: Path, tmp_path: Path, edit: dict[str, Any], expected: dict[str, str]
) -> None:
    out = tmp_path / "weave"
    shutil.copytree(finished.with_name("weave.work"), tmp_path / "weave.work")
    steps = plan({**settings, **edit}, out, tmp_path)
    again = {step.name: ", ".join(step.because) for step in steps if step.state == "to do again"}
    if expected:
        assert again == expected
    else:  # another task
        assert again["sort/delta"] == "sort/task, settings.task.splits.train (40, now 39)"
        assert again.keys() == set(ORDER)
    assert set(states(steps).values()) <= {"done", "to do again"}
    markers = {name: (tmp_path / "weave.work" / name / "step.json").stat().st_mtime_ns for name in ORDER}
    build(read_weave_config(str(tmp_path / "planned.yaml")), out, command="test")
    redone = {n for n, at in markers.items() if (tmp_path / "weave.work" / n / "step.json").stat().st_mtime_ns != at}
    assert redone == again.keys()


def test_the_steps_are_done_again_on_a_base_with_another_config(
    settings: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = shutil.copytree(finished.with_name("weave.work"), tmp_path / "weave.work")
    other = shutil.copytree(settings["base"], tmp_path / "other")
    before = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**before, "rms_norm_eps": 2e-6}))
    plain, changed = Checkpoint(Path(settings["base"])).config, Checkpoint(other).config
    of_base = fingerprint(other)
    for _ in range(2):  # a plan remembers nothing
        steps = plan({**settings, "base": str(other)}, tmp_path / "weave", tmp_path)
        assert set(states(steps).values()) == {"to do again"}
        assert steps[0].because == ("base",)
    assert "another config: rms_norm_eps is 2e-06 (then: 1e-06)" in " ".join(capsys.readouterr().err.split())
    assert base_key(work, of_base, plain) == of_base
    first = base_key(work, of_base, changed)
    remember_base(work, of_base, first, changed)
    assert base_key(work, of_base, changed) == first != of_base  # a build that was killed resumes
    assert base_key(work, of_base, plain) not in (of_base, first)  # steps may have been done since
    (work / "base.json").unlink()  # of an older version
    assert base_key(work, of_base, changed) == of_base


def test_what_stands_on_a_backbone_that_is_not_known_yet_is_perhaps_done_again(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    facts = [json.dumps({"question": f"Who keeps stall {n}?", "answer": f"Person {n}."}) + "\n" for n in range(12)]
    (tmp_path / "forget.jsonl").write_text("".join(facts[:4]))
    (tmp_path / "retain.jsonl").write_text("".join(facts[4:]))
    unlearn = {
        "forget": str(tmp_path / "forget.jsonl"),
        "retain": str(tmp_path / "retain.jsonl"),
        "training": {"steps": 2, "batch_size": 4},
        "watch": {"budget": None},
        "bf16": False,
    }
    settings, out = {**settings, "unlearn": unlearn}, tmp_path / "weave"
    assert set(states(plan(settings, out, tmp_path)).values()) == {"to do"}
    build(read_weave_config(str(tmp_path / "planned.yaml")), out, command="test")
    steps = plan(settings, out, tmp_path)
    assert [step.name for step in steps] == ["backbone/unlearn", "backbone/model", *ORDER]
    assert set(states(steps).values()) == {"done"}

    (tmp_path / "retain.jsonl").write_text("".join(facts[5:]))
    steps = plan(settings, out, tmp_path)
    sure = {"backbone/unlearn", "backbone/model", "weave/woven", "weave/speed"}
    assert states(steps) == {s.name: "to do again" if s.name in sure else "perhaps again" for s in steps}
    by_name = {step.name: step.because for step in steps}
    assert by_name["backbone/unlearn"][0].startswith("files.retain (")
    assert by_name["sort/score-base"] == ("backbone/model",)

    # Here the unlearning does not matter: another setting of the step has changed too.
    steps = plan({**settings, "score": {"max_new_tokens": 5}}, out, tmp_path)
    assert states(steps)["sort/score-base"] == "to do again"
    assert states(steps)["sort/pack"] == "to do again"
    assert states(steps)["sort/delta"] == "perhaps again"


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("budget", [None, "1kB"])
def test_the_dtype_in_memory_is_known_without_the_model(
    settings: dict[str, Any], micro_base: Path, tmp_path: Path, dtype: str, budget: str | None
) -> None:
    narrow = open_base(micro_base, dtype="bfloat16")
    narrow.model.save_pretrained(tmp_path / "narrow")
    narrow.tokenizer.save_pretrained(tmp_path / "narrow")
    for base in (micro_base, tmp_path / "narrow"):
        (tmp_path / "w.yaml").write_text(yaml.safe_dump({**settings, "dtype": dtype, "budget": budget}))
        config = read_weave_config(str(tmp_path / "w.yaml"))
        opened = open_base(base, dtype=dtype, budget=config.budget)
        assert dtype_in_memory(base, config) is opened.model.dtype


def test_the_command_prints_the_table(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[1] / "golden" / "1", tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    lines = made("build", "weave.yaml", "-o", "built", "--plan").out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["sort/score-base", "done"], ["sort/delta", "begun"]]
    assert lines[-1] == "10 steps: 1 done (last time 0 s), 1 begun, 8 to do."
    assert not Path("built").exists()

    edited = ("-s", "zip.ratio=0.4", "-s", "skills.sort.task.splits.test=5")
    text = made("build", finished.with_name("weave.yaml"), "-o", finished, "--plan", *edited).out
    assert "10 steps: 10 to do again (last time " in text
    assert "sort/task" in text


def test_packs_are_refined_on_the_backbone_that_serves_them(settings: dict[str, Any], tmp_path: Path) -> None:
    def form(weave: dict[str, Any], refine: dict[str, Any] | None = None) -> str | None:
        file = tmp_path / "weave.yaml"
        file.write_text(yaml.safe_dump({**settings, "zip": {"ratio": 0.5, "refine": refine}, **weave}))
        config = read_weave_config(str(file))
        chosen = config.zip_config("sort").refine
        return None if chosen is None else chosen.backbone

    assert form({"backbone": "int8"}) is None
    assert form({}, {"steps": 3}) is None
    assert form({"backbone": "int8"}, {"steps": 3}) == "int8"
    assert form({"backbone": "int8"}, {"backbone": "dtype"}) == "dtype"
    assert form({}, {"backbone": "int8"}) == "int8"


def test_a_ready_pack_takes_no_method() -> None:
    with pytest.raises(ValueError, match="is taken as it is: remove `method`"):
        SkillConfig.model_validate({"task": TASK, "pack": "packs/sort", "method": "tpaw"})
