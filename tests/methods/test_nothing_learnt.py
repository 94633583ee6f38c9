"""A run in which nothing was learnt says so, leaves no delta, and says the same when it is run again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from helpers.digits import Digits, Repeats
from helpers.micro import save_micro
from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.training import trainer
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import ModelSettings


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base, device="cpu")


def says_twice(name: str, base, settings: dict, out: Path, expected: str) -> None:
    """The method refuses, there is no delta, and a second run does no work and says the same."""
    method = get_method(name)
    config = method.config(bf16=False, **settings)
    said = []
    for _ in range(2):
        with pytest.raises(NothingLearnt, match=expected) as error:
            method.run(base, config, out)
        said.append(str(error.value))
        assert not (out / "delta").exists()
    assert said[0] == said[1]


def without_gradients(patch: pytest.MonkeyPatch) -> None:
    """Let every loss be without a slope, as a loss is that has reached its floor."""
    step = trainer.QuietTrainer

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super(step, self).training_step(model, inputs, *args, **kwargs)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        return loss

    patch.setattr(step, "training_step", training_step, raising=False)


DIGITS = {"task": "digits.jsonl", "probe_prompts": 2, "max_new_tokens": 4}
WARM = {"when": "always", "steps": 2, "batch_size": 4}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Steps with a gradient, too short to reach a float32 weight.
        ({"warm_start": {**WARM, "learning_rate": 1e-30}, "trainable": "mlp"}, "every weight is the base's own"),
        # A weight that is zero, as that of the pad token, takes up the smallest step.
        ({"warm_start": {**WARM, "learning_rate": 1e-30}}, "every weight is the base's own"),
        ({"warm_start": {**WARM, "learning_rate": 1e-12}}, "every weight is the base's own"),
        ({"warm_start": {**WARM, "learning_rate": 1e-30}, "train": "lora"}, "every weight is the base's own"),
    ],
)
def test_specialise_with_steps_that_move_nothing(base, tmp_path, monkeypatch, settings, expected):
    monkeypatch.setattr(sys.modules["skillweave.methods.specialise.run"], "load_task", lambda spec: Digits())
    says_twice("specialise", base, {**DIGITS, "rounds": 0, **settings}, tmp_path, f"nothing was learnt: {expected}")


def test_specialise_without_gradients_even_where_weights_decay(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["skillweave.methods.specialise.run"], "load_task", lambda spec: Digits())
    without_gradients(monkeypatch)
    settings = {**DIGITS, "rounds": 0, "warm_start": {**WARM, "weight_decay": 0.5, "learning_rate": 1e-2}}
    says_twice("specialise", base, settings, tmp_path, "nothing was learnt: no step of the training had a gradient")
    assert read_json(tmp_path / "warm-start" / "figures.json")["idle_steps"] == 2
    assert "warm-start: no step had a gradient" in capsys.readouterr().err


def test_specialise_where_all_answers_are_cut_off(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["skillweave.methods.specialise.run"], "load_task", lambda spec: Digits())
    settings = {**DIGITS, "warm_start": {"when": "never"}, "max_new_tokens": 1, "samples_per_prompt": 4}
    expected = r"nothing was learnt: [34]\d of 40 answers \(\d+%\) were cut off at max_new_tokens=1,"
    says_twice("specialise", base, settings, tmp_path, expected)
    assert "of 40 answers" in (said := capsys.readouterr().err)
    assert "were left out of the pairs; raise max_new_tokens" in said


def test_tpaw_without_gradients(base, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["skillweave.methods.tpaw.run"], "load_task", lambda spec: Repeats(8, 4))
    without_gradients(monkeypatch)
    step = {"steps": 1, "batch_size": 2, "weight_decay": 0.5}
    settings = {"task": "repeats.jsonl", "rounds": 2, "max_new_tokens": 40, "training": step, "keep": "last"}
    says_twice("tpaw", base, settings, tmp_path, "nothing was learnt: no step of round 1")


def test_tpaw_with_steps_that_move_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["skillweave.methods.tpaw.run"], "load_task", lambda spec: Repeats(8, 4))
    step = {"steps": 1, "batch_size": 2, "learning_rate": 1e-30}
    sizes = {"max_new_tokens": 40, "trainable": "mlp"}
    settings = {"task": "repeats.jsonl", "rounds": 1, "training": step, "keep": "last", **sizes}
    says_twice("tpaw", base, settings, tmp_path, "nothing was learnt: every weight is the base's own")


AGENT = {"task": "builtin:steps", "sft": None, "warm_up": {"steps": 0}, "evaluate_on": 0, "instruction": ""}


def test_e3tir_where_all_rewards_are_equal(tmp_path, capsys):
    """Three tokens are no answer: every conversation is cut off, and all are worth the same."""
    base = open_base(save_micro(tmp_path / "base", context=512), device="cpu")
    rl = {"steps": 2, "n": 2, "prompts": 2, "weight_decay": 0.5, "learning_rate": 1e-2}
    settings = {**AGENT, "rl": rl, "rollout": {"max_tokens": 3}}
    expected = r"all rewards were equal in every group \(rl: mean reward -1\).*100% of the conversations were cut off"
    says_twice("e3tir", base, settings, tmp_path / "run", f"nothing was learnt: {expected}")
    said = capsys.readouterr().err
    assert "rl: equal rewards in 100% of the groups" in said
    assert "rl: 100% of the policy's conversations were cut off at rollout.max_tokens=3" in said
    told = read_json(tmp_path / "run" / "rl" / "figures.json")
    assert (told["equal_groups"], told["cut_off"], told["mean_reward"], told["idle_steps"]) == (1, 1, -1, 2)


def test_what_was_learnt_before_stays_where_a_later_stage_teaches_nothing(base, tmp_path):
    """The stage is passed over: the policy is still that of the stage before it."""
    run = Run.begin("a-method", base, ModelSettings(), Digits(), tmp_path)
    run.trained("one", lambda folder: {"steps": 3, "idle_steps": 1})
    first = run.policy.trained
    run.trained("two", lambda folder: {"steps": 3, "idle_steps": 3})
    assert run.policy.trained == first == tmp_path / "one" / "policy"


def test_a_delta_of_zeros_is_no_delta(base, tmp_path):
    zeros = {name: torch.zeros_like(parameter) for name, parameter in base.model.named_parameters()}
    for change, empty in ((0.0, True), (1e-6, False)):
        name = next(iter(zeros))
        tensors = {**zeros, name: zeros[name] + change}
        Delta(tensors, base_fingerprint=base.fingerprint).save_pretrained(tmp_path / "one" / "policy")
        run = Run.begin("a-method", base, ModelSettings(), Digits(), tmp_path)
        run.trained("one", lambda folder: {"steps": 1})
        if empty:
            with pytest.raises(UserError, match="nothing was learnt: every weight is the base's own"):
                run.finish({})
            assert not (tmp_path / "delta").exists()
        else:
            assert run.finish({}).names()
