"""``unlearn:`` in weave.yaml: the base is unlearnt first, and all later steps use the unlearnt base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.tiny import TASK, TINY
from skillweave.artefact import write_json
from skillweave.base import Base, Sampling, fingerprint, generate, open_base
from skillweave.cli.contents import show_weave
from skillweave.delta import Delta
from skillweave.engine.local import open_engine
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku.config import CkuConfig
from skillweave.pack import Skillpack
from skillweave.pipeline import build, read_weave_config
from skillweave.weave import read_card

FACTS = [{"question": f"Who keeps stall {n}?", "answer": f"Person {n}."} for n in range(12)]


def save_facts(file: Path, rows: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def config(micro_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The contents of weave.yaml; its files are named relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    save_facts(tmp_path / "forget.jsonl", FACTS[:4])
    save_facts(tmp_path / "retain.jsonl", FACTS[4:])
    return {
        "name": "micro",
        "base": str(micro_base),
        "dtype": "float32",
        "seed": 3,
        "unlearn": {"forget": "forget.jsonl", "retain": "retain.jsonl"},
        "skills": {"sort": {"task": TASK, "settings": TINY}},
        "zip": {"ratio": 0.5},
        "score": {"max_new_tokens": 4},
    }


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[CkuConfig]:
    """Replace the training by a quick random change of one matrix; the list collects the settings of each run."""
    given: list[CkuConfig] = []

    def run(base: Base, config: CkuConfig, out_dir: Path) -> Delta:
        given.append(config)
        name = "model.layers.0.mlp.down_proj.weight"
        draw = torch.Generator().manual_seed(config.seed)
        change = 0.2 * torch.randn(base.checkpoint.shape(name), generator=draw)
        delta = Delta({name: change}, base_fingerprint=base.fingerprint, base_ref=base.ref)
        delta.provenance = {"method": "cku", "task": "forget", "seed": config.seed}
        delta.save_pretrained(out_dir / "delta")
        stages = {
            "before": {"forget_strength": 0.9, "retain_strength": 0.8, "seconds": 1.0},
            "after": {"forget_strength": 0.05, "retain_strength": 0.79, "seconds": 1.0},
        }
        write_json(out_dir / "figures.json", {"seed": config.seed, "stages": stages})
        return Delta.from_pretrained(out_dir / "delta")

    monkeypatch.setattr("skillweave.methods.cku.run.run", run)
    return given


def build_in(config: dict[str, Any], out: Path) -> dict[str, Any]:
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    return build(read_weave_config(str(file)), out, command="test")


def stamps(out: Path) -> dict[str, int]:
    work = out.with_name(f"{out.name}.work")
    return {str(file.relative_to(work).parent): file.stat().st_mtime_ns for file in work.rglob("step.json")}


def redone(before: dict[str, int], out: Path) -> set[str]:
    return {step for step, stamp in stamps(out).items() if before.get(step) != stamp}


def test_all_skills_stand_on_the_unlearnt_base(
    config: dict[str, Any], runs: list[CkuConfig], tmp_path: Path, micro_base: Path
) -> None:
    out = tmp_path / "weave"
    report = build_in(config, out)
    model, plain = tmp_path / "weave.work" / "backbone" / "model" / "model", fingerprint(micro_base)
    backbone = fingerprint(model)
    assert backbone != plain
    assert [given.seed for given in runs] == [3]  # the weave's own

    card = read_card(out)
    assert card.backbone is not None
    assert (card.base.ref, card.base.fingerprint, card.backbone.fingerprint) == (str(micro_base), plain, backbone)
    run_of_skill = read_json(tmp_path / "weave.work" / "sort" / "delta" / "config.json")
    pack = Skillpack.from_pretrained(out / "packs" / "sort").card
    assert run_of_skill["base"].pop("config")["hidden_size"] > 0
    for base in (run_of_skill["base"], pack.base.model_dump()):
        assert base == {"ref": f"{micro_base}, unlearnt (the backbone of micro)", "fingerprint": backbone}

    # The base that the report scores is the unlearnt one; so is the specialist's.
    answers = [json.loads(line) for line in (tmp_path / "weave.work/sort/score-base/answers.jsonl").open()]
    opened = open_base(model)
    prompts, sampling = [row["prompt"] for row in answers], Sampling(max_new_tokens=4)
    expected = [texts[0] for texts in generate(opened.model, opened.tokenizer, prompts, sampling)]
    assert [row["answer"] for row in answers] == expected
    delta = Delta.from_pretrained(tmp_path / "weave.work" / "sort" / "delta" / "delta")
    specialist = delta.apply(opened, in_place=True)
    expected = [texts[0] for texts in generate(specialist.model, specialist.tokenizer, prompts, sampling)]
    lines = (tmp_path / "weave.work/sort/score-specialist/answers.jsonl").open()
    assert [json.loads(line)["answer"] for line in lines] == expected

    assert report == read_json(out / "report.json")
    assert report["base"] == {
        "ref": str(micro_base),
        "fingerprint": plain,
        "unlearnt": {
            "method": "cku",
            "fingerprint": backbone,
            "forget": ["forget.jsonl"],
            "retain": ["retain.jsonl"],
            "before": {"forget_strength": 0.9, "retain_strength": 0.8},
            "after": {"forget_strength": 0.05, "retain_strength": 0.79},
        },
    }
    for file in ("report.md", "report.html"):
        text = (out / file).read_text()
        assert "what forget.jsonl holds was taken out" in text
        assert "forget strength 0.9 before, 0.05 after" in text


def test_the_weave_needs_nothing_of_the_work_folder(
    config: dict[str, Any], runs: list[CkuConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weave"
    build_in(config, out)
    model = open_base(tmp_path / "weave.work" / "backbone" / "model" / "model")
    asked = ["Sort from smallest to largest: 9, 4", "Who keeps stall 2?"]
    expected = [texts[0] for texts in generate(model.model, model.tokenizer, asked, Sampling(max_new_tokens=6))]
    (tmp_path / "weave.work").rename(tmp_path / "gone")
    replies = open_engine(str(out)).weave.generate(asked, None, Sampling(max_new_tokens=6))
    assert [reply.text for reply in replies] == expected
    assert open_engine(str(out)).weave.generate(asked, ["sort", "auto"], Sampling(max_new_tokens=6))[0].pack == "sort"
    show_weave(read_card(out), out)
    assert "the base after cku (sha256:" in capsys.readouterr().out


def test_what_hangs_on_the_unlearning_is_redone_when_it_changes_and_only_then(
    config: dict[str, Any], runs: list[CkuConfig], tmp_path: Path
) -> None:
    out = tmp_path / "weave"
    first = build_in(config, out)
    before = stamps(out)
    assert {"backbone/unlearn", "backbone/model"} < before.keys()
    assert len(before) == 12
    again = build_in(config, out)
    assert redone(before, out) == set()
    assert again["skills"] == first["skills"]

    # The same settings, and other text in a file: a new run. It makes the same delta here, so the skills stay.
    save_facts(tmp_path / "retain.jsonl", [*FACTS[4:], {"question": "Who sings?", "answer": "Nobody."}])
    build_in(config, out)
    assert len(runs) == 2
    assert redone(before, out) == {"backbone/unlearn", "backbone/model", "weave/woven", "weave/speed"}

    # Another setting, and another backbone: everything.
    before = stamps(out)
    config["unlearn"]["seed"] = 4
    report = build_in(config, out)
    assert [given.seed for given in runs] == [3, 3, 4]
    assert redone(before, out) == before.keys()
    assert report["base"]["fingerprint"] == first["base"]["fingerprint"]
    assert report["base"]["unlearnt"]["fingerprint"] != first["base"]["unlearnt"]["fingerprint"]

    # Without it: the plain base again.
    before = stamps(out)
    del config["unlearn"]
    report = build_in(config, out)
    assert redone(before, out) == {step for step in before if not step.startswith("backbone")}
    assert report["base"]["unlearnt"] is None
    assert read_card(out).backbone is None
    assert not (out / "backbone").exists()
    assert "nlearnt" not in (out / "report.md").read_text()


def test_a_ready_pack_must_belong_on_the_backbone(
    config: dict[str, Any], runs: list[CkuConfig], tmp_path: Path
) -> None:
    build_in(config, tmp_path / "one")
    ready = tmp_path / "one" / "packs" / "sort"
    taken = {**config, "skills": {"sort": {"task": TASK, "pack": str(ready)}}}
    build_in(taken, tmp_path / "two")
    assert fingerprint(tmp_path / "two.work/backbone/model/model") == read_card(tmp_path / "one").backbone.fingerprint
    given, found = (Skillpack.from_pretrained(tmp_path / weave / "packs" / "sort").tensors for weave in ("one", "two"))
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())

    plain = {key: value for key, value in config.items() if key != "unlearn"}
    build_in(plain, tmp_path / "plain")
    taken["skills"]["sort"]["pack"] = str(tmp_path / "plain" / "packs" / "sort")
    with pytest.raises(UserError, match=r"skills\.sort\.pack: .* was made on the unchanged base"):
        build_in(taken, tmp_path / "three")
    assert not (tmp_path / "three.work").exists()
    other = {**taken, "unlearn": {**config["unlearn"], "seed": 9}}
    other["skills"] = {"sort": {"task": TASK, "pack": str(ready)}}
    with pytest.raises(UserError, match="unlearnt"):
        build_in(other, tmp_path / "four")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unlearn": {"forget": "forget.jsonl"}}, r"'unlearn\.retain' is missing"),
        ({"unlearn": {"forget": "gone.jsonl", "retain": "retain.jsonl"}}, r"unlearn\.forget: gone\.jsonl does not"),
        ({"unlearn": {"forget": "forget.jsonl", "retain": "."}}, r"unlearn\.retain: \. does not exist"),
        ({"unlearn": {"forgets": "forget.jsonl", "retain": "retain.jsonl"}}, r"did you mean 'forget'"),
        ({"skills": {"sort": {"task": TASK, "method": "cku"}}}, r"skills\.sort\.method: cku .* under `unlearn:`"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(
    config: dict[str, Any], runs: list[CkuConfig], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_in({**config, **change}, tmp_path / "weave")
    assert not runs
    assert not list(tmp_path.rglob("step.json"))


def test_with_the_method_itself(config: dict[str, Any], tmp_path: Path) -> None:
    config["unlearn"] |= {
        "training": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "localise": {"layers": "all"},
        "watch": {"every": 2, "budget": None},
        "bf16": False,
    }
    report = build_in(config, tmp_path / "weave")
    unlearnt = report["base"]["unlearnt"]
    assert unlearnt["before"].keys() == unlearnt["after"].keys() >= {"forget_strength", "retain_probability"}
    assert unlearnt["before"]["forget_probability"] > unlearnt["after"]["forget_probability"]
    assert open_engine(str(tmp_path / "weave")).weave.base.fingerprint == unlearnt["fingerprint"]
