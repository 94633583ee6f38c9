"""Fit the pack of a codec that treats all matrices alike into the draft's budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from skillweave.skillzip.draft import Draft, MatrixEntry


def check_fits(draft: Draft, entries: Mapping[str, MatrixEntry]) -> None:
    """Raise :class:`UserError`, with the least bytes that are needed, if a pack with these matrices does not fit."""
    if draft.free_bytes(entries) < 0:
        raise draft.refusal(draft.bytes_with(entries))


def largest_rank(draft: Draft, entries: Callable[[int], Mapping[str, MatrixEntry]]) -> int:
    """Return the largest rank whose ``entries(rank)`` fit the budget; at most the largest full rank of a matrix.

    Raises :class:`UserError`, with the least bytes that are needed, if rank 1 does not fit.
    """
    low, high = 0, max(min(piece.shape) for piece in draft.plan.pieces.values())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if draft.free_bytes(entries(middle)) >= 0 else (low, middle - 1)
    if low == 0:
        raise draft.refusal(draft.bytes_with(entries(1)))
    return low
