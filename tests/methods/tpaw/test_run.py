"""TPAW end to end on a micro model: it learns, tells what it did, frees the disk, and says where there is no way on."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from helpers.digits import Repeats
from helpers.left import same_bits, tensors
from helpers.selfplay import SHORT, settings
from skillweave.base import Checkpoint, open_tokenizer
from skillweave.base.chat import prompt_ids
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.tpaw import run as run_module
from skillweave.methods.tpaw.run import run
from skillweave.methods.tpaw.trainer import TeamTrainer
from skillweave.methods.training.answers import read_samples
from skillweave.methods.training.run import Run
from skillweave.tasks import load_task


def test_it_learns_and_tells_what_it_did(base, whole):
    figures = whole.figures()
    stages = figures["stages"]
    assert list(stages) == ["start", "held-out-0", *(f"{n}-{k}" for k in (1, 2, 3) for n in ("round", "held-out"))]
    judged = whole.judged()
    assert judged == [stages[f"held-out-{number}"]["log_prob"] for number in range(4)]
    assert figures["kept_round"] == judged.index(max(judged)) > 0
    assert max(judged) > judged[0] + 0.3
    assert figures["seed"] == 0
    assert stages["start"]["loss_last"] < 0.7 * stages["start"]["loss_first"]
    for number in (1, 2, 3):
        told = stages[f"round-{number}"]
        assert told["steps"] == 5
        assert told["generations"] == 32
        assert told["kept"] + told["too_long"] <= 32
        assert told["players"] == min(number, 2)
        assert told["margin"] == pytest.approx(told["target_reward"] - told["generated_reward"], abs=1e-5)
        assert set(TeamTrainer.watched.values()) | {"equal", "empty", "truncated", "length", "generated_score"} <= set(
            told
        )
        assert 0 <= told["beta_entropy"] <= math.log(told["players"]) + 1e-6
        held = stages[f"held-out-{number}"]
        assert list(held["wins"]) == [str(rival) for rival in sorted({0, *range(max(0, number - 2), number)})]
    steps = [step for number in (1, 2, 3) for step in read_json(whole.out / f"round-{number}" / "history.json")]
    assert fmean(step["rewards/margins"] for step in steps) > 0
    config = read_json(whole.out / "config.json")
    assert config["method"] == "tpaw"
    assert config["base"]["fingerprint"] == base.fingerprint
    assert whole.delta.base_fingerprint == base.fingerprint
    # The kept policy is the player of that round, and the base in memory is unchanged.
    assert same_bits(whole.delta, Delta.from_pretrained(whole.kept / str(figures["kept_round"])))
    assert all(torch.equal(tensor, whole.before[name]) for name, tensor in base.model.state_dict().items())


def test_only_the_train_split_is_trained_on_and_the_test_split_is_never_read(base, whole):
    assert set(whole.task.asked) == {"train", "calibration"}
    tokenizer = open_tokenizer(base.path)
    prompts = {
        name: {tuple(prompt_ids(tokenizer, entry.prompt)) for entry in entries}
        for name, entries in whole.task.splits.items()
    }
    assert list(whole.trained_on) == ["start", "round-1", "round-2", "round-3"]
    for name, rows in whole.trained_on.items():
        if name == "start":
            begun = {
                tuple(id for id, on in zip(row["input_ids"], row["labels"], strict=True) if on == -100) for row in rows
            }
            assert begun == prompts["train"]
        else:
            assert {tuple(row.prompt) for row in rows} <= prompts["train"]
    train, held = ({entry.id for entry in whole.task.splits[name]} for name in ("train", "calibration"))
    for path in whole.out.rglob("*/samples.jsonl"):
        assert {row.id for row in read_samples(path)} <= train
    judged = [row.id for row in read_samples(whole.out / "held-out-1" / "greedy.jsonl")]
    assert len(judged) == 10
    assert set(judged) < held


def test_the_disk_is_freed_and_holds_only_the_team_on_the_way(whole):
    left = {path.relative_to(whole.out).parts[0] for path in whole.out.rglob("*.safetensors")}
    assert left == {"delta"}
    assert not list(whole.out.rglob("optimizer.pt"))
    assert not list(whole.out.rglob("checkpoint-*"))
    assert not (whole.out / "players").exists()
    judged = whole.judged()
    best = list(itertools.accumulate(range(4), lambda top, k: k if judged[k] > judged[top] else top))
    # Stored after each round: the start, the best, and the next team; during an evaluation also the new player.
    stays = [{0, best[number], *range(max(0, number - 1), number + 1)} for number in (1, 2, 3)]
    expected = [("join", {0})]
    for number, stay in zip((1, 2, 3), stays, strict=True):
        expected += [("join", expected[-1][1] | {number}), ("dismiss", stay)]
    assert whole.teams == [(what, sorted(who)) for what, who in expected]
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in sorted(whole.kept.iterdir())]
    for number, (_, players) in enumerate([team for team in whole.teams if team[0] == "join"]):
        if number:
            assert whole.figures(f"round-{number}")["team_bytes"] == sum(sizes[player] for player in players)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_frozen_stays_to_the_bit(base, few, tmp_path, bf16):
    short = {**SHORT, "training": {**SHORT["training"], "weight_decay": 0.1}}
    found = tensors(run(base, settings(**short, trainable=r"layers\.1\.mlp", bf16=bf16, max_new_tokens=60), tmp_path))
    for name in Checkpoint(base.path).names():
        moved = name in found and bool((found[name] != 0).any())
        assert moved == ("layers.1.mlp" in name), name


@pytest.mark.parametrize(
    ("changes", "judged", "kept"),
    [
        # A tie is not better: after so many rounds without a better one the play ends, and the start is kept.
        ({"patience": 1, "keep": "best"}, 2, 0),
        ({"patience": 2, "keep": "last"}, 3, 2),
        ({"patience": None, "keep": "last"}, 4, 3),
    ],
)
def test_patience_and_what_is_kept_where_no_round_is_better(base, whole, few, tmp_path, changes, judged, kept):
    timid = {"steps": 1, "batch_size": 8, "learning_rate": 1e-6}
    same = {**SHORT, "training": timid, "rounds": 3, "judge_by": "score", "start": whole.out / "delta"}
    delta = run(base, settings(**{**same, **changes}), tmp_path)
    figures = read_json(tmp_path / "figures.json")
    assert (len(figures["held_out_score"]), figures["kept_round"]) == (judged, kept)
    assert kept or same_bits(delta, whole.delta)
    # The player has not changed, and yet each round samples new answers.
    drawn = [path.read_bytes() for path in tmp_path.glob("round-*/samples.jsonl")]
    assert len(set(drawn)) == judged - 1


# -- where there is nothing to do ------------------------------------------------------------------------------------


def test_where_no_pair_is_left_the_play_ends(base, whole, tmp_path):
    """One token is no answer: all are cut off or empty, and left out. There is no delta but the start."""
    cut = {**SHORT, "rounds": 3, "max_new_tokens": 1}
    delta = run(base, settings(**cut, start=whole.out / "delta"), tmp_path)
    assert same_bits(delta, whole.delta)
    figures = read_json(tmp_path / "figures.json")
    assert figures["kept_round"] == 0
    assert list(figures["stages"]) == ["start", "held-out-0", "round-1"]
    told = figures["stages"]["round-1"]
    assert (told["generations"], told["kept"], told["pairs"], told["steps"]) == (32, 0, 0, 0)
    assert told["truncated"] > 20


def test_a_base_that_answers_every_target_has_nothing_to_learn(base, tmp_path, monkeypatch, task):
    """The generations are made to be the targets: each is left out as equal, and from a bare base nothing is kept."""
    answers = {entry.id: entry.answer for entry in task.splits["train"]}
    sample = run_module.sample_policy

    def perfect(run, folder, entries):
        rows = [replace(row, answers=[answers[row.id]], ended=[True]) for row in sample(run, folder, entries)]
        (folder / "samples.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
        return rows

    monkeypatch.setattr(run_module, "sample_policy", perfect)
    for keep in ("best", "last"):
        with pytest.raises(UserError, match=r"round 1 made no pair .*equal 32, .*kept 0"):
            run(base, settings(**{**SHORT, "keep": keep}), tmp_path / keep)
        told = read_json(tmp_path / keep / "round-1" / "figures.json")
        assert (told["equal"], told["pairs"], told["steps"]) == (32, 0, 0)


def test_nothing_better_than_the_bare_base_is_said(base, few, tmp_path, monkeypatch):
    timid = {"steps": 1, "batch_size": 8, "learning_rate": 1e-6}
    changes = {**SHORT, "training": timid, "judge_by": "score", "keep": "best", "max_new_tokens": 60}
    for _ in range(2):
        with pytest.raises(UserError, match=r"no round was better than the base .*held-out score: 0, 0"):
            run(base, settings(**changes), tmp_path)
    assert not (tmp_path / "delta").exists()
    # As the error says: with keep=last the same folder gives the last round, and no work is repeated.
    monkeypatch.setattr(Run, "train", lambda *args: pytest.fail("trained again"))
    last = run(base, settings(**{**changes, "keep": "last"}), tmp_path)
    assert last.names()
    assert read_json(tmp_path / "config.json")["config"]["keep"] == "last"
    with pytest.raises(UserError, match=r"other settings \(keep\)"):
        run(base, settings(**changes), tmp_path)


def test_data_that_does_not_do_is_named(base, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load_task", lambda spec: Repeats(gold=False))
    with pytest.raises(UserError, match="train example has no gold answer"):
        run(base, settings(), tmp_path / "a")
    half = Repeats()
    half.splits["calibration"][3].answer = None
    monkeypatch.setattr(run_module, "load_task", lambda spec: half)
    with pytest.raises(UserError, match="calibration example has no gold answer"):
        run(base, settings(), tmp_path / "b")
    monkeypatch.setattr(run_module, "load_task", lambda spec: Repeats())
    with pytest.raises(UserError, match="all train prompts are longer than 3 tokens"):
        run(base, settings(max_length=3), tmp_path / "c")
    rows = [{"prompt": f"say {index}", "answer": str(index)} for index in range(12)]
    (tmp_path / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"source": "jsonl", "path": str(tmp_path / "say.jsonl"), "splits": {"calibration": 0, "test": 2}}
    monkeypatch.setattr(run_module, "load_task", load_task)
    with pytest.raises(UserError, match="no calibration examples"):
        run(base, settings(task=file), tmp_path / "d")
