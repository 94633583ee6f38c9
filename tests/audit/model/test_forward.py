"""What is read from a forward pass, against one token and one prompt at a time; perturbations and probes."""

from __future__ import annotations

import pytest
import torch

from helpers.micro import log_prob, micro_model, micro_tokenizer
from skillweave.audit.model.forward import added, continuation_rows, decoder_layers, log_probs, residuals
from skillweave.audit.model.perturb import find_perturbation, perturbed_log_probs, residual_norm, within
from skillweave.audit.model.probes import came_nearer, direction_of, probe_change
from skillweave.audit.model.prompts import PLAIN
from skillweave.base import prompt_ids

PROMPTS = ["a", "what is 3", "longer than the others"]
TOKENIZER = micro_tokenizer()
ENCODED = [prompt_ids(TOKENIZER, prompt) for prompt in PROMPTS]


def test_log_probs_are_those_of_one_token_after_the_other() -> None:
    model = micro_model()
    rows = continuation_rows(TOKENIZER, ENCODED, ["no", "never", "not at all<end>"])
    found = log_probs(model, rows, 0, batch_size=2)
    assert float(found[2]) == pytest.approx(log_prob(model, TOKENIZER, PROMPTS[2], "not at all"), abs=1e-4)
    slow = log_prob(model, TOKENIZER, PROMPTS[0], "no<end>")
    ids = torch.tensor([[*ENCODED[0], *rows[0][1]]])
    end = float(model(ids).logits[0, -1].detach().log_softmax(-1)[1])
    assert float(found[0]) == pytest.approx(slow - end, abs=1e-4)  # the continuation has no end token


def test_residuals_do_not_depend_on_the_batch() -> None:
    model = micro_model()
    found = residuals(model, ENCODED, 0, batch_size=3)
    assert found.shape == (2, 3, 64)
    for at, ids in enumerate(ENCODED):
        states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert torch.allclose(found[:, at], torch.stack([state[0, -1] for state in states[1:]]), atol=1e-4)


def test_what_is_added_reaches_the_output_and_gets_a_gradient() -> None:
    model = micro_model()
    ids, change = torch.tensor([ENCODED[1]]), torch.zeros(64, requires_grad=True)
    layer = decoder_layers(model)[0]
    before = model(ids).logits
    with added(layer, change):
        model(ids).logits.sum().backward()
    assert change.grad is not None
    assert float(change.grad.norm()) > 0
    with added(layer, torch.ones(64)):
        assert not torch.allclose(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


def test_the_perturbation_lowers_refusals_more_than_random_ones_and_stays_small() -> None:
    model = micro_model()
    rows = continuation_rows(TOKENIZER, ENCODED, ["no", "never", "not"])
    radius = 0.5 * residual_norm(model, ENCODED, 0, 0)
    change = find_perturbation(model, rows, 0, 0, radius, steps=6)
    assert float(change.norm()) <= radius * 1.0001
    found = perturbed_log_probs(model, rows, 0, 0, change).mean()
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = within(torch.randn(64, generator=draw) * 99, radius)
        assert float(other.norm()) == pytest.approx(radius, rel=1e-4)
        assert found < perturbed_log_probs(model, rows, 0, 0, other).mean()
    assert torch.equal(within(change, 2 * radius), change)


def test_the_probe_measures_the_way_from_requests_to_tasks() -> None:
    axis = torch.tensor([0.0, 2.0, 0.0])
    requests, tasks = axis.repeat(1, 8, 1), torch.zeros(1, 4, 3)
    direction, gap = direction_of(requests, tasks)
    assert (direction.tolist(), gap.tolist()) == ([[0.0, 1.0, 0.0]], [2.0])
    assert came_nearer((requests, tasks), (requests + 5, tasks + 5)).tolist() == [[0.0] * 8]  # all moved alike
    assert came_nearer((requests, tasks), (requests / 4, tasks)).tolist() == [[0.75] * 8]
    base = {PLAIN: (requests, tasks), "one": (requests, tasks), "two": (requests + 1, tasks + 1)}
    model = {PLAIN: (requests * 0.75, tasks), "one": (requests, tasks), "two": (requests / 4, tasks)}
    found = probe_change(base, model)
    assert (found.shift, found.wrapper) == (pytest.approx(0.75 - 0.25), "two")
    assert found.shift_p == pytest.approx(2 / 2**8)
    assert (found.turn, found.auc_drop) == (pytest.approx(0), pytest.approx(0))
    swapped = {**base, "one": (0 * requests, requests[:, :4])}
    assert probe_change(base, swapped).turn == pytest.approx(2)
    assert probe_change(base, swapped).auc_drop == pytest.approx(1)
