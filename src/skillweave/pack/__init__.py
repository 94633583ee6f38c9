"""The artefact: a skillpack's schema, its integers, how it is read back, saved and described."""

from skillweave.pack.decode import LowRank, decode, lowrank_parts, reference_forward
from skillweave.pack.integers import pack_int4, quantise_rows, unpack_int4
from skillweave.pack.schema import (
    BaseRef,
    Codec,
    DifferenceEntry,
    Entry,
    FactorsEntry,
    LowRankEntry,
    PackBytes,
    PackCard,
    WholeEntry,
    check_name,
)
from skillweave.pack.skillpack import Skillpack, is_skillpack

__all__ = [
    "BaseRef",
    "Codec",
    "DifferenceEntry",
    "Entry",
    "FactorsEntry",
    "LowRank",
    "LowRankEntry",
    "PackBytes",
    "PackCard",
    "Skillpack",
    "WholeEntry",
    "check_name",
    "decode",
    "is_skillpack",
    "lowrank_parts",
    "pack_int4",
    "quantise_rows",
    "reference_forward",
    "unpack_int4",
]
