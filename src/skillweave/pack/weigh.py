"""How many bytes a pack takes on disk, without writing it."""

from __future__ import annotations

from collections.abc import Mapping

from skillweave.base.safetensors_io import Spec, file_bytes, spec_bytes
from skillweave.delta.carry import FOLDER, Carried
from skillweave.pack.card import card_text
from skillweave.pack.schema import PackBytes, PackCard
from skillweave.pack.stored import data_name

DATA_METADATA = {"skillpack": "2"}
"""The metadata in the header of the tensor file."""


def weigh(card: PackCard, sizes: Mapping[str, int], carried: Carried) -> PackBytes:
    """Return the ``bytes`` that the card of a saved pack states: the exact size of every file in its folder.

    ``card`` needs neither hashes nor sizes yet: both take the same room in the file whatever their values are.
    ``sizes`` is that of the tensor file (:func:`plain_sizes`, or ``CodedParts.sizes`` of a coded file); ``carried``
    counts as metadata.
    """
    parts = {key: size for key, size in sizes.items() if key != "total"}
    files = [data_name(card), *(f"{FOLDER}/{name}" for name in carried.files)]
    written = card.model_copy(update={"files": dict.fromkeys(files, "0" * 64), "from_base": dict(carried.from_base)})
    texts = len(written.to_json().encode()) + len(card_text(written).encode())
    total = sizes["total"] + carried.nbytes + texts
    return card.bytes.model_copy(update={**parts, "metadata": total - sum(parts.values()), "total": total})


def plain_sizes(card: PackCard, specs: Mapping[str, Spec]) -> dict[str, int]:
    """Return the sizes of the safetensors file with tensors of these shapes and dtypes, by what they count as."""
    parts = {"matrices": 0, "whole": 0, "scales": 0}
    for name, spec in specs.items():
        parts[_part_of(name, card)] += spec_bytes(spec)
    return {**parts, "total": file_bytes(specs, DATA_METADATA)}


def _part_of(name: str, card: PackCard) -> str:
    if name in card.entries:
        return "whole"
    return "matrices" if name.endswith((".A", ".B", ".codes")) else "scales"
