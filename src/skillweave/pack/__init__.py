"""The skillpack as an artefact: its schema, its integer codes, how it is saved, read back, described and exported.

The names below are imported when they are first used, so that ``skillweave inspect`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from skillweave.lazy import lazily

if TYPE_CHECKING:
    from skillweave.pack.decode import LowRank, lowrank_parts, reference_forward
    from skillweave.pack.integers import (
        dequantise_groups,
        nearest_codes,
        pack_codes,
        pack_int4,
        quantise_groups,
        quantise_rows,
        quantise_signs,
        stored_rows,
        unpack_codes,
        unpack_int4,
    )
    from skillweave.pack.name import check_name
    from skillweave.pack.schema import (
        BaseRef,
        Codec,
        DifferenceEntry,
        Entry,
        FactorsEntry,
        GroupedEntry,
        LowRankEntry,
        MixedEntry,
        PackAudit,
        PackBytes,
        PackCard,
        RowsEntry,
        StackedEntry,
        WholeEntry,
    )
    from skillweave.pack.skillpack import Skillpack
    from skillweave.pack.stored import is_skillpack, read_stored
    from skillweave.pack.to_lora import Exported, export_lora

__getattr__ = lazily(
    __name__,
    {
        "decode": "LowRank lowrank_parts reference_forward",
        "integers": "dequantise_groups nearest_codes pack_codes pack_int4 quantise_groups quantise_rows quantise_signs "
        "stored_rows unpack_codes unpack_int4",
        "name": "check_name",
        "schema": "BaseRef Codec DifferenceEntry Entry FactorsEntry GroupedEntry LowRankEntry MixedEntry PackAudit "
        "PackBytes PackCard RowsEntry StackedEntry WholeEntry",
        "skillpack": "Skillpack",
        "stored": "is_skillpack read_stored",
        "to_lora": "Exported export_lora",
    },
)

__all__ = [
    "BaseRef",
    "Codec",
    "DifferenceEntry",
    "Entry",
    "Exported",
    "FactorsEntry",
    "GroupedEntry",
    "LowRank",
    "LowRankEntry",
    "MixedEntry",
    "PackAudit",
    "PackBytes",
    "PackCard",
    "RowsEntry",
    "Skillpack",
    "StackedEntry",
    "WholeEntry",
    "check_name",
    "dequantise_groups",
    "export_lora",
    "is_skillpack",
    "lowrank_parts",
    "nearest_codes",
    "pack_codes",
    "pack_int4",
    "quantise_groups",
    "quantise_rows",
    "quantise_signs",
    "read_stored",
    "reference_forward",
    "stored_rows",
    "unpack_codes",
    "unpack_int4",
]
