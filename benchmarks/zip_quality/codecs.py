"""What is compared: SkillZip, the codecs of others, and SkillZip with one of its parts off (or on) at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from skillweave.skillzip import ZipConfig, fit
from skillweave.skillzip.allocate import Matrix

PLAIN, SPECIALIST = "no pack (the base)", "the delta itself"
SKILLZIP, UNREFINED = "skillzip", "skillzip, not refined"
SMALLEST = "smallest"
"""In place of a ratio: the smallest pack that the codec can write."""
RATIOS = ("1/128", "1/256", "1/64", "1/32", "1/512", "1/1024", "1/16")
"""The most telling ratios first: a stopped run has these."""
ABLATED = "1/128"


@dataclass(frozen=True)
class Codec:
    """A way to zip: the settings, without size and seed.

    - ``seeded``: the result depends on the seed or on the calibration prompts
    - ``ratios``: those at which the codec differs; others would repeat one of them
    - ``equal_ranks``: every matrix gets the same rank, in place of ranks by gain per byte
    """

    settings: dict[str, Any]
    seeded: bool = False
    ratios: Sequence[str] = RATIOS
    equal_ranks: bool = False
    colour: str = field(default="#999999", compare=False)


_PLAIN = {"codec": "skillzip", "allow_left_out": True}
"""Without ``allow_left_out`` the smallest ratios would be refused and not measured."""
_OURS = {**_PLAIN, "refine": {}}
# BitDelta's own method ends with a distillation of its scales, so it is refined as SkillZip is.
CODECS = {
    SKILLZIP: Codec(_OURS, seeded=True, colour="#D55E00"),
    UNREFINED: Codec(_PLAIN, colour="#E69F00"),
    "svd": Codec({"codec": "svd"}, colour="#0072B2"),
    "delta-come": Codec({"codec": "delta-come"}, colour="#009E73"),
    "bitdelta": Codec({"codec": "bitdelta", "refine": {}}, seeded=True, ratios=[SMALLEST], colour="#CC79A7"),
    "dqrelo": Codec({"codec": "dqrelo"}, ratios=["1/16"], colour="#56B4E9"),
    "rtn4": Codec({"codec": "rtn4"}, ratios=[SMALLEST], colour="#000000"),
    "rtn8": Codec({"codec": "rtn8"}, ratios=[SMALLEST], colour="#666666"),
    "none": Codec({"codec": "none"}, ratios=[SMALLEST], colour="#F0E442"),
}
ABLATIONS = {
    f"{SKILLZIP}, {name}": Codec({**_OURS, **changed}, seeded=True, ratios=[ABLATED], equal_ranks=equal_ranks)
    for name, changed, equal_ranks in (
        ("no refinement", {"refine": None}, False),
        ("one width", {"bits": 4}, False),
        ("one width, no rotation", {"bits": 4, "rotate": False}, False),
        ("row scales", {"bits": 4, "scales": "row"}, False),
        ("row scales, equal ranks", {"bits": 4, "scales": "row"}, True),
        ("smoothing 0.5", {"smoothing": 0.5}, False),
        ("weighted by activations", {"activation_aware": True}, False),
    )
}
"""Each line is SkillZip with some settings of :class:`ZipConfig` changed. A new setting gets a line here.

"Row scales" is the earlier layout: a scale for each row, four bits, no entropy coding.
"""
ALL = {**CODECS, **ABLATIONS}
PEERS = [name for name in CODECS if name not in (SKILLZIP, UNREFINED)]


def zip_settings(codec: str, seed: int, **size: Any) -> ZipConfig:
    """Return the settings of a zip; ``size`` is ``ratio`` or ``budget``, or empty for codecs of one size."""
    chosen = dict(ALL[codec].settings)
    if chosen.get("refine") is not None:
        chosen["refine"] = {**chosen["refine"], "seed": seed}
    return ZipConfig(**chosen, seed=seed, **size)


@contextlib.contextmanager
def allocation(codec: str) -> Iterator[None]:
    """The context in which the codec zips: with ``equal_ranks`` the allocation is replaced."""
    if not ALL[codec].equal_ranks:
        yield
        return
    with mock.patch.object(fit, "allocate_all", equal_ranks):
        yield


def equal_ranks(matrices: Sequence[Matrix], energies: Sequence[float], budget: int) -> list[int]:
    """Return the largest rank, the same for all matrices that have so many, whose total cost fits ``budget``."""

    def ranks(rank: int) -> list[int]:
        return [min(rank, len(matrix.gains)) // matrix.step * matrix.step for matrix in matrices]

    best = [0] * len(matrices)
    for rank in range(1, max(len(matrix.gains) for matrix in matrices) + 1):
        tried = ranks(rank)
        if sum(matrix.cost(each) for matrix, each in zip(matrices, tried, strict=True)) > budget:
            break
        best = tried
    return best
