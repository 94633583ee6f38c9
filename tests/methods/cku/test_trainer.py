"""The trainer's gradient equals that of the pure losses, example by example, however rows are padded and split."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

from helpers.micro import micro_model, micro_tokenizer
from helpers.tiny import cpu_arguments
from helpers.unlearning import reference_model, rows_of
from skillweave.methods.cku.config import ForgetSettings
from skillweave.methods.cku.trainer import UnlearnTrainer, collate, control_vector, with_shares
from skillweave.methods.training.settings import TrainingSettings

LAYER = 0
TOKENIZER = micro_tokenizer()
CONTROL = torch.linspace(0, 1, 64)
TERMS = [(loss, retain) for loss in ("ga", "npo", "simnpo", "rmu") for retain in ("none", "ce", "kl")]
TERMS.append(("rmu", "hidden"))
SAID = {"beta": 0.3, "margin": 0.2, "mu": 1.7, "cap": 3.0}


class Gradients(TrainerCallback):
    """The gradients of every step, as the optimiser sees them."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def unlearner(folder, rows, *, micro=None, steps=1, reference=None, callbacks=(), **objective) -> UnlearnTrainer:
    batch_size = len(rows) // steps
    settings = TrainingSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        warmup=0.0,
        micro_batch_size=micro,
        max_grad_norm=1e9,
    )
    arguments = cpu_arguments(settings, folder, steps=steps)
    arguments["save_strategy"] = "no"
    trainer = UnlearnTrainer(
        micro_model(),
        TOKENIZER,
        arguments,
        rows,
        ForgetSettings(**objective),
        reference_model=reference or reference_model(),
        control=CONTROL,
        layer=LAYER,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def gradients(folder, rows, **options) -> dict[str, torch.Tensor]:
    """The gradients of the first step."""
    seen = Gradients()
    unlearner(folder, rows, callbacks=[seen], **options).train()
    return seen.steps[0]


# -- the same, slowly: float64, one row at a time, from the bare model's logits --------------------------------------


def tokens_of(row) -> tuple[torch.Tensor, list[int]]:
    """The ids as a batch of one, and the places of the answer."""
    return torch.tensor([row["input_ids"]]), [at for at, label in enumerate(row["labels"]) if label != -100]


def answer_log_probs(model, row) -> torch.Tensor:
    ids, places = tokens_of(row)
    log_probs = model(ids).logits[0].log_softmax(-1)
    return torch.stack([log_probs[at - 1, ids[0, at]] for at in places])


def hidden(model, row) -> torch.Tensor:
    return model(tokens_of(row)[0], output_hidden_states=True).hidden_states[LAYER + 1][0]


def slow_forget(loss: str, model, rows) -> torch.Tensor:
    if loss == "rmu":
        away = torch.cat([hidden(model, row["forget"]) for row in rows]) - CONTROL.double()
        return away.square().mean()
    values = []
    for row in rows:
        log_probs = answer_log_probs(model, row["forget"])
        if loss == "ga":
            values.append(
                sum(p if p > -SAID["cap"] else torch.full((), -SAID["cap"]) for p in log_probs) / len(log_probs)
            )
        else:
            margin = row["reference"] - log_probs.sum() if loss == "npo" else -log_probs.mean() - SAID["margin"]
            values.append(2 / SAID["beta"] * torch.log(1 + torch.exp(-SAID["beta"] * margin)))
    return sum(values) / len(values)


def slow_retain(term: str, model, reference, rows) -> torch.Tensor:
    if term == "none":
        return torch.zeros((), dtype=torch.float64)
    if term == "hidden":
        pairs = [(hidden(model, row["retain"]), hidden(reference, row["retain"])) for row in rows]
        return torch.cat([ours - theirs for ours, theirs in pairs]).square().mean()
    if term == "ce":
        return -torch.cat([answer_log_probs(model, row["retain"]) for row in rows]).mean()
    values = []
    for row in rows:
        ids, places = tokens_of(row["retain"])
        ours, theirs = (each(ids).logits[0].log_softmax(-1) for each in (model, reference))
        values += [(theirs[at - 1].exp() * (theirs[at - 1] - ours[at - 1])).sum() for at in places]
    return torch.stack(values).mean()


def slow_gradients(loss: str, term: str, rows) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients of the forget term, and of mu times the retain term."""
    found = []
    for side in ("forget", "retain"):
        model, reference = micro_model().double(), reference_model().double()
        value = (
            slow_forget(loss, model, rows)
            if side == "forget"
            else SAID["mu"] * slow_retain(term, model, reference, rows)
        )
        if value.requires_grad:
            value.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    return found[0], found[1]


def added(*parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {name for part in parts for name in part}
    return {name: sum(part[name] for part in parts if name in part) for name in names}


def assert_equal(ours, expected, tolerance=1e-4):
    assert {name for name in ours if ours[name].any()} == {name for name in expected if expected[name].any()}
    for name, grad in expected.items():
        error = (ours[name].double() - grad.double()).norm() / grad.double().norm().clamp(min=1e-12)
        assert error < tolerance, (name, float(error))


# -- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "retain"), TERMS)
def test_the_gradient_is_that_of_the_slow_sum(tmp_path, loss, retain):
    rows = rows_of(5)
    forget, stay = slow_gradients(loss, retain, rows)
    ours = gradients(tmp_path, rows, loss=loss, retain=retain, sign_agreement=False, **SAID)
    assert_equal(ours, added(forget, stay))


@pytest.mark.parametrize(("loss", "retain"), [("ga", "ce"), ("npo", "kl"), ("simnpo", "none"), ("rmu", "hidden")])
def test_padding_and_company_make_no_difference(tmp_path, loss, retain):
    trainer = unlearner(tmp_path, rows_of(), loss=loss, retain=retain, **SAID)
    short, *_, long = sorted(rows_of(), key=lambda row: len(row["forget"]["input_ids"]))
    batch = collate(with_shares([short], ForgetSettings(loss=loss, retain=retain), 1), 0)
    alone = [float(trainer.compute_loss(trainer.model, batch).detach())]
    for side in ("forget", "retain"):
        wider = {"input_ids": 7, "attention_mask": 0, "labels": -100}  # no pad token, so that it is seen if looked at
        for name, filler in wider.items():
            tensor = batch[side][name]
            batch[side][name] = torch.cat([tensor, tensor.new_full((1, 9), filler)], dim=1)
    alone.append(float(trainer.compute_loss(trainer.model, batch).detach()))
    assert alone[1] == pytest.approx(alone[0], rel=1e-5, abs=1e-6)
    assert len(long["forget"]["input_ids"]) > len(short["forget"]["input_ids"])


@pytest.mark.parametrize(
    ("loss", "retain", "agree"),
    [("npo", "ce", False), ("simnpo", "kl", True), ("rmu", "hidden", False), ("ga", "ce", True)],
)
def test_the_size_of_micro_batches_makes_no_difference(tmp_path, loss, retain, agree):
    """2 x 8 equals 1 x 16, with rows of many lengths and over more than one step."""
    seen, logs = [], []
    for micro in (None, 8, 2):
        caught = Gradients()
        trainer = unlearner(
            tmp_path / str(micro),
            rows_of(32),
            micro=micro,
            steps=2,
            callbacks=[caught],
            loss=loss,
            retain=retain,
            sign_agreement=agree,
            **SAID,
        )
        trainer.train()
        seen.append(caught.steps)
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for steps, log in zip(seen[1:], logs[1:], strict=True):
        assert_equal(steps[0], seen[0][0])
        for ours, theirs in zip(logs[0], log, strict=True):
            for key in ("loss", *UnlearnTrainer.watched):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize(("loss", "retain"), [("npo", "ce"), ("ga", "kl"), ("rmu", "kl")])
def test_sign_agreement_follows_the_forget_gradient_where_the_retain_gradient_has_its_sign(tmp_path, loss, retain):
    rows = rows_of()
    forget, stay = slow_gradients(loss, retain, rows)
    ours = gradients(tmp_path, rows, loss=loss, retain=retain, sign_agreement=True, **SAID)
    agreed = total = 0
    for name, both in added(forget, stay).items():
        zero = torch.zeros_like(both)
        f, r = forget.get(name, zero), stay.get(name, zero)
        expected = r + torch.where(f * r > 0, f, zero)
        clear = (f.abs() > 1e-3 * f.abs().max()) & (
            r.abs() > 1e-3 * r.abs().max()
        )  # the sign of next to nothing is noise
        torch.testing.assert_close(ours[name].double()[clear], expected[clear], rtol=1e-3, atol=1e-6)
        agreed, total = agreed + int((f * r > 0).sum()), total + int((f != 0).sum())
    trainer = unlearner(tmp_path, rows, loss=loss, retain=retain, sign_agreement=True, **SAID)
    trainer.train()
    assert trainer.state.log_history[0]["gradients/agree"] == pytest.approx(agreed / total, abs=0.01)


@pytest.mark.parametrize("agree", [False, True])
def test_what_is_logged_is_what_was_computed(tmp_path, agree):
    rows = rows_of()
    trainer = unlearner(tmp_path, rows, micro=4, loss="npo", retain="ce", sign_agreement=agree, **SAID)
    trainer.train()
    log = trainer.state.log_history[0]
    model, reference = micro_model().double(), reference_model().double()
    with torch.no_grad():
        forget, retain = float(slow_forget("npo", model, rows)), float(slow_retain("ce", model, reference, rows))
    assert log["forget/loss"] == pytest.approx(forget, rel=1e-4)
    assert log["retain/loss"] == pytest.approx(retain, rel=1e-4)  # not yet times mu
    assert log["loss"] == pytest.approx(forget + SAID["mu"] * retain, rel=1e-4)
    assert ("gradients/agree" in log) == ("agreement" in trainer.watched.values()) == agree


def test_every_parameter_that_requires_a_gradient_is_in_the_optimiser(tmp_path):
    trainer = unlearner(tmp_path, rows_of(), loss="npo")
    trainer.model.model.embed_tokens.requires_grad_(False)
    trainer.train()
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert id(trainer.model.model.embed_tokens.weight) not in held


def test_the_cap_is_the_log_of_the_vocabulary_unless_it_is_set(tmp_path):
    assert unlearner(tmp_path, rows_of())._cap == math.log(micro_model().config.vocab_size)
    assert unlearner(tmp_path, rows_of(), cap=2.0)._cap == 2.0


def test_the_reference_model_is_not_trained(tmp_path):
    reference = reference_model()
    before = copy.deepcopy(reference.state_dict())
    unlearner(tmp_path, rows_of(), reference=reference, loss="rmu", retain="hidden").train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_control_vector_is_as_long_as_told_by_the_tokens_alone(batch_size):
    model, rows = micro_model(), [row["forget"] for row in rows_of()]
    lengths = list(itertools.chain.from_iterable(hidden(model, row).norm(dim=-1).tolist() for row in rows))
    vector = control_vector(model, rows, 0, layer=LAYER, steering=4.0, seed=1, batch_size=batch_size)
    assert float(vector.norm()) == pytest.approx(4 * sum(lengths) / len(lengths), rel=1e-5)
    assert (vector >= 0).all()  # u is drawn from [0, 1)
    again, other = (control_vector(model, rows, 0, layer=LAYER, steering=4.0, seed=s, batch_size=5) for s in (1, 2))
    torch.testing.assert_close(vector, again)
    assert not torch.allclose(vector, other)
    assert float(control_vector(model, rows, 0, layer=LAYER, steering=8.0, seed=1, batch_size=4).norm()) == (
        pytest.approx(2 * float(vector.norm()), rel=1e-5)
    )


def test_collate_pads_both_sides_apart():
    rows = with_shares(rows_of(3), ForgetSettings(), 3)
    batch = collate(rows, 0)
    for side in ("forget", "retain"):
        assert batch[side]["input_ids"].shape == (3, max(len(row[side]["input_ids"]) for row in rows))
        for at, row in enumerate(rows):
            kept = batch[side]["attention_mask"][at].bool()
            assert batch[side]["input_ids"][at][kept].tolist() == row[side]["input_ids"]
            assert batch[side]["labels"][at][kept].tolist() == row[side]["labels"]
            assert (batch[side]["labels"][at][~kept] == -100).all()
    assert batch["reference"].tolist() == [row["reference"] for row in rows]
