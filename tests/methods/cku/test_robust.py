"""Noise and distillation: slow references in float64, frozen neurons to the bit, a break, and the settings."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from transformers import PrinterCallback, TrainerControl, TrainerState

from helpers.left import record, same_bits, tensors
from helpers.method_driver import stop_at
from helpers.micro import micro_model, micro_tokenizer
from helpers.tiny import cpu_arguments
from helpers.unlearning import reference_model, rows_of, settings
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku import CkuConfig
from skillweave.methods.cku.config import RobustSettings
from skillweave.methods.cku.neurons.localise import read_neurons
from skillweave.methods.cku.robust import DistilTrainer, Recovered, add_noise, shrink_perturb
from skillweave.methods.cku.run import run
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import TrainingSettings

ROBUST = {"noise": 0.5, "scale": 1.0, "steps": 6, "batch_size": 4, "every": 2, "learning_rate": 3e-3, "warmup": 0.0}


def test_the_weights_are_shrunk_and_the_noise_is_uniform():
    weights = torch.full((200, 100), 2.0)
    noised = shrink_perturb(weights, noise=0.25, scale=0.5, generator=torch.Generator().manual_seed(0))
    noise = (noised.double() - 0.75 * weights.double()) / (0.25 * 0.5)
    bound = (6 / 300) ** 0.5
    assert float(noise.abs().max()) == pytest.approx(bound, rel=1e-2)
    assert float(noise.std()) == pytest.approx(bound / 3**0.5, rel=2e-2)  # of a uniform distribution
    assert abs(float(noise.mean())) < bound / 50
    same, other = (
        shrink_perturb(weights, noise=0.25, scale=0.5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert torch.equal(same, noised)
    assert not torch.equal(other, noised)


def test_a_vector_is_only_shrunk_and_without_a_scale_so_is_a_matrix():
    generator = torch.Generator()
    assert torch.equal(
        shrink_perturb(torch.ones(3), noise=0.25, scale=1.0, generator=generator), torch.full((3,), 0.75)
    )
    assert torch.equal(shrink_perturb(torch.ones(2, 2), noise=1.0, scale=0.0, generator=generator), torch.zeros(2, 2))


def test_every_parameter_gets_noise_of_its_own():
    parameters = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    add_noise(parameters, RobustSettings(noise=0.5, scale=1.0), seed=3)
    assert not torch.equal(*parameters)
    again = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    add_noise(again, RobustSettings(noise=0.5, scale=1.0), seed=3)
    assert all(torch.equal(one, other) for one, other in zip(parameters, again, strict=True))


def distiller(folder, rows, micro=None) -> DistilTrainer:
    training = TrainingSettings(steps=1, batch_size=len(rows), micro_batch_size=micro, warmup=0.0, max_grad_norm=1e9)
    arguments = {**cpu_arguments(training, folder, steps=1), "save_strategy": "no"}
    trainer = DistilTrainer(micro_model(), micro_tokenizer(), arguments, rows, teacher=reference_model(), callbacks=[])
    trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.parametrize("micro", [None, 2])
def test_the_loss_is_the_slow_sum_whatever_the_micro_batches(tmp_path, micro):
    rows = [row["retain"] for row in rows_of(4)]
    trainer = distiller(tmp_path, rows, micro)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    student, teacher = micro_model().double(), reference_model().double()
    values = []
    for row in rows:
        ours, theirs = (
            model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1) for model in (student, teacher)
        )
        places = range(1, len(row["input_ids"]))
        of_row = [(theirs[at - 1].exp() * (theirs[at - 1] - ours[at - 1])).sum() for at in places]
        values.append(sum(of_row) / len(of_row))
    assert logged == pytest.approx(float(torch.stack(values).mean().detach()), rel=1e-4)


def test_a_run_with_both_options_is_the_same_after_breaks_and_frozen_neurons_keep_their_bits(base, corpus, tmp_path):
    options = {"collapse": {"activations": 4, "gradients": 4}, "robust": ROBUST}
    config = settings(corpus, objective={"loss": "ga", "retain": "none"}, **options)
    one = run(base, config, tmp_path / "one")
    for stage, step in (("unlearn", 5), ("robust", 1), ("robust", 5)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, stage, step)
            run(base, config, tmp_path / "two")
    assert same_bits(run(base, config, tmp_path / "two"), one)
    assert record(tmp_path / "two") == record(tmp_path / "one")
    changed = tensors(one)
    for layer, mask in read_neurons(tmp_path / "one" / "localise")["frozen"].items():
        for part in ("gate", "up"):
            rows = changed[f"model.layers.{layer}.mlp.{part}_proj.weight"]
            assert not rows[mask].any()
            assert rows[~mask].any(dim=1).all()
        assert not changed[f"model.layers.{layer}.mlp.down_proj.weight"][:, mask].any()
    stages = read_json(tmp_path / "one" / "figures.json")["stages"]
    assert 0 < stages["unlearn"]["specific"] < 1
    evaluations = read_json(tmp_path / "one" / "robust" / "looks.json")
    assert [entry["step"] for entry in evaluations] == [2, 4, 6]


def test_it_ends_once_the_retain_answers_are_back_and_can_reach_further_than_the_unlearning(base, corpus, tmp_path):
    config = settings(corpus, robust={**ROBUST, "noise": 0.01, "scale": 0.1, "recovery": 0.5, "trainable": "all"})
    changed = tensors(run(base, config, tmp_path))
    stage = read_json(tmp_path / "figures.json")["stages"]["robust"]
    assert stage["steps"] == 2
    assert stage["recovered"] >= 0.5
    assert changed["model.embed_tokens.weight"].any()
    assert changed["model.norm.weight"].any()


def test_a_student_that_outputs_nan_is_an_error_at_once():
    watch = Recovered(lambda model: {"forget": math.nan, "retain": math.nan}, every=2, goal=0.5, processes=Processes())
    state, control = TrainerState(global_step=2, max_steps=100), TrainerControl()
    with pytest.raises(UserError, match=r"outputs NaN at step 2: lower robust\.learning_rate"):
        watch.on_step_end(None, state, control, model=None)


@pytest.mark.parametrize("option", ["collapse", "robust"])
def test_true_means_the_defaults_and_an_adapter_is_refused(option):
    files = {"forget": "f.jsonl", "retain": "r.jsonl"}
    assert getattr(CkuConfig(**files, **{option: True}), option) is not None
    assert getattr(CkuConfig(**files, **{option: False}), option) is None
    with pytest.raises(ValidationError, match="train: full"):
        CkuConfig(**files, train="lora", **{option: True})
    with pytest.raises(ValidationError, match="nothing is collapsed"):
        CkuConfig(**files, collapse={"activations": 0, "gradients": 0})
