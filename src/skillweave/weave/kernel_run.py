"""One group of modules during one batch on a GPU, where a kernel takes the rows of all packs at once."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from skillweave.weave.grouped import GroupedFactors, GroupedTokens, Hidden, grouped_tokens
from skillweave.weave.stack import GroupStack

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FEW_TOKENS = 16
"""The least tokens of a tile: the integer product needs 16."""
_MANY_TOKENS = 64


def takes_kernel(weight: torch.Tensor) -> bool:
    """Return whether the kernel serves a model whose weights are on this device and of this dtype.

    It does on CUDA if Triton can be imported. With ``TRITON_INTERPRET=1`` in the environment it does on every device,
    in Triton's interpreter, which is slow and is for tests.
    """
    on_device = weight.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return on_device and weight.dtype in _DTYPES and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class KernelRun:
    """The same as :class:`skillweave.weave.change.GroupRun`, with two launches of a kernel for any batch."""

    def __init__(self, stack: GroupStack, names: list[str | None]) -> None:
        self._stack = stack
        self._names = names
        self._factors: GroupedFactors = stack.grouped()
        self._tokens: dict[tuple[int, int], GroupedTokens] = {}
        self._input: torch.Tensor | None = None
        self._hidden: Hidden | None = None
        self._waiting = 0

    def add(self, module: str, fed: torch.Tensor, x: torch.Tensor, output: torch.Tensor) -> None:
        """Add the packs' changes to ``output`` (N, T, out) of ``module``, in place.

        ``fed`` is the tensor that the module was called with; ``x`` (N, T, in) is the same with rows as its first axis.
        """
        # Triton takes a second to import, and is not needed without a GPU.
        from skillweave.weave.triton_kernel import add_out_of_rank, into_rank_of_all

        tokens = self._tokens_of(x)
        if fed is not self._input or self._hidden is None:
            self._input = fed
            self._hidden = into_rank_of_all(x.reshape(-1, x.shape[-1]).contiguous(), self._factors, tokens)
            self._waiting = len(self._stack.modules)
        own = self._factors.modules[module]
        add_out_of_rank(output.view(-1, output.shape[-1]), self._hidden, self._factors, own, tokens)
        self._waiting -= 1
        if self._waiting <= 0:
            self._input, self._hidden = None, None

    def _tokens_of(self, x: torch.Tensor) -> GroupedTokens:
        rows, width = x.shape[:2]
        if (rows, width) not in self._tokens:
            # With one name for all rows, a batch may have any number of rows.
            names = self._names * rows if len(self._names) == 1 else self._names
            packs = len({*names} - {None})
            block = _MANY_TOKENS if rows * width > _FEW_TOKENS * packs else _FEW_TOKENS
            self._tokens[rows, width] = grouped_tokens(names, width, self._factors.numbers, block, x.device)
        return self._tokens[rows, width]
