"""What all training shares: order, head, micro-batches, checkpoints, the registry."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.micro import micro_model
from skillweave.errors import UserError
from skillweave.methods import METHODS, get_method
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.training import Processes, TrainingSettings
from skillweave.methods.training.head import answer_scores, install_answer_head
from skillweave.methods.training.trainer import latest_checkpoint, micro_batch


def test_specialise_is_registered_and_unknown_names_hint():
    assert get_method("specialise").config is SpecialiseConfig
    with pytest.raises(UserError, match="did you mean 'specialise'"):
        get_method("specialize")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_by_its_name_and_has_a_run(name: str) -> None:
    assert METHODS[name].name == name
    assert callable(importlib.import_module(METHODS[name].module).run)


def test_steps_from_epochs_or_as_given():
    assert TrainingSettings(epochs=2, batch_size=16).steps_for(20) == 3
    assert TrainingSettings(steps=7).steps_for(20) == 7
    assert TrainingSettings(batch_size=16).steps_for(1) == 1


def test_micro_batches_are_equal():
    assert micro_batch(12, None) == 12
    assert micro_batch(12, 5) == 4
    assert micro_batch(7, 3) == 1
    assert Processes(0, 2).share(8) == 4
    with pytest.raises(UserError, match="does not divide over 2"):
        Processes(0, 2).share(7)


def test_only_marked_checkpoints_count_and_the_newest_by_number(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step, marked in ((9, True), (10, True), (11, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if marked:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert latest_checkpoint(tmp_path).name == "checkpoint-10"


def test_answer_scores_against_float64():
    logits = torch.randn(6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.tensor([0, 10, 3, 3, 5, 1])
    log_probs, entropy, top = answer_scores(logits.float(), targets)
    for row in range(6):
        p = torch.tensor([float(torch.exp(x)) for x in logits[row]], dtype=torch.float64)
        p = p / p.sum()
        assert log_probs[row].item() == pytest.approx(float(p[targets[row]].log()), abs=1e-5)
        assert entropy[row].item() == pytest.approx(-sum(float(x * x.log()) for x in p), abs=1e-5)
        assert bool(top[row]) == (int(p.argmax()) == int(targets[row]))


def test_head_agrees_with_trl_and_with_the_model_also_in_its_gradient():
    from trl.trainer.utils import add_fused_lm_head

    ids = torch.randint(5, 90, (3, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = -100
    labels[2, 7:] = -100
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    grads, outs = [], []
    for ours in (False, True):
        model = micro_model(tie=True).train()
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        if ours:
            install_answer_head(model)
        out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        (-out.log_probs.sum()).backward()
        outs.append(out)
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        plain = model(input_ids=ids, attention_mask=mask, labels=labels)
        expected = -out.log_probs.sum() / (labels[:, 1:] != -100).sum()
        torch.testing.assert_close(plain.loss, expected)
    for field in ("log_probs", "entropy", "mean_logits", "is_top1", "label_mask"):
        torch.testing.assert_close(getattr(outs[0], field), getattr(outs[1], field))
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_folder_called_weave_does_not_break_the_trainers(tmp_path):
    """A user is likely to save a weave in such a folder, and TRL takes it for a tracing library."""
    (tmp_path / "weave").mkdir()
    source = Path(__file__).parents[2] / "src"
    code = "from skillweave.methods.training.trl_hooks import DPOTrainer; import trl.trainer.callbacks"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]


def test_a_model_that_caps_its_logits_keeps_trls_head():
    model = micro_model()
    model.config.final_logit_softcapping = 30.0
    before = model.forward
    install_answer_head(model)
    assert model.forward == before
