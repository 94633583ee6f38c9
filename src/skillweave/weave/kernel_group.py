"""One group of modules during one batch on a GPU, where a kernel takes the rows of all packs at once."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from skillweave.weave.grouped import (
    GroupedFactors,
    GroupedTokens,
    HiddenOfAll,
    grouped_factors,
    grouped_tokens,
)
from skillweave.weave.stack import GroupStack, RowPacks

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FEW_TOKENS = 16
"""The least tokens of a tile: the integer product needs 16."""
_MANY_TOKENS = 64


def takes_kernel(x: torch.Tensor) -> bool:
    """Return whether the kernel serves modules with inputs like ``x``.

    It does on CUDA if Triton can be imported. With ``TRITON_INTERPRET=1`` in the environment it does on every device,
    in Triton's interpreter, which is slow and is for tests.
    """
    # What is quickest to find out comes first: every layer of every step asks.
    return _has_triton() and x.dtype in _DTYPES and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class KernelGroup:
    """The unpacked factors for a batch whose rows use the named packs, for the kernel; one name stands for all rows."""

    def __init__(self, stack: GroupStack, names: RowPacks) -> None:
        self._names = names.names
        used = {pack: stack.unpacked(pack) for pack in stack.used(names)}
        self._factors = grouped_factors(used, stack.unsmooth) if used else None
        self._tokens: dict[tuple[int, int], GroupedTokens] = {}

    def into_rank(self, x: torch.Tensor) -> HiddenOfAll | None:
        """Return the first product, for all modules of the group at once, of x (N, T, in). None: no row has a pack."""
        # Triton takes a second to import, and is not needed without a GPU.
        from skillweave.weave.triton_kernel import into_rank_of_all

        if self._factors is None:
            return None
        tokens = self._tokens_of(x, self._factors)
        return into_rank_of_all(x.reshape(-1, x.shape[-1]).contiguous(), self._factors, tokens)

    def add(self, module: str, hidden: HiddenOfAll | None, output: torch.Tensor) -> None:
        """Add the packs' changes to ``output`` (N, T, out) of ``module``, which is contiguous, in place."""
        from skillweave.weave.triton_kernel import add_out_of_rank

        if hidden is not None and self._factors is not None and module in self._factors.modules:
            tokens, own = self._tokens_of(output, self._factors), self._factors.modules[module]
            add_out_of_rank(output.view(-1, output.shape[-1]), hidden, self._factors, own, tokens)

    def _tokens_of(self, batch: torch.Tensor, factors: GroupedFactors) -> GroupedTokens:
        rows, width = batch.shape[:2]
        if (rows, width) not in self._tokens:
            names = self._names * rows if len(self._names) == 1 else self._names
            packs = len({*names} - {None})
            block = _MANY_TOKENS if rows * width > _FEW_TOKENS * packs else _FEW_TOKENS
            self._tokens[rows, width] = grouped_tokens(names, width, factors.numbers, block, batch.device)
        return self._tokens[rows, width]
