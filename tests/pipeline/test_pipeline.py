"""The build on a micro base: what it writes and skips; a kill at any point does not change the result."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.files.read import read_json
from skillweave.pack import Skillpack
from skillweave.pipeline import build, read_weave_config, run
from skillweave.weave import Weave

SMALL = {"splits": {"train": 40, "calibration": 8, "test": 6}}


def weave_yaml(base: Path) -> dict[str, Any]:
    settings = {
        "warm_start": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "rounds": 1,
        "prompts_per_round": 4,
        "samples_per_prompt": 2,
        "probe_prompts": 2,
        "max_new_tokens": 8,
        "dpo": {"steps": 2, "batch_size": 4},
        "save_every": 2,
        "bf16": False,
    }
    sort = {"source": "builtin", "name": "sort_numbers", "config": {"least": 2, "most": 2}, **SMALL}
    letters = {"unit": "letters", "least": 1, "most": 1}
    spell = {"source": "builtin", "name": "reverse_words", "config": letters, **SMALL}
    return {
        "name": "micro",
        "base": str(base),
        "dtype": "float32",
        "skills": {
            "sort": {"task": sort, "settings": settings},
            "spell": {"task": spell, "settings": {**settings, "train": "lora", "lora": {"rank": 2}}},
        },
        "zip": {"ratio": 0.5},
        "score": {"max_new_tokens": 8},
    }  # fmt: skip


@pytest.fixture
def config_file(micro_base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "weave.yaml"
    path.write_text(yaml.safe_dump(weave_yaml(micro_base)))
    return path


def build_in(config_file: Path, out: Path) -> dict[str, Any]:
    return build(read_weave_config(str(config_file)), out, command="test")


def deltas(out: Path) -> dict[str, str]:
    """Delta file below the work folder -> its SHA-256."""
    work = out.with_name(f"{out.name}.work")
    return {str(file.relative_to(work)): sha256_file(file) for file in work.glob("*/delta/delta/*.safetensors")}


def assert_packs_alike(out: Path, other: Path) -> None:
    """Compare packs with a tolerance: LAPACK may round the last digit differently in each run, and change a code."""
    for folder in (out / "packs").iterdir():
        one, two = (Skillpack.from_pretrained(weave / "packs" / folder.name).unzip() for weave in (out, other))
        assert one.names() == two.names()
        for name in one.names():
            difference = (one.tensor(name).float() - two.tensor(name).float()).norm()
            assert difference < 0.02 * one.tensor(name).float().norm(), name


def scores(report: dict[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("skills", "memory", "router")}


def test_build_writes_a_weave_with_its_report_and_skips_what_is_done(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weave"
    report = build_in(config_file, out)
    assert report == read_json(out / "report.json")
    for skill in ("sort", "spell"):
        figures = report["skills"][skill]
        for arm in ("base", "specialist", "pack", "routed"):
            low, high = figures["intervals"][arm]
            assert 0 <= low <= figures[arm] <= high <= 1
        files = [file for file in (out / "packs" / skill).iterdir() if file.is_file()]
        assert figures["pack_bytes"] == sum(file.stat().st_size for file in files)
        assert figures["pack_bytes"] <= 0.5 * figures["delta_bytes"]
    memory = report["memory"]
    assert memory["base_bytes"] < memory["weave_bytes"] < memory["separate_bytes"]
    assert sum(map(sum, report["router"]["confusion"]["counts"][:2])) == 12
    speed = report["speed"]
    assert (speed["prompts"], speed["new_tokens"]) == (8, 16)
    assert all(len(turns) == 3 and min(turns) > 0 for turns in speed["seconds"].values())
    for name in ("report.md", "report.html", "plots/skills.svg", "plots/memory.svg", "plots/router.svg"):
        assert (out / name).stat().st_size > 100
    weave = Weave.from_pretrained(out)
    replies = weave.generate(["Sort from smallest to largest: 9, 4", "hello"], ["sort", None])
    assert [reply.pack for reply in replies] == ["sort", None]

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("step.json")}
    assert len(stamps) == 16
    assert scores(build_in(config_file, out)) == scores(report)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("step.json")} == stamps
    capsys.readouterr()


def test_a_changed_setting_redoes_what_hangs_on_it_and_nothing_else(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "weave"
    build_in(config_file, out)
    before = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in tmp_path.rglob("step.json")}
    changed = yaml.safe_load(config_file.read_text())
    changed["skills"]["sort"]["zip"] = {"ratio": 0.4}
    config_file.write_text(yaml.safe_dump(changed))
    build_in(config_file, out)
    redone = {
        str(path.relative_to(tmp_path / "weave.work").parent)
        for path in tmp_path.rglob("step.json")
        if before[path.relative_to(tmp_path)] != path.stat().st_mtime_ns
    }
    assert redone == {
        "sort/pack",
        "weave/woven",
        "sort/score-pack",
        "sort/score-routed",
        "spell/score-routed",
        "weave/confusion",
        "weave/speed",
    }


def test_the_card_never_shows_scores_of_another_run(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "weave"
    build_in(config_file, out)
    changed = yaml.safe_load(config_file.read_text())
    changed["score"]["limit"] = 3
    config_file.write_text(yaml.safe_dump(changed))
    build_in(config_file, out)
    for skill in ("sort", "spell"):
        card = Skillpack.from_pretrained(out / "packs" / skill).card
        assert {arm: score["n"] for arm, score in card.scores.items()} == {"base": 3, "specialist": 3}


def _build_and_die(config_file: Path, out: Path, at: str) -> None:
    """Build in a child process that kills itself when the step ``at`` has done half of its atomic writes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    rename, step = os.replace, run.run_step

    def killing_step(title: str, folder: Path, inputs: Any, work: Any) -> str:
        if f"{folder.parent.name}/{folder.name}" != at:
            return step(title, folder, inputs, work)

        def dying_work(folder: Path) -> None:
            writes = 0

            def counted(source: Any, target: Any) -> None:
                nonlocal writes
                writes += 1
                if writes == (4 if at.endswith("delta") else 1):
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(source, target)

            os.replace = counted  # type: ignore[assignment]
            work(folder)
            os.kill(os.getpid(), signal.SIGKILL)  # before the step is marked as done

        return step(title, folder, inputs, dying_work)

    run.run_step = killing_step
    build_in(config_file, out)


STEPS = ["sort/score-base", "sort/delta", "sort/score-specialist", "sort/pack", "spell/delta", "weave/router",
         "weave/woven", "sort/score-pack", "spell/score-routed", "weave/confusion", "weave/speed"]  # fmt: skip


def test_killed_in_every_step_and_resumed_the_result_is_equal(config_file: Path, tmp_path: Path) -> None:
    whole = build_in(config_file, tmp_path / "whole")
    fork = multiprocessing.get_context("fork")
    for step in STEPS:
        child = fork.Process(target=_build_and_die, args=(config_file, tmp_path / "cut", step))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL, f"the build was not killed in {step}"
        assert not (tmp_path / "cut").exists(), "a half-made weave was put in place"
    resumed = build_in(config_file, tmp_path / "cut")
    assert scores(resumed) == scores(whole)
    assert deltas(tmp_path / "cut") == deltas(tmp_path / "whole")
    assert len(deltas(tmp_path / "cut")) == 2
    assert_packs_alike(tmp_path / "cut", tmp_path / "whole")


def test_a_folder_that_is_no_weave_is_not_replaced(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something that is not a weave"):
        build_in(config_file, out)
    (out / "weave.json").write_text("{}")  # a weave, and something beside it
    with pytest.raises(UserError, match=r"holds 'thesis\.txt', which is no part of a weave and would be deleted"):
        build_in(config_file, out)
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": {}}, "skills"),
        ({"skils": {}}, r"unknown key 'skils'; did you mean 'skills'"),
        ({"zip": {"ratio": "1/32", "budget": "8MB"}}, "not both"),
        ({"skills": {"auto": {"task": "builtin:json_calls"}}}, "cannot name a pack"),
        ({"skills": {"x": {"task": "builtin:json_calls", "settings": {"round": 2}}}},
         r"weave\.yaml: skills\.x\.settings: unknown key 'round'; did you mean 'rounds'"),
        ({"skills": {"x": {"task": "builtin:json_calls", "settings": {"task": "y"}}}}, "beside `settings`"),
        ({"skills": {"no good": {"task": "builtin:json_calls"}}}, "cannot name a pack"),
        ({"budget": "1kB"}, "the base alone takes"),
        ({"skills": {"x": {"task": "builtin:json_calls", "method": "specialize"}}},
         r"weave\.yaml, line \d+: skills\.x\.method: unknown method 'specialize'; did you mean 'specialise'"),
        ({"skills": {"x": {"task": "builtin:jason_calls"}}}, "json_calls"),
    ],
)  # fmt: skip
def test_mistakes_in_weave_yaml_are_told_before_any_work(
    config_file: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config_file.write_text(yaml.safe_dump({**yaml.safe_load(config_file.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        build_in(config_file, tmp_path / "weave")
    assert not list(tmp_path.rglob("step.json"))


def test_a_skill_by_self_play(micro_base: Path, tmp_path: Path) -> None:
    config = weave_yaml(micro_base)
    settings = {
        "sft": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "rounds": 1,
        "keep": "last",
        "prompts_per_round": 8,
        "training": {"steps": 2, "batch_size": 4},
        "drop": ["equal"],
        "max_new_tokens": 8,
        "bf16": False,
    }
    config["skills"] = {"sort": {**config["skills"]["sort"], "method": "tpaw", "settings": settings}}
    path = tmp_path / "weave.yaml"
    path.write_text(yaml.safe_dump(config))
    build_in(path, tmp_path / "weave")
    assert Skillpack.from_pretrained(tmp_path / "weave" / "packs" / "sort").card.method == "tpaw"
    run_folder = tmp_path / "weave.work" / "sort" / "delta"
    assert read_json(run_folder / "figures.json")["kept_round"] == 1
