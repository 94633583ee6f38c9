"""A skillpack: a card, tensors, and the files that travel along, saved in a folder.

* ``skillpack.json`` is the card.
* ``skillpack.safetensors`` holds the tensors that the card's entries name; if some of them are entropy coded,
  ``skillpack.coded`` does (:mod:`skillweave.pack.coded_file`).
* ``README.md`` is the card for people.
* ``files/`` exists if the fine-tune changed the tokenizer, the chat template or ``generation_config.json``
  (:mod:`skillweave.delta.carry`).

Packs are small (a few MB for a base of hundreds), so all tensors are read at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from skillweave.artefact import atomic_folder, write_text
from skillweave.base import Base
from skillweave.base.safetensors_io import Spec, read_tensors, tensor_bytes, write_stream
from skillweave.base.voice import Voice
from skillweave.delta import Delta
from skillweave.delta.carry import Carried, save_files
from skillweave.delta.config_values import tell_other_config
from skillweave.delta.schema import dtype_name
from skillweave.delta.source import TensorSource
from skillweave.delta.voice import carried_generation, carried_tokenizer
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import digest, sha256_file, shortened
from skillweave.files.whole import read_whole
from skillweave.pack.card import card_text
from skillweave.pack.coded import decode_parts, encode_parts
from skillweave.pack.decode import LowRank, decode, lowrank_parts
from skillweave.pack.schema import (
    ROWS,
    FactorsEntry,
    LowRankEntry,
    PackAudit,
    PackBytes,
    PackCard,
    RowsEntry,
    WholeEntry,
)
from skillweave.pack.stored import CARD_FILE, PARTS, README_FILE, check_tensors, data_name, read_with_parts
from skillweave.pack.values import check_values
from skillweave.pack.weigh import DATA_METADATA, plain_sizes, weigh


class Skillpack:
    """A delta zipped for inference.

    * ``card`` may get scores and an audit until the pack is saved.
    * ``tensors`` have the names that :mod:`skillweave.pack.schema` defines.
    * ``carried`` are the files that travel along, as differences from the base's.

    Raises :class:`UserError` if a tensor is missing, has another shape or dtype, or belongs to no entry.
    """

    def __init__(self, card: PackCard, tensors: Mapping[str, torch.Tensor], carried: Carried | None = None) -> None:
        self.card = card
        self.carried = carried or Carried()
        self.tensors = dict(tensors)
        kinds = {key: (tuple(tensor.shape), dtype_name(tensor.dtype)) for key, tensor in self.tensors.items()}
        check_tensors(card, kinds, f"the pack '{card.name}'")

    # -- files ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the pack's files, replacing the whole ``folder`` atomically, and return the folder.

        The card is updated: its ``bytes``, ``files``, ``from_base`` and ``schema_version`` describe what is written.
        """
        folder = Path(folder)
        with atomic_folder(folder) as temporary:
            data_hash, sizes = self._write_tensors(temporary)
            self.card.files = {data_name(self.card): data_hash, **save_files(self.carried, temporary)}
            self.card.from_base = dict(self.carried.from_base)
            self.card.schema_version = self.card.oldest_version()
            self.card.bytes = weigh(self.card, sizes, self.carried)
            write_text(temporary / CARD_FILE, self.card.to_json())
            write_text(temporary / README_FILE, card_text(self.card))
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Skillpack:
        """Return the pack that was saved in ``folder``.

        Raises :class:`UserError`, with the file and the reason, for a file that is missing, damaged, cut off or of a
        newer version, and for numbers that no codec writes (:func:`skillweave.pack.values.check_values`).
        """
        return read_whole(folder, PARTS, lambda: cls.read_once(folder))

    @classmethod
    def read_once(cls, folder: str | Path) -> Skillpack:
        """Read a pack as :meth:`from_pretrained` does, for a caller that watches the folder itself (`read_whole`)."""
        card, data, carried, parts = read_with_parts(folder)
        tensors = read_tensors(data) if parts is None else decode_parts(parts, card, data)
        check_values(card, tensors, str(data))
        return cls(card, tensors, carried)

    def check_values(self) -> None:
        """Raise :class:`UserError` unless all numbers are finite and in range, as they must be in a saved pack."""
        check_values(self.card, self.tensors, f"the pack '{self.card.name}'")

    @property
    def specs(self) -> dict[str, Spec]:
        """The shape and dtype of each tensor."""
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all files, as :meth:`save_pretrained` would write them now."""
        return self.weighed().total

    def weighed(self) -> PackBytes:
        """Return the ``bytes`` that the card would state if the pack were saved now."""
        if self.card.coded:
            return weigh(self.card, encode_parts(self.card, self.tensors).sizes, self.carried)
        return weigh(self.card, plain_sizes(self.card, self.specs), self.carried)

    def _write_tensors(self, folder: Path) -> tuple[str, dict[str, int]]:
        """Write the tensor file; return its SHA-256, and its size by what the parts count as."""
        file = folder / data_name(self.card)
        if not self.card.coded:
            data_hash = write_stream(file, self.specs, self.tensors.__getitem__, DATA_METADATA)
            return data_hash, plain_sizes(self.card, self.specs)
        parts = encode_parts(self.card, self.tensors)
        file.write_bytes(parts.to_bytes())
        return sha256_file(file), parts.sizes

    @property
    def digest(self) -> str:
        """A short stable name of what the pack does: of its entries, its tensors and the files that travel along.

        It is the same for a pack in memory and for the saved one, and it does not depend on the pack's name.
        """
        return digest(
            {
                "base": self.card.base.fingerprint,
                "entries": {name: entry.model_dump(mode="json") for name, entry in self.card.entries.items()},
                "tensors": {
                    name: [dtype_name(tensor.dtype), list(tensor.shape), sha256(tensor_bytes(tensor)).hexdigest()]
                    for name, tensor in self.tensors.items()
                },
                "files": {name: sha256(data).hexdigest() for name, data in self.carried.files.items()},
                "from_base": dict(self.carried.from_base),
                # Packs from before the setting keep their name, and with it their audit.
                **({} if self.card.prefill == "pack" else {"prefill": self.card.prefill}),
            }
        )

    # -- use -----------------------------------------------------------------------------------------------------

    def check_base(self, fingerprint: str, config: Any = None) -> None:
        """Raise :class:`UserError` unless this pack was made for the base with this ``fingerprint``.

        ``config`` is the base's. A warning names its values that answers depend on, and that were others when the pack
        was made: another ``rope_theta``, for example, has the same weights, and so the same fingerprint.
        """
        if fingerprint != self.card.base.fingerprint:
            wanted, given = shortened(self.card.base.fingerprint, fingerprint)
            raise UserError(
                f"the pack '{self.card.name}' belongs on {self.card.base.ref} ({wanted}), not on {given}. "
                "Open the base it names, or zip a delta of this one."
            )
        tell_other_config(self.card.base_config, config, f"the pack '{self.card.name}'", self.card.base.ref)

    def check_audit(self) -> PackAudit:
        """Return the audit on the card if it lets the pack pass. Raises :class:`UserError`, which says what to run.

        It does not pass without an audit, with an alarm, or if the audited weights or files were others than these.
        """
        name, run = self.card.name, "skillweave audit pack PACK --base BASE --prompts FILE --write"
        if self.card.audit is None:
            raise UserError(f"the pack '{name}' has no audit, and one is required: run `{run}`")
        try:
            audit = PackAudit.model_validate(self.card.audit)
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(
                f"the audit on the card of the pack '{name}' is none that skillweave writes (audit.{key}: "
                f"{error.errors()[0]['msg']}), and one is required: run `{run}`"
            ) from error
        if audit.digest != self.digest:
            raise UserError(
                f"the audit on the card of the pack '{name}' is of other weights or files ({audit.digest}, these are "
                f"{self.digest}), so it does not count: run `{run}`"
            )
        if audit.outcome == "alarm":
            raise UserError(
                f"the audit of the pack '{name}' ({audit.date}) raised an alarm, and the pack is refused: look at what "
                "it found with `skillweave audit pack`, and make the pack again from clean data"
            )
        return audit

    def lowrank_parts(self, name: str) -> LowRank:
        """Return the integer factors of the ``lowrank`` entry ``name``; four-bit codes are unpacked to int8.

        Raises :class:`UserError` if there is no such entry.
        """
        entry = self.card.entries.get(name)
        if not isinstance(entry, LowRankEntry):
            known = [key for key, value in self.card.entries.items() if isinstance(value, LowRankEntry)]
            raise UserError(f"the pack '{self.card.name}' has no low-rank entry '{name}'; {nearest(name, known)}")
        return lowrank_parts(self.tensors, name, entry)

    def decode(self, name: str) -> torch.Tensor:
        """Return the float32 delta of one entry that is not stored whole."""
        return decode(self.tensors, name, self.card.entries[name])

    def token_rows(self) -> dict[str, tuple[int, torch.Tensor | None]]:
        """Return, for each tensor whose number of token rows is not the base's: that number, and the added rows.

        The added rows are those after the base's last; they are None if the tensor has fewer rows than the base's.
        """
        rows = {name: entry for name, entry in self.card.entries.items() if isinstance(entry, RowsEntry)}
        return {
            name.removesuffix(ROWS): (entry.shape[0], self.tensors[name] if entry.added else None)
            for name, entry in rows.items()
        }

    def voice(self, base: Base) -> Voice:
        """Return the tokenizer with its template, the generation config and the number of token rows of this pack.

        What the pack does not bring is that of ``base``.
        """
        rows = next((count for count, _ in self.token_rows().values()), None)
        tokenizer = carried_tokenizer(self.carried, base, f"the pack '{self.card.name}'")
        return Voice(tokenizer, carried_generation(self.carried, f"the pack '{self.card.name}'"), rows)

    def unzip(self) -> Delta:
        """Return the pack as a full delta in float32. Tensors are decoded when they are read; whole ones stay whole."""
        return Delta(
            _Decoded(self),
            base_fingerprint=self.card.base.fingerprint,
            base_ref=self.card.base.ref,
            base_config=self.card.base_config,
            provenance={"skillpack": self.card.name},
            carried=self.carried,
        )


class _Decoded(TensorSource):
    """The tensors of a pack's delta, each decoded when it is accessed."""

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

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the decoded factors of a ``lowrank`` or ``factors`` entry; see :meth:`TensorSource.factors`."""
        entry = self._pack.card.entries.get(name)
        if name in self._rows:
            return None
        if isinstance(entry, LowRankEntry):
            return self._pack.lowrank_parts(name).factors()
        if isinstance(entry, FactorsEntry):
            return self._pack.tensors[f"{name}.A"].float(), self._pack.tensors[f"{name}.B"].float()
        return None

    def __getitem__(self, name: str) -> torch.Tensor:
        entry, rows = self._pack.card.entries.get(name), self._rows.get(name)
        if isinstance(entry, WholeEntry):
            return self._pack.tensors[name]
        if rows is None:
            return self._pack.decode(name)
        shared = self._pack.decode(name)[: rows.shared] if entry else torch.zeros(rows.shared, *rows.shape[1:])
        return torch.cat([shared, self._pack.tensors[name + ROWS].float()]) if rows.added else shared
