"""Fit a pack whose codes are entropy coded into its budget: its bytes are known when it is encoded, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from skillweave.pack.left_out import MOST_LEFT_OUT
from skillweave.skillzip.allocate import COVERED, main_ones
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded
from skillweave.skillzip.lowrank import Decomposed
from skillweave.skillzip.steps import Chosen, Directions, choose

_ROUNDS = 6
"""How often a pack is encoded at most, to find the one that uses its bytes best."""
_UNUSED = 0.005
"""A pack that leaves at most this share of its budget is good enough."""
_WIDTH = {4: 2.5, 8: 32.0}
"""The root mean square of all codes, if all have the same width in bits."""

Encode = Callable[[Mapping[str, Chosen]], Encoded]
"""Encodes the matrices that keep a direction."""


def fit_coded(config: ZipConfig, draft: Draft, decomposed: Mapping[str, Decomposed], encode: Encode) -> Encoded:
    """Return the encoded matrices of the pack that leaves the fewest bytes of its budget unused.

    The bytes are estimated from the sizes of the codes, the pack is encoded and weighed, and the estimate is corrected
    by what it really took. Some matrix must differ from zero. Raises :class:`UserError` if the budget cannot hold most
    of the change (or, with ``allow_left_out``, any matrix).
    """
    keys = list(draft.plan.pieces)
    energies = [decomposed[key].energy for key in keys]
    matrices = [Directions(decomposed[key].gains, draft.plan.pieces[key].shape) for key in keys]
    width = None if config.bits is None else _WIDTH[config.bits]
    most = main_ones(energies)

    def covered(kept: Mapping[str, object], share: float) -> bool:
        return sum(energy for key, energy in zip(keys, energies, strict=True) if key in kept) >= share * sum(energies)

    def chosen(room: float) -> dict[str, Chosen]:
        found = _kept(keys, choose(matrices, room, width))
        return found if covered(found, COVERED) else _kept(keys, choose(matrices, room, width, most))

    best = _search(draft, chosen, encode)
    if best is not None and (draft.allow_left_out or covered(best.entries, 1 - MOST_LEFT_OUT)):
        return best
    if draft.allow_left_out:
        smallest = min(most, key=lambda at: sum(matrices[at].shape))
        least = encode(_kept(keys, choose(matrices, 0, width, [smallest])))
    else:
        least = encode(_kept(keys, choose(matrices, 0, width, most)))
    if draft.free_with(least) >= 0:
        return least
    raise draft.refusal(draft.budget - draft.free_with(least), partial=True)


def _search(draft: Draft, chosen: Callable[[float], dict[str, Chosen]], encode: Encode) -> Encoded | None:
    """Return the best pack that fits, or None. After each miss, more than its excess is taken off."""
    room = float(draft.free_with(Encoded({}, {})))
    best: tuple[int, Encoded] | None = None
    misses, tried = 0, None
    for _ in range(_ROUNDS):
        wanted = chosen(room)
        ranks = {key: (one.rank, one.left.tolist()) for key, one in wanted.items()}
        if not wanted or ranks == tried:  # with all directions at their widest codes, more room changes nothing
            break
        tried = ranks
        encoded = encode(wanted)
        free = draft.free_with(encoded)
        if free >= 0 and (best is None or free < best[0]):
            best = free, encoded
        if 0 <= free <= _UNUSED * draft.budget:
            break
        misses += free < 0
        room += free * (1 + 0.1 * misses) if free < 0 else 0.98 * free
    return None if best is None else best[1]


def _kept(keys: list[str], found: list[Chosen]) -> dict[str, Chosen]:
    return {key: one for key, one in zip(keys, found, strict=True) if one.rank}
