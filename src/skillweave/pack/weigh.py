"""How many bytes a pack takes on disk, from its card and the shapes of its tensors alone."""

from __future__ import annotations

from collections.abc import Mapping

from skillweave.base.safetensors_io import Spec, file_bytes, spec_bytes
from skillweave.delta.carry import FOLDER, Carried
from skillweave.pack.card import card_text
from skillweave.pack.schema import SCHEMA_VERSION, PackBytes, PackCard
from skillweave.pack.stored import DATA_FILE

DATA_METADATA = {"skillpack": str(SCHEMA_VERSION)}
"""The metadata in the header of the tensor file."""


def weigh(card: PackCard, specs: Mapping[str, Spec], carried: Carried) -> PackBytes:
    """Return the ``bytes`` that the card of a saved pack states: the exact size of every file in its folder.

    ``card`` needs neither hashes nor sizes yet: both take the same room in the file whatever their values are.
    ``specs`` gives the shape and dtype of each tensor; ``carried`` counts as metadata.
    """
    parts = {"matrices": 0, "whole": 0, "scales": 0}
    for name, spec in specs.items():
        parts[_part_of(name, card)] += spec_bytes(spec)
    files = [DATA_FILE, *(f"{FOLDER}/{name}" for name in carried.files)]
    written = card.model_copy(update={"files": dict.fromkeys(files, "0" * 64), "from_base": dict(carried.from_base)})
    texts = len(written.to_json().encode()) + len(card_text(written).encode())
    total = file_bytes(specs, DATA_METADATA) + carried.nbytes + texts
    return card.bytes.model_copy(update={**parts, "metadata": total - sum(parts.values()), "total": total})


def _part_of(name: str, card: PackCard) -> str:
    if name in card.entries:
        return "whole"
    return "matrices" if name.endswith((".A", ".B", ".codes")) else "scales"
