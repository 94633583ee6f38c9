"""The sign-agreement mask: a slow loop, gathering over micro-batches, and a retain gradient that nothing touches."""

from __future__ import annotations

import pytest
import torch

from skillweave.methods.cku.agreement import TwoGradients, agreeing


def drawn(*shape: int, seed: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.where(values.abs() > 0.2, torch.zeros(()))  # zeros, too, have a sign


def slow(forget: torch.Tensor, retain: torch.Tensor) -> torch.Tensor:
    pairs = zip(forget.flatten().tolist(), retain.flatten().tolist(), strict=True)
    kept = [f if (f > 0 and r > 0) or (f < 0 and r < 0) else 0.0 for f, r in pairs]
    return torch.tensor(kept).reshape(forget.shape)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 7), (2, 3, 4)])
def test_only_what_has_the_same_sign_is_left(shape):
    forget, retain = drawn(*shape, seed=0), drawn(*shape, seed=1)
    assert torch.equal(agreeing(forget, retain), slow(forget, retain))


def test_tiny_gradients_agree_too_and_a_nan_is_never_followed():
    """A product of the gradients themselves would come out as 0."""
    tiny = torch.tensor([1e-30, -1e-30, 1e-30])
    assert torch.equal(agreeing(tiny, torch.tensor([1e-30, -1e-30, -1e-30])), torch.tensor([1e-30, -1e-30, 0.0]))
    lost = agreeing(torch.tensor([float("nan"), 1.0]), torch.tensor([1.0, float("nan")]))
    assert torch.equal(lost, torch.zeros(2))


def test_what_is_merged_is_the_retain_gradient_and_what_agrees_with_it_of_the_whole_batch():
    """The signs of the whole batch count, not those of its micro-batches."""
    shapes = [(4, 3), (5,), (2, 2)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    agreement = TwoGradients(agree=True, collapse=None)
    sums = {"forget": [torch.zeros(shape) for shape in shapes], "retain": [torch.zeros(shape) for shape in shapes]}
    for batch in range(2):  # the second begins anew
        for kept in sums.values():
            for total in kept:
                total.zero_()
        for piece in range(3):
            for side, take in (("forget", agreement.take_forget), ("retain", agreement.take_retain)):
                for index, parameter in enumerate(parameters):
                    if index == 2 and side == "forget":
                        continue  # the forget loss does not reach it
                    grad = drawn(*shapes[index], seed=100 * batch + 10 * piece + index + (side == "retain") * 7)
                    parameter.grad = grad.clone()
                    sums[side][index] += grad
                take(parameters)
                assert all(parameter.grad is None for parameter in parameters)
        share = agreement.merge(parameters, lambda grad: grad)["agree"]
        left = [slow(forget, retain) for forget, retain in zip(sums["forget"], sums["retain"], strict=True)]
        for parameter, part, retain in zip(parameters, left, sums["retain"], strict=True):
            torch.testing.assert_close(parameter.grad, part + retain)
        kept = sum(int((part != 0).sum()) for part in left)
        assert share == kept / sum(int((forget != 0).sum()) for forget in sums["forget"])
        assert torch.equal(parameters[2].grad, sums["retain"][2])
        for parameter in parameters:  # as the optimiser's zero_grad does
            parameter.grad = None


def test_without_a_forget_gradient_the_share_is_0_and_what_processes_bring_is_averaged_first():
    parameter = torch.nn.Parameter(torch.zeros(2))
    agreement = TwoGradients(agree=True, collapse=None)
    parameter.grad = torch.tensor([1.0, -1.0])
    agreement.take_retain([parameter])
    assert agreement.merge([parameter], lambda grad: grad) == {"agree": 0.0}
    assert torch.equal(parameter.grad, torch.tensor([1.0, -1.0]))
    # The other process's retain gradient turns the sign of the mean.
    others = iter([torch.tensor([3.0, 3.0]), torch.tensor([-5.0, 5.0])])
    for take, grad in ((agreement.take_forget, [1.0, 1.0]), (agreement.take_retain, [1.0, 1.0])):
        parameter.grad = torch.tensor(grad)
        take([parameter])
    assert agreement.merge([parameter], lambda grad: (grad + next(others)) / 2) == {"agree": 0.5}
    assert torch.equal(parameter.grad, torch.tensor([-2.0, 5.0]))
