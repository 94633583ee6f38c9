"""The held-out loss of a supervised training: what it is, that looking changes nothing, and when it ends a training."""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.digits import Repeats
from helpers.method_driver import stop_at
from helpers.micro import log_prob, micro_model, micro_tokenizer
from skillweave.base import open_base, open_tokenizer
from skillweave.base.chat import answer_ids
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise import run as run_module
from skillweave.methods.specialise.run import run
from skillweave.methods.training.head import install_scoring_head
from skillweave.methods.training.held_out import held_out_loss
from skillweave.methods.training.settings import AnswerSettings
from skillweave.methods.training.sft import encode

WARM = {"when": "always", "steps": 24, "batch_size": 8, "learning_rate": 3e-3, "evaluate_every": 2, "held_out": 8}


def settings(**warm) -> SpecialiseConfig:
    sizes = {"probe_prompts": 1, "samples_per_prompt": 2, "max_new_tokens": 2, "save_every": 5, "rounds": 0}
    model = {key: warm.pop(key) for key in ("train", "lora") if key in warm}
    return SpecialiseConfig(task="repeats.jsonl", bf16=False, warm_start={**WARM, **warm}, **sizes, **model)


class Contradicts(Repeats):
    """What is held out has answers that the train split contradicts: to learn that makes them less likely."""

    def __init__(self) -> None:
        super().__init__()
        for entry in self.splits["calibration"]:
            entry.answer = "what?"


@pytest.fixture
def task(monkeypatch):
    task = Contradicts()
    monkeypatch.setattr(run_module, "load_task", lambda spec: task)
    return task


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base, device="cpu")


def tuned(base, delta: Delta):
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    delta.add_to(model)
    return model


def slow_loss(model, tokenizer, examples) -> float:
    """Nats a token of the answers, their ends included: one token at a time."""
    total = sum(log_prob(model, tokenizer, prompt, answer) for prompt, answer in examples)
    return -total / sum(len(answer_ids(tokenizer, answer)) for _, answer in examples)


def held_out(task) -> list[tuple[str, str]]:
    return [(entry.prompt, entry.answer) for entry in task.splits["calibration"][:8]]


def same_bits(one: Delta, other: Delta) -> bool:
    return one.names() == other.names() and all(torch.equal(one.tensor(n), other.tensor(n)) for n in one.names())


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_loss_is_the_mean_over_all_tokens_however_they_are_batched(size):
    examples = [("say 7", "777"), ("say 1 and more", "1"), ("hm", ""), ("a b c", "a long answer, well")]
    model, tokenizer = micro_model().train(), micro_tokenizer()
    expected = slow_loss(micro_model().eval(), tokenizer, examples)
    install_scoring_head(model)
    rows = encode(tokenizer, examples, 100)
    assert held_out_loss(model, rows, 0, size, contextlib.nullcontext) == pytest.approx(expected, abs=1e-5)
    assert model.training


@pytest.mark.parametrize(("steps", "every"), [(1, 10), (40, 10), (200, 10), (201, 11), (1000, 50)])
def test_by_default_a_training_is_looked_at_twenty_times_at_most(steps, every):
    assert AnswerSettings().evaluation_interval(steps) == every


def test_to_look_changes_no_weight_and_what_is_seen_is_kept(base, task, tmp_path, capsys):
    plain = run(base, settings(held_out=0), tmp_path / "plain")
    watched = run(base, settings(evaluate_every=5), tmp_path / "watched")
    assert same_bits(plain, watched)
    curve = read_json(tmp_path / "watched" / "warm-start" / "curve.json")
    assert [look["step"] for look in curve] == [5, 10, 15, 20, 24]  # the last step is looked at, wherever it falls
    history = {entry["step"]: entry for entry in read_json(tmp_path / "watched" / "warm-start" / "history.json")}
    assert len(history) == 24
    for look in curve:
        at = history[look["step"]]
        assert look == {"step": at["step"], "loss": at["loss"], "held_out_loss": at["held_out_loss"]}
    assert not (tmp_path / "plain" / "warm-start" / "curve.json").exists()
    told = read_json(tmp_path / "watched" / "warm-start" / "figures.json")
    expected = slow_loss(tuned(base, watched), open_tokenizer(base.path), held_out(task))
    assert told["held_out_loss"] == curve[-1]["held_out_loss"] == pytest.approx(expected, abs=1e-4)
    assert told["held_out"] == 8
    assert told["held_out_best"] == min(look["held_out_loss"] for look in curve) < told["held_out_loss"]
    said = capsys.readouterr().err
    assert f"the held-out loss was lowest at step {told['best_step']}" in said
    assert "set patience" in said
    assert "test" not in task.asked


@pytest.mark.parametrize("train", ["full", "lora"])
def test_patience_ends_a_training_and_keeps_the_best_weights(base, task, tmp_path, monkeypatch, train):
    early = settings(patience=2, steps=40, train=train, lora={"rank": 4})
    delta = run(base, early, tmp_path / "whole")
    told = read_json(tmp_path / "whole" / "warm-start" / "figures.json")
    curve = read_json(tmp_path / "whole" / "warm-start" / "curve.json")
    losses = [look["held_out_loss"] for look in curve]
    assert told["steps"] == curve[-1]["step"] == told["best_step"] + 4 < 40
    assert losses.index(min(losses)) == len(losses) - 3
    assert told["held_out_loss"] == told["held_out_best"] == min(losses)
    expected = slow_loss(tuned(base, delta), open_tokenizer(base.path), held_out(task))
    assert expected == pytest.approx(min(losses), abs=1e-4)
    # Killed after the best look, before the end, and at the very step at which it ends.
    for step in (told["best_step"] + 1, told["steps"]):
        again = tmp_path / f"killed-at-{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, "warm-start", step)
            with pytest.raises(KeyboardInterrupt):
                run(base, early, again)
        assert same_bits(run(base, early, again), delta)
        assert read_json(again / "warm-start" / "curve.json") == curve
        kept, unbroken = (read_json(out / "warm-start" / "history.json") for out in (again, tmp_path / "whole"))
        for key in ("step", "loss", "grad_norm", "held_out_loss"):
            assert [entry.get(key) for entry in kept] == [entry.get(key) for entry in unbroken]
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_patience_without_anything_held_out_is_an_error(base, task, tmp_path):
    task.splits["calibration"] = []
    with pytest.raises(UserError, match=r"warm-start: patience needs a held-out loss.*splits\.calibration"):
        run(base, settings(patience=2), tmp_path)
    with pytest.raises(ValueError, match="patience needs a held-out loss"):
        settings(patience=2, held_out=0)
