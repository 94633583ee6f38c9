"""Attention of a decoding step: what torch and the compiled function write, against a slow loop in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from skillweave.engine import paged_attention
from skillweave.engine.compiled_attention import DecodingStep, compiled_attention, decoded, takes

WAYS = {"torch": paged_attention.decoded_with_torch, "compiled": decoded}
PAGE = 4


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest):
    if request.param == "compiled" and compiled_attention() is None:
        pytest.skip("this machine cannot compile or run the function")
    return WAYS[request.param]


@dataclass
class Step:
    """One query for each sequence, and the caches in which its earlier keys and values lie."""

    query: Tensor
    key: Tensor
    value: Tensor
    caches: tuple[Tensor, Tensor]
    table: Tensor
    ends: Tensor

    @classmethod
    def random(cls, lengths, *, heads=4, key_heads=2, size=16, dtype=torch.float32, cache_dtype=None, scale=1.0):
        torch.manual_seed(len(lengths) + heads + size)
        cache_dtype = cache_dtype or dtype
        needed = [math.ceil(length / PAGE) for length in lengths]
        pages = torch.randperm(sum(needed) + 3).tolist()
        table = torch.full((len(lengths), max(needed) + 1), -1, dtype=torch.int32)
        for row, count in enumerate(needed):
            table[row, :count] = torch.tensor([pages.pop() for _ in range(count)], dtype=torch.int32)
        caches = tuple(torch.randn(sum(needed) + 3, PAGE, key_heads, size).mul(scale).to(cache_dtype) for _ in range(2))

        def rows(count: int, kind: torch.dtype) -> Tensor:
            return torch.randn(1, len(lengths), count, size).mul(scale).to(kind).transpose(1, 2)

        ends = torch.tensor([0, *lengths]).cumsum(0).int()
        return cls(rows(heads, dtype), rows(key_heads, cache_dtype), rows(key_heads, cache_dtype), caches, table, ends)

    def put(self) -> tuple[Tensor, Tensor]:
        """The caches with the new keys and values at the ends of the sequences."""
        made = tuple(cache.clone() for cache in self.caches)
        for row, length in enumerate(self.ends.diff().tolist()):
            at = self.table[row, (length - 1) // PAGE], (length - 1) % PAGE
            for cache, new in zip(made, (self.key, self.value), strict=True):
                cache[at] = new[0, :, row]
        return made

    def slow(self, scaling: float) -> Tensor:
        """(1, B, heads, d) in float64, one number after the other."""
        keys, values = self.put()
        made = torch.zeros(1, self.query.shape[2], self.query.shape[1], self.query.shape[3], dtype=torch.float64)
        group = self.query.shape[1] // self.key.shape[1]
        for row, length in enumerate(self.ends.diff().tolist()):
            for head in range(self.query.shape[1]):
                places = [(self.table[row, t // PAGE], t % PAGE, head // group) for t in range(length)]
                q = self.query[0, head, row].double()
                scores = torch.stack([scaling * (q * keys[at].double()).sum() for at in places])
                weights = (scores - scores.max()).exp()
                weights /= weights.sum()
                made[0, row, head] = sum(w * values[at].double() for w, at in zip(weights, places, strict=True))
        return made

    def computed(self, way, scaling: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        caches = tuple(cache.clone() for cache in self.caches)
        return way(self.given(scaling, caches)), caches

    def given(self, scaling: float = 0.3, caches: tuple[Tensor, Tensor] | None = None) -> DecodingStep:
        return DecodingStep(self.query, self.key, self.value, scaling, caches or self.caches, self.table, self.ends)


CASES = {
    "one": {"lengths": [1]},
    "lengths": {"lengths": [1, 3, 4, 5, 8, 21, 100]},
    "one key head": {"lengths": [7, 2], "heads": 9, "key_heads": 1},
    "no group": {"lengths": [7, 2], "heads": 3, "key_heads": 3},
    "many share": {"lengths": [6, 9], "heads": 34, "key_heads": 2},
    "odd size": {"lengths": [6, 9], "size": 21},
    "large size": {"lengths": [6, 9], "size": 130},
    "huge scores": {"lengths": [40, 9], "scale": 30.0},
    "enough for threads": {"lengths": [60] * 20, "heads": 9, "key_heads": 3, "size": 64},
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_a_slow_loop_computes(way, case: str) -> None:
    step = Step.random(**CASES[case])
    made, caches = step.computed(way, 0.3)
    assert made.shape == step.slow(0.3).shape
    torch.testing.assert_close(made.double(), step.slow(0.3), rtol=2e-5, atol=2e-5)
    for cache, expected in zip(caches, step.put(), strict=True):
        assert torch.equal(cache, expected)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)], ids=["all", "cache"]
)
def test_narrow_types_round_once(way, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    step = Step.random([5, 30, 1], dtype=dtype, cache_dtype=cache_dtype)
    made, _ = step.computed(way, 0.25)
    assert made.dtype is dtype
    torch.testing.assert_close(made.double(), step.slow(0.25), rtol=0.01, atol=0.01)


def test_nan_stays_in_its_sequence(way) -> None:
    step = Step.random([6, 9])
    step.query[0, 1, 0, 3] = math.nan
    made, _ = step.computed(way, 0.3)
    assert made[0, 0, 1].isnan().all()
    assert made[0, 1].isfinite().all()
    assert made[0, 0, 0].isfinite().all()


def test_what_the_compiled_function_does_not_take_is_left_to_torch() -> None:
    step = Step.random([5, 3], dtype=torch.float64)
    assert not takes(step.given())
    step = Step.random([5, 3])
    assert takes(step.given()) is (compiled_attention() is not None)
    step.table = step.table.long()
    assert not takes(step.given())
