"""The changed matrices of a delta, read one at a time, and what the base feeds to them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from skillweave.base import Answer, Base, Prompt
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack.vocabulary import TokenRows, vocabularies
from skillweave.skillzip.calibrate import CalibrationRow, Moments, calibrate, calibration_rows
from skillweave.skillzip.decompositions import DecompositionStore
from skillweave.skillzip.losses import change
from skillweave.skillzip.plan import Plan

LARGEST_CHANGE = 10_000.0
"""The largest number of a matrix that every codec can write: no scale is above 65,504. Weights of models are far below.
"""
_MOMENT_BYTES = 2**30
"""Bytes of second moments in memory at a time. If all take more, the calibration set goes through the base again."""


class MatrixSource:
    """Reads the matrices of a plan, and measures their inputs over the calibration examples (prompt, answer).

    ``tokenizer`` and ``token_rows`` are those of the tuned model: they may know more tokens than the base.
    """

    def __init__(
        self,
        delta: Delta,
        base: Base,
        plan: Plan,
        *,
        examples: Sequence[tuple[Prompt, Answer]],
        tokenizer: Any,
        token_rows: TokenRows | None,
        decompositions: DecompositionStore,
    ) -> None:
        self.plan = plan
        self.shapes = {key: piece.shape for key, piece in plan.pieces.items()}
        """(out, in) of each matrix, by its key, in the plan's order"""
        self.decompositions = decompositions
        """where a codec keeps what it decomposed"""
        self._delta, self._base = delta, base
        self._examples, self._tokenizer, self._token_rows = examples, tokenizer, token_rows
        self._last_stack: tuple[str, torch.Tensor] | None = None

    def matrix(self, key: str) -> torch.Tensor:
        """Return the delta of one matrix, float32 (out, in). Raises :class:`UserError` if numbers are too large."""
        piece = self.plan.pieces[key]
        if piece.index is not None:
            matrix = self._stack(piece.tensor).reshape(-1, *piece.shape)[piece.index].float()
        else:
            tensor = change(self._delta, self._base.checkpoint, piece.tensor).float()
            matrix = tensor.T.contiguous() if piece.transposed else tensor.reshape(piece.shape)
        if (largest := float(matrix.abs().max())) > LARGEST_CHANGE:
            raise UserError(
                f"the delta of '{key}' holds {largest:.3g}, and a pack holds changes up to {LARGEST_CHANGE:,.0f}: the "
                f"training diverged, or this is no fine-tune of the base: zip an earlier one, or name the right base"
            )
        return matrix

    def moments(self, groups: Sequence[str]) -> dict[str, Moments]:
        """Return the :class:`Moments` of those of the groups that calibration can watch.

        Each call sends all calibration examples through the base once. Raises :class:`UserError` if no example reached
        one of these groups.
        """
        watched = {group: self.plan.modules[group] for group in groups if group in self.plan.modules}
        if not watched:
            return {}
        with vocabularies(self._base.model, [self._token_rows], every=True):
            found = calibrate(self._base.model, self._rows, watched)
        if missing := [group for group in watched if group not in found]:
            raise UserError(
                f"no calibration prompt reached the layers {missing[0]}: set activation_aware=false and "
                "smoothing=null, or calibrate on prompts that use them"
            )
        return found

    def moment_batches(self) -> Iterator[list[str]]:
        """Yield the groups in batches whose second moments, float32 (in, in), fit in memory together."""
        batch: list[str] = []
        batch_bytes = 0
        for group, members in self.plan.groups.items():
            moment_bytes = 4 * self.shapes[members[0]][1] ** 2
            if batch and batch_bytes + moment_bytes > _MOMENT_BYTES:
                yield batch
                batch, batch_bytes = [], 0
            batch.append(group)
            batch_bytes += moment_bytes
        if batch:
            yield batch

    @functools.cached_property
    def _rows(self) -> list[CalibrationRow]:
        tokens = None if self._token_rows is None else self._token_rows.rows
        return calibration_rows(self._base.model, self._tokenizer, self._examples, tokens)

    def _stack(self, name: str) -> torch.Tensor:
        """Return a whole stack. The last one stays in memory while its matrices are read."""
        if self._last_stack is None or self._last_stack[0] != name:
            self._last_stack = name, change(self._delta, self._base.checkpoint, name)
        return self._last_stack[1]
