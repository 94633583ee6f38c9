"""A skillpack: the card, the tensors and the files that travel along, in a folder.

``skillpack.json`` is the card, ``skillpack.safetensors`` holds the tensors that the card's entries name, ``README.md``
says the same to a person, and ``files/`` is there where the fine-tune changed the tokenizer, the chat template or
``generation_config.json`` (:mod:`skillweave.delta.carry`). Packs are small (a few MB for a base of hundreds), so the
tensors are read at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from skillweave.artefact import atomic_folder, write_text
from skillweave.base import Base
from skillweave.base.safetensors_io import file_bytes, read_tensors, write_tensors
from skillweave.base.voice import Voice
from skillweave.delta import Delta
from skillweave.delta.carry import FOLDER, Carried, save_files
from skillweave.delta.schema import dtype_name
from skillweave.delta.source import TensorSource
from skillweave.delta.voice import carried_generation, carried_tokenizer
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import sha256_file, shortened
from skillweave.pack.card import card_text
from skillweave.pack.decode import LowRank, decode, lowrank_parts
from skillweave.pack.schema import ROWS, SCHEMA_VERSION, LowRankEntry, PackBytes, PackCard, RowsEntry, WholeEntry
from skillweave.pack.stored import CARD_FILE, DATA_FILE, README_FILE, check_tensors, read_stored
from skillweave.pack.values import check_values

_METADATA = {"skillpack": str(SCHEMA_VERSION)}


class Skillpack:
    """A delta zipped for inference.

    ``card`` may be added to (scores, audit) until the pack is saved; ``tensors`` are named as
    :mod:`skillweave.pack.schema` says; ``carried`` are the files that travel along, stored against the base's. Raises
    :class:`UserError` where a tensor is missing, of another shape or type, or named by no entry.
    """

    def __init__(self, card: PackCard, tensors: Mapping[str, torch.Tensor], carried: Carried | None = None) -> None:
        self.card = card
        self.carried = carried or Carried()
        self.tensors = dict(tensors)
        kinds = {key: (tuple(tensor.shape), dtype_name(tensor.dtype)) for key, tensor in self.tensors.items()}
        check_tensors(card, kinds, f"the pack '{card.name}'")

    # -- files ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the pack's files into ``folder`` (replaced whole, atomically) and return it.

        The card is brought up to date first: its ``bytes``, ``files`` and ``schema_version`` are what this call writes.
        """
        folder = Path(folder)
        with atomic_folder(folder) as temporary:
            write_tensors(temporary / DATA_FILE, self.tensors, _METADATA)
            self.card.files = {DATA_FILE: sha256_file(temporary / DATA_FILE), **save_files(self.carried, temporary)}
            self.card.from_base = dict(self.carried.from_base)
            self.card.schema_version = self.card.oldest_version()
            self.card.bytes = self._weigh((temporary / DATA_FILE).stat().st_size)
            write_text(temporary / CARD_FILE, self.card.to_json())
            write_text(temporary / README_FILE, card_text(self.card))
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Skillpack:
        """Read a pack. A missing, damaged, cut or newer file is a :class:`UserError` that says which, and why.

        So is one with numbers that no codec writes (:func:`skillweave.pack.values.check_values`).
        """
        card, data, carried = read_stored(folder)
        tensors = read_tensors(data)
        check_values(card, tensors, str(data))
        return cls(card, tensors, carried)

    def check_values(self) -> None:
        """Raise :class:`UserError` unless all numbers are finite and in range, as in a pack read from files."""
        check_values(self.card, self.tensors, f"the pack '{self.card.name}'")

    @property
    def nbytes(self) -> int:
        """Bytes of all files, as :meth:`save_pretrained` would write them now."""
        return self.weighed().total

    def weighed(self) -> PackBytes:
        """``card.bytes`` as :meth:`save_pretrained` would write it now."""
        specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors.items()}
        return self._weigh(file_bytes(specs, _METADATA))

    def _weigh(self, data_bytes: int) -> PackBytes:
        """The card's ``bytes`` for a data file of ``data_bytes``. What travels along counts as metadata."""
        parts = {"matrices": 0, "whole": 0, "scales": 0}
        for name, tensor in self.tensors.items():
            parts[_part_of(name, self.card)] += tensor.numel() * tensor.element_size()
        held = [DATA_FILE, *(f"{FOLDER}/{name}" for name in self.carried.files)]
        card = self.card.model_copy(
            update={
                "files": dict.fromkeys(held, "0" * 64),
                "from_base": dict(self.carried.from_base),
            }
        )
        data_bytes += self.carried.nbytes
        # The card states its own size. A larger total never makes it shorter, so this climbs to the least that fits.
        total = data_bytes
        while True:
            card.bytes = self.card.bytes.model_copy(
                update={**parts, "total": total, "metadata": total - sum(parts.values())}
            )
            now = data_bytes + len(card.to_json().encode()) + len(card_text(card).encode())
            if now == total:
                return card.bytes
            total = now

    # -- use -----------------------------------------------------------------------------------------------------

    def check_base(self, fingerprint: str) -> None:
        """Raise :class:`UserError` unless ``fingerprint`` is that of the base this pack was made for."""
        if fingerprint != self.card.base.fingerprint:
            wanted, found = shortened(self.card.base.fingerprint, fingerprint)
            raise UserError(
                f"the pack '{self.card.name}' belongs on {self.card.base.ref} ({wanted}), not on {found}. "
                "Open the base it names, or zip a delta of this one."
            )

    def lowrank_parts(self, name: str) -> LowRank:
        """The integer factors of the ``lowrank`` entry called ``name``, four-bit codes unpacked to int8."""
        entry = self.card.entries.get(name)
        if not isinstance(entry, LowRankEntry):
            known = [key for key, value in self.card.entries.items() if isinstance(value, LowRankEntry)]
            raise UserError(f"the pack '{self.card.name}' has no low-rank entry '{name}'; {nearest(name, known)}")
        return lowrank_parts(self.tensors, name, entry)

    def decode(self, name: str) -> torch.Tensor:
        """The float32 delta of one entry that is not stored whole."""
        return decode(self.tensors, name, self.card.entries[name])

    def token_rows(self) -> dict[str, tuple[int, torch.Tensor | None]]:
        """Tensors whose rows are tokens and that have other rows than the base's: how many, and those behind the
        base's."""
        rows = {name: entry for name, entry in self.card.entries.items() if isinstance(entry, RowsEntry)}
        return {
            name.removesuffix(ROWS): (entry.shape[0], self.tensors[name] if entry.added else None)
            for name, entry in rows.items()
        }

    def voice(self, base: Base) -> Voice:
        """How this pack is spoken to on ``base``: with the tokenizer, template, end tokens and rows that it brings."""
        rows = next((count for count, _ in self.token_rows().values()), None)
        tokenizer = carried_tokenizer(self.carried, base, f"the pack '{self.card.name}'")
        return Voice(tokenizer, carried_generation(self.carried, f"the pack '{self.card.name}'"), rows)

    def unzip(self) -> Delta:
        """The pack as a full delta in float32, each tensor decoded when it is read; whole tensors stay whole."""
        return Delta(
            _Decoded(self),
            base_fingerprint=self.card.base.fingerprint,
            base_ref=self.card.base.ref,
            provenance={"skillpack": self.card.name},
            carried=self.carried,
        )


class _Decoded(TensorSource):
    """The tensors of a pack's delta, decoded on access."""

    def __init__(self, pack: Skillpack) -> None:
        self._pack = pack
        self.where = f"the pack '{pack.card.name}'"
        entries = pack.card.entries
        self._rows = {name.removesuffix(ROWS): entry for name, entry in entries.items() if isinstance(entry, RowsEntry)}
        others = {name: entry for name, entry in entries.items() if not isinstance(entry, RowsEntry)}
        self.whole = frozenset(name for name, entry in others.items() if isinstance(entry, WholeEntry))
        self.rows = {name: entry.shared for name, entry in self._rows.items()}
        self.specs = {
            name: (tuple(entry.shape), pack.tensors[name].dtype if name in self.whole else torch.float32)
            for name, entry in {**others, **self._rows}.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        entry, rows = self._pack.card.entries.get(name), self._rows.get(name)
        if isinstance(entry, WholeEntry):
            return self._pack.tensors[name]
        if rows is None:
            return self._pack.decode(name)
        shared = self._pack.decode(name)[: rows.shared] if entry else torch.zeros(rows.shared, *rows.shape[1:])
        return torch.cat([shared, self._pack.tensors[name + ROWS].float()]) if rows.added else shared


def _part_of(name: str, card: PackCard) -> str:
    if name in card.entries:
        return "whole"
    return "matrices" if name.endswith((".A", ".B")) else "scales"
