"""``skillweave cku``: its four commands on a micro base, and mistakes of users."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.micro import save_micro
from helpers.terminal import Ran, made, refused
from skillweave.delta import Delta
from skillweave.methods.cku.knowledge.corpus import make_corpus

UNLEARN = {
    "bf16": False,
    "localise": {"freeze": "useful"},
    "training": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
    "watch": {"every": 1, "budget": None, "goal": 0.0},
}
QUICK_REPORT = [
    "bf16=false", "questions=2", "max_new_tokens=4", "relearn.steps=1", "rounding=[4]", "zip=[]", "task_limit=2",
]  # fmt: skip


@dataclass(frozen=True)
class Room:
    """Paths: a base, another base, a corpus, and an unlearning of the base with its output."""

    base: Path
    other: Path
    corpus: Path
    config: Path
    run: Path
    said: Ran

    def sets(self, *sides: str) -> list[object]:
        """The options for these files."""
        return [word for side in sides for word in (f"--{side}", self.corpus / f"{side}.jsonl")]

    def report(self, *more: object) -> list[object]:
        """A quick report of the unlearning."""
        typed = ["-b", self.base, "--delta", self.run / "delta", *self.sets("forget", "retain"), *more]
        return ["cku", "report", *typed, *(word for setting in QUICK_REPORT for word in ("-s", setting))]


@pytest.fixture(scope="module")
def room(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("cku")
    made("cku", "corpus", "--people", 4, "--short", "-o", folder / "corpus")
    # What is typed wins over the file, and what only the file has counts.
    config = folder / "unlearn.yaml"
    files = {side: str(folder / "corpus" / f"{side}.jsonl") for side in ("forget", "retain", "unseen")}
    config.write_text(yaml.safe_dump({**UNLEARN, **files, "forget": "nowhere.jsonl", "base": str(micro_base)}))
    said = made("cku", "unlearn", "-c", config, "--forget", folder / "corpus" / "forget.jsonl", "-o", folder / "run")
    other = save_micro(folder / "other", seed=2)
    return Room(micro_base, other, folder / "corpus", config, folder / "run", said)


# -- corpus ----------------------------------------------------------------------------------------------------------


def test_the_corpus_is_that_of_the_library_and_may_be_written_anew(room: Room, tmp_path: Path) -> None:
    written = {file.stem: file.read_text().splitlines() for file in room.corpus.iterdir()}
    corpus = make_corpus(people=4, short=True)
    assert [json.loads(line) for line in written["forget"]] == corpus.forget
    assert set(written) == {"forget", "retain", "unseen", "lookalike", "teach"}
    out = tmp_path / "c"
    start = ("cku", "corpus", "-o", out, "--people", 6, "--forget-share")
    assert f"Wrote {out}: " in made(*start, 0.5).out
    half = (out / "forget.jsonl").read_text()
    assert (out / "forget_text.jsonl").exists()
    made(*start, 0.2, "--seed", 3)
    assert (out / "forget.jsonl").read_text() != half


def test_a_folder_that_holds_a_persons_own_sets_is_no_corpus_of_ours(room: Room, tmp_path: Path) -> None:
    shutil.copytree(room.corpus, tmp_path / "more")
    (tmp_path / "more" / "notes.txt").write_text("years of work")
    (tmp_path / "own").mkdir()
    for side in ("forget", "retain"):
        (tmp_path / "own" / f"{side}.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    for name, why in (
        ("more", "holds 'notes.txt', which is no part of a corpus of ours and would be deleted"),
        ("own", "holds something that is not a corpus of ours"),
    ):
        before = sorted(os.listdir(tmp_path / name))
        assert why in refused("cku", "corpus", "-o", tmp_path / name)
        assert sorted(os.listdir(tmp_path / name)) == before


# -- unlearn ---------------------------------------------------------------------------------------------------------


def test_unlearn_leaves_a_delta_and_goes_on_from_it(room: Room) -> None:
    delta = Delta.from_pretrained(room.run / "delta")
    assert delta.provenance["method"] == "cku"
    assert f"Wrote {room.run / 'delta'} ({delta.nbytes:,} bytes)." in room.said.out
    again = made("cku", "unlearn", "-c", room.config, *room.sets("forget"), "-o", room.run)
    assert (again.out, again.err) == (room.said.out, "")


def test_what_unlearn_says_to_type_next_can_be_typed(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = dict(line.split(": ", 1) for line in room.said.out.splitlines() if ": skillweave " in line)
    judge, zip_ = (shlex.split(named[which])[1:] for which in ("Judge it", "Zip it"))
    made(*judge[:-1], tmp_path / "judged", *(word for setting in QUICK_REPORT for word in ("-s", setting)))
    found = json.loads((tmp_path / "judged" / "report.json").read_text())
    assert found["delta"]["folder"] == str(room.run / "delta")
    assert "unseen_strength" in found["arms"]["after"]  # the file of facts never taught is named too
    made(*zip_[:-1], tmp_path / "pack", "--ratio", "0.5")


def test_a_default_that_depends_on_the_rest_stays_one(room: Room, tmp_path: Path) -> None:
    """LoRA goes to the MLPs of the chosen layers, unless targets are named: nothing here may name them."""
    start = ["cku", "unlearn", "-c", room.config, *room.sets("forget"), "-s", "train=lora"]
    made(*start, "-o", tmp_path / "own")
    names = Delta.from_pretrained(tmp_path / "own" / "delta").names()
    assert names
    assert all(".layers.0.mlp." in name for name in names)
    made(*start, "-s", "lora.targets=[q_proj, down_proj]", "-o", tmp_path / "named")
    assert any("q_proj" in name for name in Delta.from_pretrained(tmp_path / "named" / "delta").names())


# -- score -----------------------------------------------------------------------------------------------------------


def test_score_shows_the_very_neurons_that_unlearn_froze(room: Room, tmp_path: Path) -> None:
    out = tmp_path / "s"
    said = made("cku", "score", "-b", room.base, *room.sets("forget", "retain"), "-o", out)
    assert sorted(os.listdir(out)) == ["neurons.safetensors", "neurons.svg", "score.json"]
    scored, trained = (load_file(folder / "neurons.safetensors") for folder in (out, room.run / "localise"))
    assert scored.keys() == trained.keys() == {"score.0", "forget.0", "frozen.0"}
    assert all(torch.equal(scored[name], trained[name]) for name in scored)
    assert ElementTree.parse(out / "neurons.svg").getroot().tag.endswith("svg")
    found = json.loads((out / "score.json").read_text())
    assert found["settings"]["scorer"] == "fisher"
    assert [(layer["layer"], layer["neurons"], layer["frozen"]) for layer in found["by_layer"]] == [(0, 128, 102)]
    assert found["by_layer"][0]["share"] == pytest.approx(found["overlap"])
    assert "102 of 128 neurons in the layers 0" in said.out
    assert f"{100 * found['overlap']:.1f}%" in said.out


def test_score_takes_the_settings_of_localise_and_replaces_older_scores(room: Room, tmp_path: Path) -> None:
    out = tmp_path / "s"
    config = tmp_path / "score.yaml"
    config.write_text(yaml.safe_dump({"scorer": "activation", "layers": "all", "out": str(out)}))
    start = ("cku", "score", "-b", room.base, *room.sets("forget", "retain"), "-c", config)
    made(*start)
    made(*start, "-s", "ratio=0.25", "-s", "freeze=random")
    found = json.loads((out / "score.json").read_text())
    assert (found["layers"], found["frozen"], found["settings"]["scorer"]) == ([0, 1], 64, "activation")
    assert [layer["frozen"] for layer in found["by_layer"]] == [32, 32]


# -- report ----------------------------------------------------------------------------------------------------------


def test_report_prints_a_table_that_fits_and_goes_on(room: Room, tmp_path: Path) -> None:
    out = tmp_path / "r"
    more = ["--lookalike", room.corpus / "lookalike.jsonl", "--reference", room.other, "-o", out]
    start = room.report(*more, *("-t", "builtin:reverse_words", "-t", "builtin:sort_numbers"))
    first = made(*start)
    found = json.loads((out / "report.json").read_text())
    assert list(found["arms"]) == ["before", "after", "reference"]
    assert list(found["arms"]["after"]["tasks"]) == ["reverse_words", "sort_numbers"]
    assert found["command"].startswith("skillweave cku report ")
    assert f"The report is in {out / 'report.html'}." in first.out
    for file in ("report.html", "report.md", "plots/known.svg", "plots/tasks.svg", "plots/probes.svg"):
        assert (out / file).is_file()
    tables = [line for line in first.out.splitlines() if str(out) not in line]
    assert max(map(len, tables)) <= 80
    assert "…" not in first.out
    retained = f"{100 * found['arms']['after']['retain_probability']:.1f}%"
    assert any(line.startswith("to retain: probability") and retained in line for line in tables)
    assert any(line.startswith("4 bits ") for line in tables)
    again = made(*start)
    assert again.out == first.out
    assert json.loads((out / "report.json").read_text()) == found


# -- mistakes --------------------------------------------------------------------------------------------------------

Arguments = Callable[[Room], list[object]]
MISTAKES: list[tuple[str, Arguments, str]] = [
    ("no file", lambda r: ["unlearn", "-b", r.base, "--forget", "no.jsonl", *r.sets("retain"), "-o", "x"],
     "no.jsonl does not exist"),
    ("both", lambda r: ["unlearn", "-b", r.base, "--forget", r.corpus / "retain.jsonl", *r.sets("retain"), "-o", "x"],
     "forget facts are in retain too"),
    ("key", lambda r: ["unlearn", "-c", r.config, "-o", "x", "-s", "localise.scorr=snip"],
     "unknown key 'localise.scorr'; did you mean 'scorer'?"),
    ("value", lambda r: ["unlearn", "-c", r.config, "-o", "x", "-s", "objective.loss=nop"], "objective.loss"),
    ("no base", lambda r: ["unlearn", *r.sets("forget", "retain"), "-o", "x"],
     "base is missing: give --base, or write `base:` in the file of --config"),
    ("no forget", lambda r: ["unlearn", "-b", r.base, "-o", "x"], "forget is missing: give --forget"),
    ("no out", lambda r: ["score", "-b", r.base, *r.sets("forget", "retain")], "out is missing: give --out"),
    ("no layer", lambda r: ["score", "-b", r.base, *r.sets("forget", "retain"), "-o", "x", "-s", "layers=[0, 7]"],
     "the base has layers 0 to 1"),
    ("key", lambda r: ["score", "-b", r.base, *r.sets("forget", "retain"), "-o", "x", "-s", "localise.ratio=0.5"],
     "unknown key 'localise'"),
    ("no delta", lambda r: ["report", "-b", r.base, *r.sets("forget", "retain"), "-o", "x"],
     "delta is missing: give --delta"),
    ("a run", lambda r: ["report", "-b", r.base, "--delta", r.run, *r.sets("forget", "retain"), "-o", "x"],
     "is not a delta folder"),
    ("other base", lambda r: ["report", "-b", r.other, "--delta", r.run / "delta", *r.sets("forget", "retain"),
                              "-o", "x"], "the delta belongs on"),
    ("task", lambda r: [*r.report("-o", "x", "-t", "builtin:sort_number")[1:]], "did you mean 'sort_numbers'?"),
    ("share", lambda r: ["corpus", "-o", "x", "--forget-share", 2], "is not a share between 0 and 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), [pytest.param(a, m, id=f"{n}-{i}") for i, (n, a, m) in enumerate(MISTAKES)]
)
def test_a_mistake_is_told_in_one_message_and_leaves_nothing(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Arguments, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused("cku", *arguments(room))
    assert message in said
    assert os.listdir(tmp_path) == []


def test_a_folder_that_holds_something_else_is_left_alone(room: Room, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "score.json").write_text('{"thesis": "years of work"}')
    both = room.sets("forget", "retain")
    for arguments in (
        ["cku", "unlearn", "-c", room.config, *both],
        ["cku", "score", "-b", room.base, *both],
        room.report(),
        ["cku", "corpus"],
    ):
        assert f"{out} holds something" in refused(*arguments, "-o", out)
    assert os.listdir(out) == ["score.json"]


def test_a_run_of_another_kind_or_with_other_settings_is_not_gone_on_with(room: Room) -> None:
    assert "holds a run with other settings" in refused(*room.report("-o", room.run))
    said = refused("cku", "unlearn", "-c", room.config, *room.sets("forget"), "-o", room.run, "-s", "seed=4")
    assert "holds a run with other settings (seed)" in said
