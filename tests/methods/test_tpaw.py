"""TPAW end to end on a micro model: it learns, asks each player once, resumes to the same bits, frees the disk."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from digits import Repeats
from peft import PeftModel
from transformers import AutoModelForCausalLM

from micro import save_micro
from skillweave.artefact import read_json
from skillweave.base import Checkpoint, open_base, open_tokenizer
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.methods.tpaw import TpawConfig, run
from skillweave.methods.tpaw.rows import Rows
from skillweave.methods.tpaw.team import Team
from skillweave.methods.tpaw.trainer import TeamTrainer
from skillweave.methods.training import pieces, trainer
from skillweave.methods.training import run as shared
from skillweave.methods.training.answers import read_samples
from skillweave.methods.training.run import Run
from skillweave.tasks import load_task

run_module = sys.modules["skillweave.methods.tpaw.run"]
team_module = sys.modules["skillweave.methods.tpaw.team"]

LN2 = pytest.approx(math.log(2), abs=1e-4)
SFT = {"steps": 16, "batch_size": 8, "learning_rate": 3e-3}
SETTINGS = {
    "task": "repeats.jsonl",
    "bf16": False,
    "sft": SFT,
    "rounds": 3,
    "team": 2,
    "generations": 2,
    "training": {"steps": 5, "batch_size": 8, "learning_rate": 1e-3},
    "held_out": 10,
    "judge_by": "log_prob",
    "sampling_batch_size": 16,
    "max_new_tokens": 6,
    "save_every": 3,
}
SHORT = {"rounds": 1, "team": None, "generations": None, "sft": None, "keep": "last",
         "training": {**SETTINGS["training"], "steps": 2}}  # fmt: skip
"""One round of two steps from the bare base, kept whatever comes of it."""


def settings(**changes) -> TpawConfig:
    return TpawConfig(**{**SETTINGS, **changes})


@pytest.fixture(autouse=True)
def task(monkeypatch):
    task = Repeats()
    monkeypatch.setattr(run_module, "load_task", lambda spec: task)
    return task


@pytest.fixture
def few(monkeypatch):
    """Where little is enough."""
    few = Repeats(8, 10)
    monkeypatch.setattr(run_module, "load_task", lambda spec: few)
    return few


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base, device="cpu")


@dataclass
class Whole:
    """An unbroken run, and what was seen of it while it ran."""

    out: Path
    kept: Path
    """Copies of all players: the run dismisses them."""
    task: Repeats
    before: dict[str, torch.Tensor]
    delta: Delta | None = None
    trained_on: dict[str, list[dict]] = field(default_factory=dict)
    scored: list[tuple[int, str, tuple]] = field(default_factory=list)
    """(player, name, tokens) of every answer that went through a model."""
    teams: list[tuple[str, list[int]]] = field(default_factory=list)
    """What was on the disk after each coming and going."""

    def figures(self, stage: str = "") -> dict:
        return read_json(self.out / stage / "figures.json")

    def player(self, base, number: int):
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
        Delta.from_pretrained(self.kept / str(number)).add_to(model)
        return model


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    seen = Whole(
        tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("players"), Repeats(),
        {name: tensor.clone() for name, tensor in base.model.state_dict().items()},
    )  # fmt: skip
    join, dismiss, train, score = Team.join, Team.dismiss, Run.train, team_module.answer_log_probs
    asked, log_probs = [], Team.log_probs

    def on_disk() -> list[int]:
        return sorted(int(folder.name) for folder in (seen.out / "players").iterdir())

    def joined(self, number):
        join(self, number)
        shutil.copytree(seen.out / "players" / str(number), seen.kept / str(number))
        seen.teams.append(("join", on_disk()))

    def dismissed(self, stay):
        dismiss(self, stay)
        seen.teams.append(("dismiss", on_disk()))

    def trained(self, folder, how, rows, *rest):
        seen.trained_on[folder.name] = rows
        return train(self, folder, how, rows, *rest)

    def naming(self, number, name, sides):
        asked[:] = [number, name]
        return log_probs(self, number, name, sides)

    def scored(model, inputs):
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen.scored.append((*asked, tuple(ids[mask.bool()].tolist())))
        return score(model, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load_task", lambda spec: seen.task)
        patch.setattr(Team, "join", joined)
        patch.setattr(Team, "dismiss", dismissed)
        patch.setattr(Team, "log_probs", naming)
        patch.setattr(Run, "train", trained)
        patch.setattr(team_module, "answer_log_probs", scored)
        seen.delta = run(base, settings(), seen.out)
    return seen


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """Two rounds of SPIN on adapters."""
    out = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load_task", lambda spec: Repeats())
        adapter = {"train": "lora", "lora": {"rank": 4, "alpha": 8}, "sft": {**SFT, "learning_rate": 1e-2}}
        play = {"loss": "spin", "team": None, "rounds": 2, "keep": "last"}
        run(base, settings(**adapter, **play, training={**SETTINGS["training"], "steps": 3}), out)
    return out


def tensors(delta: Delta) -> dict[str, torch.Tensor]:
    return {name: delta.tensor(name) for name in delta.names()}


def same_bits(one: Delta, other: Delta) -> bool:
    return one.names() == other.names() and all(
        torch.equal(one.tensor(name), other.tensor(name)) for name in one.names()
    )


def record(out: Path) -> dict[str, object]:
    """All that a run has written down of what it did, wherever it lies and however often it was cut off.

    Left out are the seconds, the bytes of the players (their cards name the folder) and TRL's count of tokens (which
    it begins anew).
    """

    def lasting(value):
        if isinstance(value, dict):
            return {
                key: lasting(item) for key, item in value.items() if key not in ("seconds", "team_bytes", "num_tokens")
            }
        return [lasting(item) for item in value] if isinstance(value, list) else value

    kept = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.jsonl")}
    return kept | {str(path.relative_to(out)): lasting(read_json(path)) for path in out.rglob("*.json")}


def log_prob(model, tokenizer, prompt: str, answer: str) -> float:
    """Summed log-probability of an answer, one token at a time."""
    ids = prompt_ids(tokenizer, prompt)
    total = 0.0
    with torch.no_grad():
        for token in answer_ids(tokenizer, answer):
            total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
            ids = [*ids, token]
    return total


def model_with(base, delta: Delta):
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    delta.add_to(model)
    return model


# -- the whole run ---------------------------------------------------------------------------------------------------


def test_it_learns_and_tells_what_it_did(base, whole):
    figures = whole.figures()
    stages = figures["stages"]
    assert list(stages) == ["start", "held-out-0", *(f"{n}-{k}" for k in (1, 2, 3) for n in ("round", "held-out"))]
    judged = figures["held_out_log_prob"]
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
    # What is kept is the player of that round, and the base in memory is as it was.
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
            begun = {tuple(id for id, on in zip(row["input_ids"], row["labels"], strict=True) if on == -100)
                     for row in rows}  # fmt: skip
            assert begun == prompts["train"]
        else:
            assert {tuple(row["prompt"]) for row in rows} <= prompts["train"]
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
    best = list(itertools.accumulate(range(4), lambda top, k: k if judged(whole)[k] > judged(whole)[top] else top))
    # After each round: the start, the best, and who plays in the next one. While one is judged, itself besides.
    stays = [{0, best[number], *range(max(0, number - 1), number + 1)} for number in (1, 2, 3)]
    expected = [("join", {0})]
    for number, stay in zip((1, 2, 3), stays, strict=True):
        expected += [("join", expected[-1][1] | {number}), ("dismiss", stay)]
    assert whole.teams == [(what, sorted(who)) for what, who in expected]
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in sorted(whole.kept.iterdir())]
    for number, (_, players) in enumerate([team for team in whole.teams if team[0] == "join"]):
        if number:
            assert whole.figures(f"round-{number}")["team_bytes"] == sum(sizes[player] for player in players)


def judged(whole: Whole) -> list[float]:
    return whole.figures()["held_out_log_prob"]


# -- the rows and the team -------------------------------------------------------------------------------------------


@pytest.fixture
def again(base, whole):
    """The rows and the team of the finished run, whose scores lie on the disk."""
    state = Run.begin("tpaw", base, settings(), whole.task, whole.out)
    team = Team(state)
    return Rows(state, team), team


def test_each_answer_is_asked_once_of_each_player(whole):
    of_rounds = [asked for asked in whole.scored if asked[1].startswith("round-")]
    assert len(of_rounds) == len(set(of_rounds))
    # Targets come back in every round that remembers them: they are still asked once, whatever the round.
    targets = Counter((player, ids) for player, name, ids in of_rounds if name.endswith("-targets"))
    assert set(targets.values()) == {1}
    # No player is asked what it never trains against: round 1 is forgotten when player 2 comes in.
    assert {(player, name) for player, name, _ in of_rounds if name.endswith("-generated")} == {
        (0, "round-1-generated"), (0, "round-2-generated"), (1, "round-1-generated"), (1, "round-2-generated"),
        (1, "round-3-generated"), (2, "round-2-generated"), (2, "round-3-generated"),
    }  # fmt: skip
    assert (2, "round-1-targets") not in {(player, name) for player, name, _ in of_rounds}
    held = [asked for asked in whole.scored if asked[1] == "held-out-targets"]
    assert Counter(player for player, _, _ in held) == {0: 10, 1: 10, 2: 10, 3: 10}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rows_are_the_remembered_rounds_each_pair_once_the_newest_first(base, whole, again, number):
    tokenizer = open_tokenizer(base.path)
    expected = []
    for each in [number, number - 1][: min(number, 2)]:
        for row in read_samples(whole.out / f"round-{each}" / "samples.jsonl"):
            lengths = [len(answer_ids(tokenizer, text)) for text in (row.gold, row.answers[0])]
            sane = row.ended[0] and row.answers[0].strip() and row.answers[0].strip() != row.gold
            pair = (row.prompt, row.gold, row.answers[0])
            if sane and max(lengths) <= 4 * min(lengths) and pair not in expected:
                expected.append(pair)
    assert len(expected) > 20
    players = list(range(number - 1, max(-1, number - 3), -1))
    rows = again[0].of_round(number, players)
    assert [(row["prompt"], row["sides"]) for row in rows] == [
        (prompt_ids(tokenizer, prompt), [answer_ids(tokenizer, text) for text in texts]) for prompt, *texts in expected
    ]
    assert rows == whole.trained_on[f"round-{number}"]
    # What the players think of both sides, newest player first, token by token.
    for at, player in enumerate(players):
        model = whole.player(base, player)
        for pair, row in list(zip(expected, rows, strict=True))[::5]:
            own = [log_prob(model, tokenizer, pair[0], text) for text in pair[1:]]
            assert row["players"][at] == pytest.approx(own, abs=1e-4)


def test_the_counts_of_a_round_are_those_of_its_own_generations(whole, again):
    for number in (1, 2, 3):
        told = whole.figures(f"round-{number}")
        samples = read_samples(whole.out / f"round-{number}" / "samples.jsonl")
        assert told["truncated"] == sum(not row.ended[0] for row in samples)
        assert told["equal"] == sum(row.answers[0].strip() == row.gold for row in samples)
        assert told["kept"] == len(again[0].pairs(number))
        assert told["generated_score"] == pytest.approx(fmean(row.scores[0] for row in samples))
        assert told["pairs"] == len(whole.trained_on[f"round-{number}"])
    assert whole.figures("round-2")["pairs"] > whole.figures("round-2")["kept"]


def test_a_player_who_left_cannot_be_opened(again):
    with pytest.raises(ValueError, match="player 2 is not in the team"):
        again[1].policy(2)


def test_at_the_start_of_a_round_the_newest_player_has_given_and_gained_nothing(whole):
    for number in (1, 2, 3):
        first = read_json(whole.out / f"round-{number}" / "history.json")[0]
        assert first["rewards/target"] == pytest.approx(0, abs=1e-6)
        assert first["rewards/generated"] == pytest.approx(0, abs=1e-6)
    assert whole.figures("round-1")["loss_first"] == LN2
    # An older player has been left behind already.
    assert read_json(whole.out / "round-2" / "history.json")[0]["rewards/team_margins"] > 1e-3


def test_the_judge_against_a_slow_one(base, whole):
    tokenizer, entries = open_tokenizer(base.path), whole.task.splits["calibration"][:10]
    number, rival = 2, 1
    models = {player: whole.player(base, player) for player in (0, rival, number)}
    told = whole.figures(f"held-out-{number}")

    def said(player: int, how: str) -> list[str]:
        return [row.answers[0] for row in read_samples(whole.out / f"held-out-{player}" / f"{how}.jsonl")]

    def likely(player: int, texts: list[str]) -> list[float]:
        return [log_prob(models[player], tokenizer, one.prompt, text) for one, text in zip(entries, texts, strict=True)]

    gold, drawn, of_rival = [entry.answer for entry in entries], said(number, "drawn"), said(rival, "greedy")
    assert told["log_prob"] == pytest.approx(fmean(likely(number, gold)), abs=1e-4)
    scores = {
        player: [whole.task.score(text, one) for text, one in zip(said(player, "greedy"), entries, strict=True)]
        for player in (rival, number)
    }
    assert told["score"] == fmean(scores[number])
    assert told["tokens"] == fmean(len(answer_ids(tokenizer, text)) for text in said(number, "greedy"))
    assert told["target_tokens"] == fmean(len(answer_ids(tokenizer, text)) for text in gold)
    ended = [row.ended[0] for row in read_samples(whole.out / f"held-out-{number}" / "drawn.jsonl")]
    assert 0 < sum(ended) < len(ended)
    here, there = (list(itertools.compress(likely(player, drawn), ended)) for player in (number, 0))
    assert told["kl_to_start"] == pytest.approx(fmean(a - b for a, b in zip(here, there, strict=True)), abs=1e-4)
    mine = [y - own for y, own in zip(likely(number, gold), likely(number, of_rival), strict=True)]
    theirs = [y - own for y, own in zip(likely(rival, gold), likely(rival, of_rival), strict=True)]
    assert told["wins"]["1"]["log_prob"] == fmean(
        0.5 if text == answer else float(a > b) for a, b, text, answer in zip(mine, theirs, gold, of_rival, strict=True)
    )
    assert told["wins"]["1"]["score"] == fmean(
        (a > b) + 0.5 * (a == b) for a, b in zip(scores[number], scores[rival], strict=True)
    )


# -- a run that is cut off -------------------------------------------------------------------------------------------


def stop_at(patch, stage: str, step: int) -> None:
    shown = trainer._Show.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        shown(self, args, state, control, **kwargs)
        if Path(args.output_dir).name == stage and state.global_step == step:
            raise KeyboardInterrupt

    patch.setattr(trainer._Show, "on_step_end", on_step_end)


def stop_writing(patch, out: Path, file: str, after: bool = False) -> None:
    """Break off before (or after) a file is written: a piece of a long job, or the mark of a finished stage."""
    for module, name in ((pieces, "write_text"), (shared, "write_json")):
        write = getattr(module, name)

        def writing(path, value, write=write):
            if path != out / file or after:
                write(path, value)
            if path == out / file:
                raise KeyboardInterrupt

        patch.setattr(module, name, writing)


def stop_calling(patch, owner, name: str, of=lambda *_: True) -> None:
    """Break off before ``owner.name`` is called on arguments of which ``of`` is true."""
    call = getattr(owner, name)

    def calling(*args):
        if of(*args):
            raise KeyboardInterrupt
        return call(*args)

    patch.setattr(owner, name, calling)


def places(out: Path):
    """Where a run may be cut off, in the order in which it comes by: (what, how to break off there)."""

    def training(stage, step):
        return f"{stage}, step {step}", lambda patch: stop_at(patch, stage, step)

    def writing(file, after=False):
        return f"{'after' if after else 'before'} {file}", lambda patch: stop_writing(patch, out, file, after)

    def joining(number):
        return f"join {number}", lambda patch: stop_calling(patch, Team, "join", lambda _, who: who == number)

    def tidying(stage):
        return f"tidy {stage}", lambda patch: stop_calling(
            patch, trainer, "drop_checkpoints", lambda folder: folder.name == stage
        )

    return [
        training("start", 5),
        joining(0),
        tidying("start"),
        writing("held-out-0/greedy.jsonl"),
        writing("round-1/samples.parts/000001.jsonl"),
        writing("scores/player-0/round-1-targets.parts/000001.jsonl"),
        training("round-1", 4),
        joining(1),
        tidying("round-1"),
        writing("round-1/figures.json"),
        writing("round-1/figures.json", after=True),
        writing("held-out-1/drawn.parts/000000.jsonl"),
        writing("scores/player-1/held-out-greedy-0.parts/000000.jsonl"),
        writing("round-2/samples.jsonl"),
        writing("scores/player-1/round-2-generated.parts/000000.jsonl"),
        training("round-2", 5),
        writing("held-out-2/figures.json"),
        writing("held-out-2/figures.json", after=True),
        writing("round-3/samples.parts/000000.jsonl"),
        writing("scores/player-2/round-2-targets.parts/000000.jsonl"),
        training("round-3", 2),
        tidying("round-3"),
        writing("held-out-3/figures.json"),
        writing("figures.json"),
        writing("figures.json", after=True),
    ]


def test_a_run_cut_off_at_every_place_ends_in_the_same_bits(base, whole, tmp_path):
    pieces_done, began = Counter(), []
    shown = trainer._Show.on_train_begin

    def on_train_begin(self, args, state, control, **kwargs):
        began.append((Path(args.output_dir).name, state.global_step))
        shown(self, args, state, control, **kwargs)

    for what, break_off in places(tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            write = pieces.write_text
            patch.setattr(trainer._Show, "on_train_begin", on_train_begin)

            def counting(path, text, write=write):
                write(path, text)
                pieces_done[path] += 1

            patch.setattr(pieces, "write_text", counting)
            break_off(patch)
            with pytest.raises(KeyboardInterrupt):
                run(base, settings(), tmp_path)
                pytest.fail(f"never came by: {what}")
        if "step" in what:  # a save that was cut off has no mark: it must not be gone on from
            (tmp_path / what.partition(",")[0] / "checkpoint-99").mkdir()
    delta = run(base, settings(), tmp_path)
    assert same_bits(delta, whole.delta)
    assert record(tmp_path) == record(whole.out)
    assert not (tmp_path / "players").exists()
    # Nothing that was written down was made again, and training went on from its newest whole checkpoint: after it
    # was cut off in the middle, and then, with no step to do, for as long as its result had not been put away.
    assert set(pieces_done.values()) == {1}
    assert began == [
        *(("start", step) for step in (0, 3, 16, 16)),
        *(("round-1", step) for step in (0, 3, 5, 5, 0)),
        *(("round-2", step) for step in (0, 3)),
        *(("round-3", step) for step in (0, 0, 5)),
    ]


def test_a_finished_run_is_not_run_again(base, whole, monkeypatch):
    monkeypatch.setattr(run_module, "_SelfPlay", None)
    assert same_bits(run(base, settings(), whole.out), whole.delta)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"seed": 1}, "seed"), ({"lam": 0.2, "eta": 2.0}, "lam, eta"), ({"generations": None}, "generations"),
     ({"training": {**SETTINGS["training"], "steps": 6}}, "training")],
)  # fmt: skip
def test_other_settings_in_the_same_folder_are_refused(base, whole, changes, said):
    with pytest.raises(UserError, match=rf"other settings \({said}\)"):
        run(base, settings(**changes), whole.out)


def test_other_examples_in_the_same_folder_are_refused(base, whole, monkeypatch):
    monkeypatch.setattr(run_module, "load_task", lambda spec: Repeats(30))
    with pytest.raises(UserError, match="other examples"):
        run(base, settings(), whole.out)


# -- where it begins -------------------------------------------------------------------------------------------------


def test_a_start_is_player_0_and_part_of_the_delta(base, whole, tmp_path):
    delta = run(base, settings(**SHORT, start=whole.out / "delta"), tmp_path)
    kept, stages = whole.figures()["kept_round"], read_json(tmp_path / "figures.json")["stages"]
    assert list(stages) == ["start", "held-out-0", "round-1", "held-out-1"]
    # It is the player that was kept there: same judge, same figures.
    of_kept = {**whole.figures(f"held-out-{kept}"), **stages["held-out-0"]}
    assert {key: of_kept[key] for key in stages["held-out-0"]} == stages["held-out-0"]
    assert stages["held-out-0"]["log_prob"] == judged(whole)[kept]
    assert stages["round-1"]["loss_first"] == LN2
    model, tokenizer = model_with(base, delta), open_tokenizer(base.path)
    entries = whole.task.splits["calibration"][:10]
    assert stages["held-out-1"]["log_prob"] == pytest.approx(
        fmean(log_prob(model, tokenizer, entry.prompt, entry.answer) for entry in entries), abs=1e-4
    )
    assert whole.out.joinpath("delta").is_dir()


def test_supervised_training_goes_on_from_a_start_and_leaves_no_copy_of_it(base, whole, few, tmp_path):
    config = settings(**{**SHORT, "sft": {**SFT, "steps": 2, "learning_rate": 1e-4}, "start": whole.out / "delta"})
    unbroken = run(base, config, tmp_path / "a")
    # Not from the base, whose loss is above 4.
    assert read_json(tmp_path / "a" / "figures.json")["stages"]["start"]["loss_first"] < 2.5
    assert {path.relative_to(tmp_path / "a").parts[0] for path in tmp_path.rglob("a/**/*.safetensors")} == {"delta"}
    for break_off in (lambda patch: stop_at(patch, "start", 1), lambda patch: stop_calling(patch, Team, "join")):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            break_off(patch)
            run(base, config, tmp_path / "b")
    assert same_bits(run(base, config, tmp_path / "b"), unbroken)


@pytest.mark.parametrize(
    ("changes", "judged", "kept"),
    [
        # A tie is not better: without a better round in so many, the play is over, and the start itself is kept.
        ({"patience": 1, "keep": "best"}, 2, 0),
        ({"patience": 2, "keep": "last"}, 3, 2),
        ({"patience": None, "keep": "last"}, 4, 3),
    ],
)
def test_patience_and_what_is_kept_where_no_round_is_better(base, whole, few, tmp_path, changes, judged, kept):
    timid = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12}
    same = {**SHORT, "training": timid, "rounds": 3, "judge_by": "score", "start": whole.out / "delta"}
    delta = run(base, settings(**{**same, **changes}), tmp_path)
    figures = read_json(tmp_path / "figures.json")
    assert (len(figures["held_out_score"]), figures["kept_round"]) == (judged, kept)
    assert kept or same_bits(delta, whole.delta)
    # The player has not changed, and yet each round draws anew.
    drawn = [path.read_bytes() for path in tmp_path.glob("round-*/samples.jsonl")]
    assert len(set(drawn)) == judged - 1


def test_a_start_that_does_not_fit_is_refused(base, whole, tmp_path):
    start = {**SHORT, "start": whole.out / "delta"}
    with pytest.raises(UserError, match="is a full delta, and train is lora"):
        run(base, settings(**start, train="lora"), tmp_path / "a")
    other = open_base(save_micro(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(UserError, match="the delta belongs on"):
        run(other, settings(**start), tmp_path / "b")
    with pytest.raises(UserError, match="nowhere"):
        run(base, settings(**{**SHORT, "start": tmp_path / "nowhere"}), tmp_path / "c")


# -- adapters --------------------------------------------------------------------------------------------------------


def test_lora_loads_in_peft(base, lora):
    delta = Delta.from_pretrained(lora / "delta")
    assert delta.kind == "lora"
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    plain = {name: parameter.clone() for name, parameter in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, str(lora / "delta")).merge_and_unload()
    changed = {name for name, value in merged.named_parameters() if not torch.equal(value, plain[name])}
    assert changed == set(delta.names())
    for name in delta.names():
        torch.testing.assert_close(merged.get_parameter(name) - plain[name], delta.tensor(name), atol=1e-6, rtol=1e-4)
    assert read_json(lora / "delta" / "adapter_config.json")["base_model_name_or_path"] == base.ref
    # Each round's player is the adapter as the round found it, not the base.
    stages = read_json(lora / "figures.json")["stages"]
    for name in ("round-1", "round-2"):
        assert stages[name]["loss_first"] == LN2
    tokenizer, entries = open_tokenizer(base.path), Repeats().splits["calibration"][:10]
    with_adapter = model_with(base, delta)
    assert stages["held-out-2"]["log_prob"] == pytest.approx(
        fmean(log_prob(with_adapter, tokenizer, entry.prompt, entry.answer) for entry in entries), abs=1e-4
    )
    assert {path.relative_to(lora).parts[0] for path in lora.rglob("*.safetensors")} == {"delta"}


def test_an_adapter_goes_on_as_an_adapter_or_as_a_full_model(base, lora, few, tmp_path):
    kept = model_with(base, Delta.from_pretrained(lora / "delta"))
    tokenizer, entries = open_tokenizer(base.path), few.splits["calibration"]
    expected = fmean(log_prob(kept, tokenizer, entry.prompt, entry.answer) for entry in entries)
    adapter = {"train": "lora", "lora": {"rank": 4, "alpha": 8}}
    for name, changes in (("lora", adapter), ("full", {})):
        delta = run(base, settings(**{**SHORT, **changes}, start=lora / "delta"), tmp_path / name)
        assert delta.kind == name
        begun = read_json(tmp_path / name / "figures.json")["stages"]["held-out-0"]
        assert begun["log_prob"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_frozen_stays_to_the_bit(base, few, tmp_path, bf16):
    short = {**SHORT, "training": {**SHORT["training"], "weight_decay": 0.1}}
    found = tensors(run(base, settings(**short, trainable=r"layers\.1\.mlp", bf16=bf16, drop=()), tmp_path))
    for name in Checkpoint(base.path).names():
        moved = name in found and bool((found[name] != 0).any())
        assert moved == ("layers.1.mlp" in name), name


# -- the relatives ---------------------------------------------------------------------------------------------------


def test_a_team_of_one_with_equal_weights_is_spin_to_the_bit(base, whole, few, tmp_path):
    same = {**SHORT, "rounds": 2, "start": whole.out / "delta", "lam": 5.0, "generations": 2}
    spin = run(base, settings(**{**same, "loss": "spin"}), tmp_path / "spin")
    team = run(base, settings(**{**same, "loss": "team", "team": 1, "eta": 1.0, "gamma": 3.0}), tmp_path / "team")
    assert same_bits(spin, team)
    assert not same_bits(spin, whole.delta)
    stages = read_json(tmp_path / "spin" / "figures.json")["stages"]
    for number in (1, 2):
        # As each round begins the policy is its player, so the loss is ln 2 whatever lam.
        assert stages[f"round-{number}"]["loss_first"] == LN2
    assert stages["round-2"]["pairs"] > stages["round-2"]["kept"]
    samples = [record(tmp_path / name)["round-2/samples.jsonl"] for name in ("spin", "team")]
    assert samples[0] == samples[1]


def test_dpo_learns_from_the_verifier(base, whole, tmp_path):
    changes = {**SHORT, "loss": "dpo", "samples_per_prompt": 3, "start": whole.out / "delta"}
    run(base, settings(**changes), tmp_path)
    told = read_json(tmp_path / "round-1" / "figures.json")
    assert told["loss_first"] == LN2
    right = {row.id: {text for text, score in zip(row.answers, row.scores, strict=True) if score >= 0.5}
             for row in read_samples(tmp_path / "round-1" / "samples.jsonl")}  # fmt: skip
    assert told["pairs"] == told["kept"] > 0
    assert told["generated_score"] == pytest.approx(
        fmean(score for row in read_samples(tmp_path / "round-1" / "samples.jsonl") for score in row.scores)
    )
    assert len(right) == 32


def test_tspin_holds_each_answer_against_that_of_the_first_round(base, whole, few, tmp_path, monkeypatch):
    given, train = {}, Run.train

    def trained(self, folder, how, rows, *rest):
        given[folder.name] = rows
        return train(self, folder, how, rows, *rest)

    monkeypatch.setattr(Run, "train", trained)
    run(base, settings(**{**SHORT, "rounds": 2, "loss": "tspin", "start": whole.out / "delta"}), tmp_path)
    tokenizer = open_tokenizer(base.path)
    first = {
        tuple(prompt_ids(tokenizer, row.prompt)): answer_ids(tokenizer, row.answers[0])
        for row in read_samples(tmp_path / "round-1" / "samples.jsonl")
    }
    assert all(row["sides"][2] == row["sides"][1] for row in given["round-1"])
    assert all(row["sides"][2] == first[tuple(row["prompt"])] for row in given["round-2"])
    assert any(row["sides"][2] != row["sides"][1] for row in given["round-2"])


def test_sft_alone_draws_no_answers(base, tmp_path):
    changes = {**SHORT, "rounds": 2, "loss": "sft", "training": {**SFT, "steps": 4}}
    run(base, settings(**changes), tmp_path)
    figures = read_json(tmp_path / "figures.json")
    assert figures["held_out_log_prob"][2] > figures["held_out_log_prob"][0] + 1
    assert figures["stages"]["round-2"]["loss_last"] < figures["stages"]["round-1"]["loss_first"]
    assert not (tmp_path / "round-1" / "samples.jsonl").exists()


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
    sample = run_module.sample_answers

    def perfect(*args, **named):
        rows = [replace(row, answers=[answers[row.id]], ended=[True]) for row in sample(*args, **named)]
        args[5].write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
        return rows

    monkeypatch.setattr(run_module, "sample_answers", perfect)
    for keep in ("best", "last"):
        with pytest.raises(UserError, match=r"round 1 made no pair .*equal 32, .*kept 0"):
            run(base, settings(**{**SHORT, "keep": keep}), tmp_path / keep)
        told = read_json(tmp_path / keep / "round-1" / "figures.json")
        assert (told["equal"], told["pairs"], told["steps"]) == (32, 0, 0)


def test_nothing_better_than_the_bare_base_is_said(base, few, tmp_path, monkeypatch):
    timid = {"steps": 1, "batch_size": 8, "learning_rate": 1e-12}
    changes = {**SHORT, "training": timid, "judge_by": "score", "keep": "best", "drop": ()}
    for _ in range(2):
        with pytest.raises(UserError, match=r"no round was better than the base .*held-out score: 0, 0"):
            run(base, settings(**changes), tmp_path)
    assert not (tmp_path / "delta").exists()
    # As the error says: the last round can be had of the same folder, and nothing is done again.
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
    with pytest.raises(UserError, match="every prompt has 3 tokens or more"):
        run(base, settings(max_length=3), tmp_path / "c")
    rows = [{"prompt": f"say {index}", "answer": str(index)} for index in range(12)]
    (tmp_path / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"source": "jsonl", "path": str(tmp_path / "say.jsonl"), "splits": {"calibration": 0, "test": 2}}
    monkeypatch.setattr(run_module, "load_task", load_task)
    with pytest.raises(UserError, match="no calibration examples"):
        run(base, settings(task=file), tmp_path / "d")


# -- several processes -----------------------------------------------------------------------------------------------


def driver(base: Path, out: Path, *more: str, processes: int = 1, **changes) -> int:
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{folder.parents[1] / 'src'}:{folder}", "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] * (processes > 1)
    script = [str(folder / "tpaw_driver.py"), str(base), str(out), json.dumps({**SETTINGS, **changes}), *more]
    return subprocess.run([sys.executable, *torchrun, *script], env=environment, capture_output=True).returncode


@pytest.mark.slow
def test_kill_minus_nine_and_again(micro_base, whole, tmp_path):
    assert driver(micro_base, tmp_path, "round-2", "4") == -9
    assert (tmp_path / "round-2" / "checkpoint-3" / "complete").exists()
    assert driver(micro_base, tmp_path, "round-3", "1") == -9
    assert driver(micro_base, tmp_path) == 0
    assert same_bits(Delta.from_pretrained(tmp_path / "delta"), whole.delta)
    assert record(tmp_path) == record(whole.out)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "lora"])
def test_two_processes_make_the_same_delta(micro_base, base, tmp_path, train):
    same = {"train": train, "rounds": 2, "training": {**SETTINGS["training"], "micro_batch_size": 2}}
    assert driver(micro_base, tmp_path / "two", processes=2, **same) == 0
    one = run(base, settings(**same), tmp_path / "one")
    two = Delta.from_pretrained(tmp_path / "two" / "delta")
    # Adam makes a whole step of a gradient that is nearly zero, whichever way rounding turns it.
    for name, tensor in tensors(one).items():
        assert (two.tensor(name) - tensor).norm() < 0.01 * tensor.norm(), name
    first, second = (read_json(tmp_path / name / "figures.json")["stages"] for name in ("one", "two"))
    for stage in ("round-1", "round-2"):
        assert second[stage]["pairs"] == first[stage]["pairs"]
        for figure in {"loss_last", *TeamTrainer.watched.values()} - {"padding"}:
            assert second[stage][figure] == pytest.approx(first[stage][figure], rel=1e-2, abs=2e-3), figure
    assert second["held-out-2"]["log_prob"] == pytest.approx(first["held-out-2"]["log_prob"], abs=1e-2)
