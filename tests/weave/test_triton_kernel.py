"""The Triton kernels against the torch path, to the bit, in Triton's interpreter (``make test-triton``)."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec

import pytest
import torch

from helpers.factors import random_factors
from skillweave.pack import LowRank, reference_forward
from skillweave.weave import kernel_group
from skillweave.weave.factors import Factors
from skillweave.weave.kernel_group import KernelGroup, takes_kernel
from skillweave.weave.linear import add_to_rows, into_rank, out_of_rank
from skillweave.weave.stack import GroupStack, RowPacks
from skillweave.weave.stack import segments as segments_of

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
        reason="the kernels run on a CPU only in Triton's interpreter: make test-triton",
    ),
]
CPU = torch.device("cpu")
wide_factors = partial(random_factors, largest=127)


def random_stack(seed: int, inner: int, widths: dict[str, int], ranks: list[dict[str, int]]) -> GroupStack:
    """Packs a, b, c ... with the given ranks by module; every second pack has a smoothing."""
    stack = GroupStack()
    for number, own in enumerate(ranks):
        smooth = None
        if number % 2 == 0:
            smooth = (torch.rand(inner, generator=torch.Generator().manual_seed(seed + number)) + 0.5).half()
        made = {
            m: Factors.of(wide_factors(seed + 7 * number, widths[m], inner, r, smooth=smooth), CPU)
            for m, r in own.items()
        }
        stack.add("abcdefghijklmnop"[number], made, None if smooth is None else 1 / smooth.float())
    return stack


def outputs(
    stack: GroupStack, names: list[str | None], x: torch.Tensor, dtype: torch.dtype
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The outputs of every module in ``dtype`` after the kernel and after the torch path changed them."""
    kernel = KernelGroup(stack, RowPacks(names))
    hidden = kernel.into_rank(x)
    segments = [(segment, into_rank(x, segment)) for segment in segments_of(stack, RowPacks(names), stacked=False)]
    found = {}
    for module in stack.modules:
        width = next(own[module].out for own in stack.factors.values() if module in own)
        before = torch.randn(*x.shape[:2], width, generator=torch.Generator().manual_seed(3)).to(dtype)
        got, want = before.clone(), before.clone()
        kernel.add(module, hidden, got)
        for segment, ranks in segments:
            if module in segment.parts:
                add_to_rows(want, segment.rows, out_of_rank(ranks, segment.parts[module]))
        found[module] = got, want
    return found


def change_rows(stack: GroupStack, names: list[str | None], x: torch.Tensor, output: torch.Tensor) -> None:
    """Add what the kernel computes to the output of the module q, in place."""
    kernel = KernelGroup(stack, RowPacks(names))
    kernel.add("q", kernel.into_rank(x), output)


CASES = {
    "one row": (24, {"q": 16, "k": 8}, [{"q": 5, "k": 3}], ["a"], 1),
    "no row with a pack": (24, {"q": 16}, [{"q": 5}], [None, None], 2),
    "no rows": (24, {"q": 16}, [{"q": 5}], [], 2),
    "odd ranks, packs without a module": (
        37,
        {"q": 130, "k": 9},
        [{"q": 33, "k": 1}, {"k": 7}, {"q": 40}],
        ["a", "c", "b", "a", "b"],
        3,
    ),
    "many packs": (64, {"q": 32}, [{"q": 1 + n} for n in range(16)], list("ponmlkjihgfedcba"), 1),
    "a prompt that fills no tile": (200, {"q": 48}, [{"q": 9}, {"q": 64}], ["b", None, "a"], 75),
}
"""inner width, output width of each module, rank of each pack's modules, the rows' packs, tokens of a row"""


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_torch_to_the_bit(case: str) -> None:
    inner, widths, ranks, names, width = CASES[case]
    stack = random_stack(5, inner, widths, ranks)
    x = torch.randn(len(names), width, inner, generator=torch.Generator().manual_seed(1))
    for got, want in outputs(stack, names, x, torch.float32).values():
        assert torch.equal(got, want)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.0), (torch.bfloat16, 2**-7)])
def test_half_precision_is_rounded_once(dtype: torch.dtype, tolerance: float) -> None:
    inner, widths, ranks, names, width = CASES["odd ranks, packs without a module"]
    stack = random_stack(6, inner, widths, ranks)
    x = (1e-4 * torch.randn(len(names), width, inner, generator=torch.Generator().manual_seed(2))).to(dtype)
    for got, want in outputs(stack, names, x, dtype).values():
        torch.testing.assert_close(got, want, rtol=tolerance, atol=0)
        assert bool((want != 0).any())


def test_every_row_has_the_change_of_its_own_pack() -> None:
    smooth = (torch.rand(40, generator=torch.Generator().manual_seed(4)) + 0.5).half()
    packs = {"a": wide_factors(1, 20, 40, 5, smooth=smooth), "b": wide_factors(2, 20, 40, 11)}
    stack = GroupStack()
    for name, parts in packs.items():
        unsmooth = None if parts.smooth is None else 1 / parts.smooth.float()
        stack.add(name, {"q": Factors.of(parts, CPU)}, unsmooth)
    x = torch.randn(3, 4, 40, generator=torch.Generator().manual_seed(0))
    got = torch.zeros(3, 4, 20)
    change_rows(stack, ["b", None, "a"], x, got)
    torch.testing.assert_close(got[0], reference_forward(x[0], packs["b"]), rtol=1e-4, atol=1e-2)
    assert not got[1].any()
    torch.testing.assert_close(got[2], reference_forward(x[2], packs["a"]), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e20])
def test_tiny_and_huge_tokens_zeros_and_nan(size: float) -> None:
    stack = random_stack(8, 24, {"q": 16}, [{"q": 5}, {"q": 17}])
    x = size * torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(1))
    x[0, 0], x[1, 2, 5] = 0.0, float("nan")
    ((got, want),) = outputs(stack, ["b", "a"], x, torch.float32).values()
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert got[1, 2].isnan().all()
    assert int(got.isnan().sum()) == 16


def test_sums_of_the_largest_codes_do_not_wrap() -> None:
    inner, rank, out = 1100, 40, 8
    full = LowRank(
        A=torch.full((out, rank), 127, dtype=torch.int8),
        B=torch.full((rank, inner), -127, dtype=torch.int8),
        A_scale=torch.ones(out).half(),
        B_scale=torch.ones(rank).half(),
        smooth=None,
    )
    stack = GroupStack()
    stack.add("a", {"q": Factors.of(full, CPU)}, None)
    got = torch.zeros(1, 1, out)
    x = torch.full((1, 1, inner), 2.0)
    change_rows(stack, ["a"], x, got)
    want = -2.0 * 127 * 127 * inner * rank
    torch.testing.assert_close(got, torch.full_like(got, want), rtol=1e-6, atol=0)


def test_the_packed_model_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(1)
    assert takes_kernel(weight)
    assert not takes_kernel(weight.double())
    monkeypatch.setattr(kernel_group, "_has_triton", lambda: False)
    assert not takes_kernel(weight)
    monkeypatch.undo()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not takes_kernel(weight)
