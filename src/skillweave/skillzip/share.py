"""Split a number of bytes over several packs so that they lose the least together. Pure functions.

Each pack has a curve: what it loses at some numbers of bytes, as measured. The split minimises the sum of the losses
(Lagrange multipliers; Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988): at the
best split, one more byte takes the same from the loss of every pack. On convex curves of straight pieces the best split
takes the pieces in the order of their slopes, the steepest first.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

_PIECES = 64
"""Straight pieces that stand for the curve between two measured points."""
_LEAST_LOSS = 1e-9
"""A smaller loss (nats a token) counts as this one: its logarithm must be finite, and differences are noise here."""


@dataclass(frozen=True)
class Curve:
    """What a pack loses at some numbers of bytes."""

    points: tuple[tuple[int, float], ...]
    """(bytes, loss), at least one, in ascending order of the bytes. The pack cannot take fewer than the first bytes."""

    @property
    def least(self) -> int:
        """The fewest bytes of the pack."""
        return self.points[0][0]

    def loss(self, nbytes: float) -> float:
        """Return the loss at ``nbytes``, from the curve that :func:`split` uses; beyond its ends, the loss there."""
        ends = _hull(self)
        for (low, before), (high, after) in itertools.pairwise(ends):
            if nbytes < high:
                return before + (after - before) * max(0.0, nbytes - low) / (high - low)
        return ends[-1][1]


def split(curves: Sequence[Curve], total: int) -> list[int]:
    """Return the bytes of each pack: at most ``total`` together, with the least sum of the losses.

    - Between two points, the logarithm of the loss is linear in the logarithm of the bytes (a power law). Of the whole
      curve the lower convex hull counts, so a point that measured worse than its neighbours changes nothing.
    - Pieces of equal slope that do not all fit get equal shares of their length; equal curves get equal bytes.
    - Bytes that are left when every curve is at its end are added in proportion to what each pack has.

    Raises ValueError if the least bytes of all packs are more than ``total``.
    """
    shares = [float(curve.least) for curve in curves]
    left = total - sum(shares)
    if left < 0:
        raise ValueError(f"the packs need {sum(shares):.0f} bytes together, and there are {total}")
    pieces = [
        ((after - before) / (high - low), index, high - low)
        for index, curve in enumerate(curves)
        for (low, before), (high, after) in itertools.pairwise(_hull(curve))
    ]
    for _, group in itertools.groupby(sorted(pieces), key=lambda piece: piece[0]):
        alike = list(group)
        wanted = sum(length for _, _, length in alike)
        part = min(1.0, left / wanted)
        for _, index, length in alike:
            shares[index] += part * length
        left -= part * wanted
    grown = 1 + max(0.0, left) / sum(shares) if shares and sum(shares) else 1.0
    # A sum of floats may be a hair below the whole number that it stands for.
    return [max(curve.least, math.floor(grown * share + 1e-6)) for curve, share in zip(curves, shares, strict=True)]


@functools.lru_cache(maxsize=64)
def _hull(curve: Curve) -> list[tuple[float, float]]:
    """Return the falling part of the lower convex hull of the curve, as (bytes, loss) in ascending order of bytes."""
    hull: list[tuple[float, float]] = []
    for point in _dense(curve):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    while len(hull) > 1 and hull[-1][1] >= hull[-2][1]:
        hull.pop()
    return hull


def _dense(curve: Curve) -> list[tuple[float, float]]:
    """Return the points of the curve with others between them, on straight lines in the logarithms of both numbers."""
    points = [(float(nbytes), max(loss, _LEAST_LOSS)) for nbytes, loss in curve.points]
    dense = points[:1]
    for (low, before), (high, after) in itertools.pairwise(points):
        for step in range(1, _PIECES):
            part = step / _PIECES
            dense.append((low ** (1 - part) * high**part, before ** (1 - part) * after**part))
        dense.append((high, after))
    return dense


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])
