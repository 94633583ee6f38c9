"""What stands for a module's forward while packs are in use: each row of the output changes by the pack of that row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from skillweave.base.feeding import Fed
from skillweave.errors import UserError
from skillweave.weave.compiled import usable
from skillweave.weave.compiled_group import CompiledGroup
from skillweave.weave.kernel_group import KernelGroup, takes_kernel
from skillweave.weave.linear import Segment, add_to_rows, into_rank, out_of_rank
from skillweave.weave.resident import Lookup
from skillweave.weave.stack import GroupStack, RowPacks, segments
from skillweave.weave.widened import Widened

# Without the compiled functions. Stacked, every token is multiplied with the factors of all packs in use. Pack by pack,
# it is multiplied only with its own, but every operation is repeated for each pack. Measured on SmolLM2's shapes at
# rank 36 (one core): repeating the operations costs 17 ms a step, and multiplying a token with one more pack 0.1 ms. A
# decoding step is 3 times cheaper stacked (3 packs, 12 rows: 18 ms against 52 ms above the base), while a long prompt
# costs up to a fifth more (and still more with more packs). Up to this many tokens in the batch, we stack.
STACKED_UP_TO = 128


class Batch:
    """The batch that is running: the pack of every row, and the number of tokens in a row.

    - ``names``: the packs, of the rows or, if ``tokens``, of the tokens
    - ``rows``: the number of rows; None: any number, all with one pack
    - ``tokens``: the model is fed one row, in which every token has its own pack
    - ``last``: with ``tokens``, the packs of the hidden states that reach the head, which are fewer
    """

    def __init__(
        self,
        names: Sequence[str | None],
        rows: int | None,
        *,
        tokens: bool = False,
        last: Sequence[str | None] = (),
    ) -> None:
        self.names = RowPacks(names)
        self.rows = rows
        self.tokens = tokens
        self.last = RowPacks(last)
        self.width = 0

    @property
    def uniform(self) -> bool:
        """Whether all rows use the same pack, or none. Then it does not matter which row is which."""
        return len(self.names.distinct) == 1

    @property
    def key(self) -> tuple[list[str | None], list[str | None]]:
        """What is equal for batches that use the same packs at the same places."""
        return self.names.names, self.last.names

    def see(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The hook before the model's forward: note how many tokens a row has."""
        given = [value for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if value is not None]
        if given and isinstance(given[0], torch.Tensor) and given[0].dim() > 1:
            self.width = given[0].shape[1]


class GroupRun:
    """One group of modules during one ``rows`` context: the intermediate result that they share for the same input.

    ``widened`` gives the factors of a pack as the compiled functions read them. It is called when those are needed.
    """

    def __init__(self, stack: GroupStack, names: RowPacks, widened: Callable[[str], Widened]) -> None:
        self._stack = stack
        self._names = names
        self._uniform = len(names.distinct) == 1
        self._widened = widened
        used = [stack.factors[pack] for pack in stack.used(names)]
        self.modules = [module for module in stack.modules if any(module in factors for factors in used)]
        """the modules that a pack of the batch changes"""
        self._kernel: KernelGroup | None = None
        self._compiled: CompiledGroup | None = None
        self._fused: KernelGroup | CompiledGroup | None = None
        """what computes the running input"""
        self._segments: dict[bool, list[Segment]] = {}
        self._input: torch.Tensor | None = None
        self._hidden: Any = None
        self._waiting = 0

    def add(self, module: str, fed: torch.Tensor, x: torch.Tensor, output: torch.Tensor) -> None:
        """Add the packs' changes to ``output`` (..., out) of ``module``, in place.

        ``fed`` is the tensor that the module was called with; ``x`` (..., in) is the same, with the rows of the batch
        before their tokens. So are those of ``output``, which is contiguous.
        """
        fresh = fed is not self._input
        if fresh:
            self._input, self._waiting = fed, len(self.modules)
            self._fused = self._fused_for(x)
        if isinstance(self._fused, CompiledGroup):
            if fresh:
                self._hidden = self._fused.into_rank(x)
            self._fused.add(module, self._hidden, output)
        elif self._fused is not None:
            if fresh:
                self._hidden = self._fused.into_rank(self._by_rows(x))
            self._fused.add(module, self._hidden, self._by_rows(output))
        else:
            if fresh:
                x = self._by_rows(x)
                self._hidden = [(segment, into_rank(x, segment)) for segment in self._segments_for(x)]
            for segment, hidden in self._hidden:
                part = segment.parts.get(module)
                if part is not None:
                    add_to_rows(self._by_rows(output), segment.rows, out_of_rank(hidden, part))
        self._waiting -= 1
        if self._waiting <= 0:
            self._input = self._hidden = None

    def _by_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as (rows, tokens, ...). With one pack for all rows, it does not matter which row is which."""
        return tensor if self._uniform else tensor.view(len(self._names), -1, tensor.shape[-1])

    def _fused_for(self, x: torch.Tensor) -> KernelGroup | CompiledGroup | None:
        """Return what computes all packs of the batch in few calls, or None where only torch can."""
        if takes_kernel(x):
            if self._kernel is None:
                self._kernel = KernelGroup(self._stack, self._names)
            return self._kernel
        if usable(x):
            if self._compiled is None:
                self._compiled = CompiledGroup(self._stack, self._names, self._widened)
            return self._compiled
        return None

    def _segments_for(self, x: torch.Tensor) -> list[Segment]:
        tokens, used = x.numel() // x.shape[-1], len(self._stack.used(self._names))
        stacked = used > 1 and tokens <= STACKED_UP_TO
        if stacked not in self._segments:
            self._segments[stacked] = segments(self._stack, self._names, stacked=stacked)
        return self._segments[stacked]


class Change:
    """Stands for the forward of one module: first rows with tuned parameters, then what factors add.

    It takes the place of ``module.forward`` (:meth:`put_on`, :meth:`take_off`). A hook would do the same, but a module
    with a hook is called in a slower way, and a model has hundreds of modules.
    """

    def __init__(self, name: str, module: nn.Module, fed: Fed, batch: Batch, names: RowPacks) -> None:
        self.name = name
        self.fed = fed
        self.batch = batch
        self.names = names
        """the packs of the rows that this module is fed"""
        self.tuned: list[tuple[torch.Tensor | None, dict[str, torch.Tensor]]] = []
        self.float_factors: list[tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]] = []
        self.lookups: list[tuple[torch.Tensor | None, Lookup]] = []
        self.groups: list[GroupRun] = []
        self._module = module
        self._forward: Callable[..., Any] = module.forward
        self._replaced: Any = None
        self._each_token = batch.tokens and batch.rows is not None
        """whether the tokens of one row have different packs, so that each counts as a row"""
        self._rows_first = fed.rows == "rows" and fed.law != "lookup"

    def put_on(self) -> None:
        """Stand for the module's forward from now on."""
        own = vars(self._module)
        self._forward, self._replaced = self._module.forward, own.get("forward")
        own["forward"] = self

    def take_off(self) -> None:
        """Give the module its own forward back."""
        own = vars(self._module)
        if self._replaced is None:
            del own["forward"]
        else:
            own["forward"] = self._replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._forward(*args, **kwargs)
        if kwargs or len(args) != 1 or not isinstance(output, torch.Tensor):
            raise UserError(
                f"the module '{self.name}' takes or returns more than one tensor, so its parameters cannot differ from "
                f"row to row: serve this skill alone, from Skillpack.unzip() applied to the base"
            )
        fed = args[0]
        if self._adds_only(fed, output):
            for group in self.groups:
                group.add(self.name, fed, fed, output)
            return output
        x, made = self._by_rows(fed, output.contiguous())
        for rows, tuned in self.tuned:
            made = self._with_tuned(x, made, rows, tuned, flat=self.fed.rows == "flat" and x is not fed)
        wide = _three(made)
        for rows, factors in self.float_factors:
            mine = _three(x) if rows is None else _three(x).index_select(0, rows)
            for factor in reversed(factors):
                # A model that multiplies in float32 has wider activations than its stored dtype.
                mine = linear(mine, factor.to(mine.dtype))
            add_to_rows(wide, rows, mine)
        for rows, lookup in self.lookups:
            change = lookup(x if rows is None else x.index_select(0, rows))
            add_to_rows(wide, rows, change.view(change.shape[0], -1, change.shape[-1]))
        for group in self.groups:
            group.add(self.name, fed, _three(x), wide)
        return made.view(output.shape) if made.numel() == output.numel() else made

    def _adds_only(self, x: torch.Tensor, output: torch.Tensor) -> bool:
        """Whether only integer factors are added, to an output whose first axis is the rows of the batch.

        If each token has its own pack, the tokens of the only row count as rows.
        """
        if not self._rows_first or self.tuned or self.float_factors or self.lookups:
            return False
        shape = x.shape
        if len(shape) != 3 or output.dim() != 3 or not output.is_contiguous():
            return False
        if self._each_token:
            return shape[0] == 1 and shape[1] == len(self.names)
        return self.batch.rows is None or shape[0] == self.batch.rows

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (1, T, ...) or, if it is flat, (T, ...), with the tokens as the first axis: (T, 1, ...)."""
        count = x.shape[0] if self.fed.rows == "flat" else x.shape[1]
        if count != len(self.names) or (self.fed.rows == "rows" and x.shape[0] != 1):
            raise UserError(
                f"'{self.name}' is fed the shape {tuple(x.shape)}, and packs are named for {len(self.names)} tokens: "
                f"which token is which is unknown. Answer with one pack at a time."
            )
        return x.reshape(count, 1, *x.shape[1 if self.fed.rows == "flat" else 2 :])

    def _by_rows(self, x: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The input and the output of the module, with the rows of the batch as the first axis."""
        rows = self.batch.rows
        if rows is None or self.fed.rows == "any":
            return x, output
        if self._each_token:
            return self._tokens(x), self._tokens(output)
        if self.fed.rows == "flat":
            if self.batch.uniform:
                return x, output
            if x.shape[0] != rows * self.batch.width:
                raise UserError(
                    f"'{self.name}' is fed {x.shape[0]} tokens, not the {rows} x {self.batch.width} of the batch: "
                    f"which row they belong to is unknown. Answer with one pack at a time."
                )
            return x.view(rows, -1, *x.shape[1:]), output.view(rows, -1, *output.shape[1:])
        if x.shape[0] == 1 and rows > 1 and self.fed.law == "lookup":
            # Positions are the same for all rows and are looked up once.
            return x.expand(rows, *x.shape[1:]), output.expand(rows, *output.shape[1:]).clone()
        if x.shape[0] != rows:
            raise UserError(
                f"rows(...) names {rows} rows, and '{self.name}' is fed {x.shape[0]}: name a pack (or None) for "
                f"every row of the batch"
            )
        return x, output

    def _with_tuned(
        self,
        x: torch.Tensor,
        output: torch.Tensor,
        rows: torch.Tensor | None,
        tuned: Mapping[str, torch.Tensor],
        *,
        flat: bool,
    ) -> torch.Tensor:
        """``output``, with the given rows (None: all) computed again with the tuned parameters."""
        mine = x if rows is None else x.index_select(0, rows)
        parameters = self._module._parameters
        originals = {own: parameters[own] for own in tuned}
        try:
            for own, tensor in tuned.items():
                parameters[own] = tensor  # type: ignore[assignment]
            # Only the module's own code: its hooks run once.
            made = self._forward(mine.flatten(0, 1) if flat else mine)
        finally:
            parameters.update(originals)
        if flat:
            made = made.view(*mine.shape[:2], *made.shape[1:])
        return made if rows is None else output.index_copy(0, rows, made)


def _three(x: torch.Tensor) -> torch.Tensor:
    """``x``, which has two or more dimensions, as (N, T, last). It is a view if ``x`` is contiguous."""
    return x if x.dim() == 3 else x.reshape(x.shape[0], -1, x.shape[-1])
