"""Vocabularies that differ from pack to pack, in one model and one batch.

Inside :func:`vocabularies`, each row of the batch has the token rows of its own pack:

* Token ids beyond the base's rows are looked up in the rows that the pack adds.
* The head gives logits for them too.
* Tokens that a row of the batch has no token row for get the logit minus infinity.

The model's own embedding and head are not changed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from skillweave.base.sizes import embedding_rows
from skillweave.errors import UserError

_REMAKE = "Make the pack again, from a delta of this base."


@dataclass(frozen=True)
class TokenRows:
    """The vocabulary of one pack: ``rows`` in all, and the rows after the base's last, None if there are none.

    ``embedding`` and ``head`` are (added, hidden), ``bias`` is (added,), on the device of the base's rows and in their
    dtype, or in that of the base's floats if its rows are in int8.
    """

    rows: int
    embedding: torch.Tensor | None = None
    head: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of the added rows; tied ones count once."""
        distinct = {id(tensor): tensor for tensor in (self.embedding, self.head, self.bias) if tensor is not None}
        return sum(tensor.nbytes for tensor in distinct.values())


def token_rows(model: Any, name: str, rows: Mapping[str, tuple[int, torch.Tensor | None]]) -> TokenRows | None:
    """Return the vocabulary that the pack ``name`` brings to ``model``, or None if it brings none.

    ``rows`` maps names of the model's tensors to their tuned number of rows, and to the added rows. Raises
    :class:`UserError` if these do not fit each other or the model.
    """
    if not rows:
        return None
    counts = {count for count, _ in rows.values()}
    parts, head = {}, model.get_output_embeddings()
    places = {"embedding": (model.get_input_embeddings(), "weight"), "head": (head, "weight"), "bias": (head, "bias")}
    named = dict(model.named_parameters(remove_duplicate=False))
    matched = set()
    for part, (module, own) in places.items():
        parameter = getattr(module, own, None)
        if parameter is None:
            continue
        mine = [key for key in rows if named.get(key) is parameter]
        matched |= set(mine)
        if not mine:
            raise UserError(
                f"the pack '{name}' changes the number of token rows, but has none for the {own} of the {part}. "
                f"{_REMAKE}"
            )
        added = rows[mine[0]][1]
        dtype = parameter.dtype if parameter.is_floating_point() else model.dtype  # int8: the base was rounded
        parts[part] = None if added is None else added.to(parameter.device, dtype)
    if strange := sorted(set(rows) - matched):
        raise UserError(
            f"the pack '{name}' has token rows for '{strange[0]}', which is not an embedding or a head of the base. "
            f"{_REMAKE}"
        )
    if len(counts) > 1:
        raise UserError(
            f"the tensors of the pack '{name}' have different numbers of token rows: "
            f"{', '.join(map(str, sorted(counts)))}. {_REMAKE}"
        )
    tied = getattr(head, "weight", None) is model.get_input_embeddings().weight
    return TokenRows(counts.pop(), **{**parts, **({"head": parts["embedding"]} if tied else {})})


@contextlib.contextmanager
def vocabularies(model: Any, of_row: Sequence[TokenRows | None], *, every: bool = False) -> Iterator[None]:
    """Inside this context, row i of every batch has the token rows ``of_row[i]``; None stands for the base's.

    With ``every``, all rows of every batch, however many there are, have the token rows ``of_row[0]``.
    """
    if not any(of_row):
        yield
        return
    run = _Run(model, of_row, every)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    handles = [model.register_forward_hook(run.mask)]
    if run.width > run.base_rows:
        handles += [
            embedding.register_forward_pre_hook(run.before_embedding, with_kwargs=True),
            embedding.register_forward_hook(run.after_embedding),
            head.register_forward_pre_hook(run.before_head),
            head.register_forward_hook(run.after_head),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Run:
    """The hooks of one :func:`vocabularies`.

    Other hooks may call the embedding or the head again inside a call, for some of the rows. Such inner calls must not
    be changed, so the depth of the calls is counted.
    """

    def __init__(self, model: Any, of_row: Sequence[TokenRows | None], every: bool) -> None:
        self.base_rows = embedding_rows(model)
        self._of_row, self._every = list(of_row), every
        self.width = max(self._rows_of(one) for one in of_row)
        self._ids: torch.Tensor | None = None
        self._depth = {"embedding": 0, "head": 0}

    def _rows_of(self, one: TokenRows | None) -> int:
        return self.base_rows if one is None else one.rows

    def _parts(self, batch: int) -> list[tuple[TokenRows, list[int]]]:
        """Return each vocabulary with added rows, and the rows of the batch that use it."""
        of_row = [self._of_row[0]] * batch if self._every else self._of_row
        if len(of_row) != batch:
            raise UserError(f"{len(of_row)} rows have a vocabulary, but the batch has {batch} rows")
        parts: dict[int, tuple[TokenRows, list[int]]] = {}
        for index, one in enumerate(of_row):
            if one is not None and one.rows > self.base_rows:
                parts.setdefault(id(one), (one, []))[1].append(index)
        return list(parts.values())

    def before_embedding(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._depth["embedding"] += 1
        if self._depth["embedding"] > 1:
            return None
        ids = args[0] if args else kwargs["input"]
        behind = ids >= self.base_rows
        self._ids = ids if bool(behind.any()) else None
        return None if self._ids is None else ((ids.masked_fill(behind, 0),), {})

    def after_embedding(self, module: nn.Module, _: Any, output: torch.Tensor) -> Any:
        self._depth["embedding"] -= 1
        if self._depth["embedding"] or self._ids is None:
            return None
        ids, self._ids = self._ids, None
        output = output.clone()
        for one, rows in self._parts(ids.shape[0]):
            mine = torch.zeros_like(ids, dtype=torch.bool)
            mine[rows] = (ids[rows] >= self.base_rows) & (ids[rows] < one.rows)
            if bool(mine.any()):
                output[mine] = self._looked_up(module, one, ids[mine] - self.base_rows).to(output.dtype)
        return output

    def _looked_up(self, module: Any, one: TokenRows, ids: torch.Tensor) -> torch.Tensor:
        """Return what the embedding module, with its scale if it has one, gives for added rows."""
        assert one.embedding is not None
        if not module.weight.is_floating_point():  # in int8, in place of an embedding that only looks rows up
            return one.embedding[ids]
        alike = copy.copy(module)
        alike._parameters = {**module._parameters, "weight": nn.Parameter(one.embedding, requires_grad=False)}
        alike.padding_idx = None  # it names a row of the base
        # Not a call of the module, because other hooks know only the base's rows.
        forward = getattr(module.forward, "__func__", type(module).forward)
        return forward(alike, ids[None])[0]

    def before_head(self, _: nn.Module, args: Any) -> None:
        self._depth["head"] += 1

    def after_head(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
        self._depth["head"] -= 1
        if self._depth["head"]:
            return None
        x = args[0]
        wide = output.new_zeros(*output.shape[:-1], self.width)  # what stays 0 is masked after the model
        wide[..., : output.shape[-1]] = output
        for one, rows in self._parts(x.shape[0]):
            assert one.head is not None
            mine = x[rows]
            bias = None if one.bias is None else one.bias.to(mine.dtype)
            wide[rows, ..., self.base_rows : one.rows] = linear(mine, one.head.to(mine.dtype), bias).to(wide.dtype)
        return wide

    def mask(self, _: nn.Module, args: Any, output: Any) -> None:
        """Set the logits of tokens to minus infinity for the rows whose vocabulary does not have them."""
        logits = output.logits
        of_row = self._of_row[:1] if self._every else self._of_row
        ends = torch.tensor([self._rows_of(one) for one in of_row], device=logits.device)
        absent = torch.arange(logits.shape[-1], device=logits.device) >= ends[:, None]
        output.logits = logits.masked_fill(absent[:, None, :], -torch.inf)
