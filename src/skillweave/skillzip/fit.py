"""Choose the rank of every matrix, with scales by row, so that the whole pack, weighed exactly, fits its budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from skillweave.pack import LowRankEntry
from skillweave.pack.left_out import MOST_LEFT_OUT
from skillweave.skillzip.allocate import Matrix, allocate_all, main_ones
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft
from skillweave.skillzip.lowrank import Decomposed

_ROUNDS = 4
"""How many more packs the search tries after the first one that fits, to leave fewer bytes unused."""
_RANK_DIGITS = 5
"""Bytes of one more number in the ``ranks`` of a stack's entry."""


def fit(
    config: ZipConfig, draft: Draft, decomposed: Mapping[str, Decomposed], smoothed: Collection[str]
) -> dict[str, LowRankEntry]:
    """Return the entries of the matrices that get a rank, by their keys in the draft's plan.

    ``smoothed`` names the groups whose inputs have a smoothing. Some matrix must differ from zero. Raises
    :class:`UserError` if the budget cannot hold most of the change (or, with ``allow_left_out``, any matrix).
    """
    keys = list(draft.plan.pieces)
    energies = [decomposed[key].energy for key in keys]
    sizes = _Sizes(config, draft, smoothed)
    matrices = [sizes.matrix(key, decomposed[key]) for key in keys]
    best = _search(draft, sizes, keys, matrices, energies)
    held = sum(energy for key, energy in zip(keys, energies, strict=True) if key in best)
    if best and (draft.allow_left_out or held >= (1 - MOST_LEFT_OUT) * sum(energies)):
        return best
    # The search can miss the least pack that is allowed.
    if draft.allow_left_out:
        smallest = min(range(len(keys)), key=lambda at: sum(draft.plan.pieces[keys[at]].shape))
        least = {keys[smallest]: sizes.entry(keys[smallest], matrices[smallest].step)}
    else:
        least = {keys[at]: sizes.entry(keys[at], matrices[at].step) for at in main_ones(energies)}
    if draft.free_bytes(least) >= 0:
        return least
    raise draft.refusal(draft.bytes_with(least), partial=True)


def _search(
    draft: Draft, sizes: _Sizes, keys: Sequence[str], matrices: Sequence[Matrix], energies: Sequence[float]
) -> dict[str, LowRankEntry]:
    """Return the allocation that leaves the fewest bytes unused, or ``{}`` if none fits.

    A pack of many matrices takes slightly more or less than the sum of their estimates, because of names and digits.
    So the room of the allocation is corrected by what each pack really takes. Until a pack fits, each miss takes off
    more than its excess, so the search ends.
    """
    room = draft.free_bytes({})
    best: dict[str, LowRankEntry] = {}
    least_free, misses, rounds = 0, 0, 0
    while rounds < _ROUNDS:
        ranks = allocate_all(matrices, energies, room)
        chosen = {key: sizes.entry(key, rank) for key, rank in zip(keys, ranks, strict=True) if rank}
        if not chosen:
            break
        free = draft.free_bytes(chosen)
        if free >= 0 and (not best or free < least_free):
            best, least_free = chosen, free
        misses += free < 0
        rounds += bool(best)
        room += free * misses if free < 0 else free
    return best


class _Sizes:
    """The entry of a matrix at a rank, and the bytes that it takes."""

    def __init__(self, config: ZipConfig, draft: Draft, smoothed: Collection[str]) -> None:
        self._draft, self._plan = draft, draft.plan
        self._bits: Literal[4, 8] = config.bits or 4
        self._group_of = {key: group for group, members in draft.plan.groups.items() for key in members}
        self._smoothed = smoothed if config.smoothing is not None else ()
        self._empty = draft.free_bytes({})
        self._fixed: dict[tuple, int] = {}

    def entry(self, key: str, rank: int) -> LowRankEntry:
        """Return the entry of one matrix at ``rank``."""
        piece = self._plan.pieces[key]
        return LowRankEntry(
            shape=piece.entry_shape,
            rank=rank,
            bits=self._bits,
            group=self._group_of[key],
            smooth=self._group_of[key] in self._smoothed,
            transposed=piece.transposed,
        )

    def matrix(self, key: str, decomposed: Decomposed) -> Matrix:
        """Return what the allocation needs to know of one matrix."""
        piece, group = self._plan.pieces[key], self._group_of[key]
        out, in_ = piece.shape
        step = min(2 if self._bits == 4 else 1, out, in_)
        rank_bytes = (out + in_) * self._bits / 8 + 2
        # Matrices of one kind take the same bytes; weighing a pack for each of thousands of experts would take minutes.
        kind: tuple = (piece.stored, piece.transposed, len(key), len(group), group in self._smoothed)
        if piece.index is not None:
            kind = (piece.tensor,)
        if kind not in self._fixed:
            self._fixed[kind] = self._fixed_bytes(key, step, rank_bytes)
        return Matrix(decomposed.gains, rank_bytes, self._fixed[kind], step)

    def _fixed_bytes(self, key: str, step: int, rank_bytes: float) -> int:
        """Return the bytes beside the ranks: those of the entry, and its share of what its group stores once."""
        taken = self._empty - self._draft.free_bytes({key: self.entry(key, step)})
        fixed = taken - round(step * rank_bytes)
        piece, group = self._plan.pieces[key], self._group_of[key]
        members = len(self._plan.groups[group])
        if piece.index is not None:
            row_scales = 2 * piece.shape[0]  # everything else belongs to the whole stack
            return row_scales + max(fixed - row_scales * members, 0) // members + _RANK_DIGITS
        if group in self._smoothed:
            fixed -= 2 * piece.shape[1] * (members - 1) // members
        return fixed
