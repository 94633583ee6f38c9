"""What ``skillpack.json`` says: the card of a pack, and one entry for each tensor the pack changes.

Every tensor of ``skillpack.safetensors`` follows from an entry, by name:

=============  ==========================================================================================
entry          tensors, for an entry called ``name`` of shape (out, in)
=============  ==========================================================================================
``lowrank``    ``name.A`` (out, rank) and ``name.B`` (rank, in): int8, or for 4 bits uint8 with two codes a byte
               along the last axis; ``name.A_scale`` float16 (out,); ``name.B_scale`` float16 (rank,); and where
               ``smooth`` is true ``group.smooth`` float16 (in,), one for all matrices of the group.
               delta = diag(A_scale) A diag(B_scale) B diag(1 / smooth)
``factors``    ``name.A`` (out, rank) and ``name.B`` (rank, in) in bfloat16; delta = A B  (the peer ``svd``)
``difference`` ``name``, any shape: the delta itself, in a float type
``whole``      ``name``, any shape: the tuned tensor itself (added tokens have no base to differ from)
``rows``       an embedding or a head, whose rows are tokens, with another number of rows than the base's: ``name`` is
               the tensor's own with ``.rows`` behind it, ``shape`` that of the tuned tensor. The rows behind the base's
               are stored as ``name``, as tuned; a model with fewer rows than its base stores none. How the rows that
               both have differ is another entry, which has the base's shape
=============  ==========================================================================================
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from skillweave.delta.schema import BaseRef
from skillweave.errors import UserError

SCHEMA_VERSION = 2
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a pack may be called: it names a folder, and a model to those who ask a server for it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class LowRankEntry(_Strict):
    """A matrix in two integer factors. Matrices of one ``group`` are fed the same input and share one ``smooth``."""

    kind: Literal["lowrank"] = "lowrank"
    shape: tuple[PositiveInt, PositiveInt]
    rank: PositiveInt
    bits: Literal[4, 8]
    group: str
    smooth: bool = False


class FactorsEntry(_Strict):
    """A matrix in two bfloat16 factors."""

    kind: Literal["factors"] = "factors"
    shape: tuple[PositiveInt, PositiveInt]
    rank: PositiveInt


class DifferenceEntry(_Strict):
    """A tensor whose delta is stored as it is."""

    kind: Literal["difference"] = "difference"
    shape: tuple[int, ...]


class WholeEntry(_Strict):
    """A tensor stored as tuned, in place of the base's."""

    kind: Literal["whole"] = "whole"
    shape: tuple[int, ...]


ROWS = ".rows"
"""Ends the name of a ``rows`` entry, behind the name of its tensor."""


class RowsEntry(_Strict):
    """A tensor whose rows are tokens, and which has other rows than the base's ``base_rows``."""

    kind: Literal["rows"] = "rows"
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=2)]
    base_rows: PositiveInt

    @property
    def added(self) -> int:
        """Rows behind those of the base; 0 where there are fewer than in the base."""
        return max(0, self.shape[0] - self.base_rows)

    @property
    def shared(self) -> int:
        """Rows that the base has too."""
        return min(self.shape[0], self.base_rows)


Entry = Annotated[LowRankEntry | FactorsEntry | DifferenceEntry | WholeEntry | RowsEntry, Field(discriminator="kind")]


class Codec(_Strict):
    """How the pack was made: the codec's name, its settings, and what was measured while zipping."""

    name: str
    settings: dict[str, Any] = {}
    measured: dict[str, Any] = {}


class PackBytes(_Strict):
    """Bytes on disk. ``total`` = matrices + whole + scales + metadata, and is what the whole folder takes.

    ``bf16_delta`` is the whole delta in bf16 (what ``total`` is compared with); ``bf16_matrices`` the part of it that
    went into the matrices (what ``matrices + scales`` is compared with).
    """

    matrices: int = 0
    whole: int = 0
    scales: int = 0
    metadata: int = 0
    total: int = 0
    bf16_delta: int = 0
    bf16_matrices: int = 0


class PackCard(_Strict):
    """The card of a pack: ``skillpack.json``. ``bytes`` and ``files`` are filled in when the pack is saved.

    ``files`` gives the SHA-256 of the data file and of what lies in ``files/``; ``from_base`` the files of the base's
    tokenizer that these are completed with, and what they must mean (:mod:`skillweave.delta.carry`).
    """

    schema_version: int = SCHEMA_VERSION
    name: str = Field(pattern=NAME)
    base: BaseRef
    method: str = "unknown"
    data: dict[str, Any] = {}
    codec: Codec
    bytes: PackBytes = PackBytes()
    scores: dict[str, Any] = {}
    audit: dict[str, Any] | None = None
    left_out: list[str] = []
    files: dict[str, str] = {}
    from_base: dict[str, str] = {}
    entries: dict[str, Entry] = {}

    def to_json(self) -> str:
        """The text of ``skillpack.json``: indented, but one line an entry, for there are hundreds."""
        values = self.model_dump(mode="json", exclude={"entries"})
        lines = []
        for name, entry in self.entries.items():
            fields = {"kind": entry.kind, **entry.model_dump(mode="json", exclude_defaults=True)}
            lines.append(f"    {json.dumps(name)}: {json.dumps(fields, separators=(',', ':'))}")
        entries = "{\n" + ",\n".join(lines) + "\n  }" if lines else "{}"
        head = json.dumps(values, indent=2, ensure_ascii=False)
        return f'{head[: -len(chr(10) + "}")]},\n  "entries": {entries}\n}}\n'


RESERVED = {"base": "the plain base", "auto": "the router's choice"}


def check_name(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` may be a pack's."""
    if not re.match(NAME, name):
        raise UserError(
            f"'{name}' cannot name a pack: use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if name in RESERVED:
        raise UserError(f"'{name}' cannot name a pack: it stands for {RESERVED[name]}")


def expected_tensors(name: str, entry: Entry) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """Shape and dtype, as torch names it (None: any float), of every tensor that an entry needs in the file."""
    if isinstance(entry, DifferenceEntry | WholeEntry):
        return {name: (entry.shape, None)}
    if isinstance(entry, RowsEntry):
        return {name: ((entry.added, *entry.shape[1:]), None)} if entry.added else {}
    rows, columns = entry.shape
    if isinstance(entry, FactorsEntry):
        return {
            f"{name}.A": ((rows, entry.rank), "bfloat16"),
            f"{name}.B": ((entry.rank, columns), "bfloat16"),
        }
    codes = "uint8" if entry.bits == 4 else "int8"

    def width(n: int) -> int:
        return (n + 1) // 2 if entry.bits == 4 else n

    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        f"{name}.A": ((rows, width(entry.rank)), codes),
        f"{name}.B": ((entry.rank, width(columns)), codes),
        f"{name}.A_scale": ((rows,), "float16"),
        f"{name}.B_scale": ((entry.rank,), "float16"),
    }
    if entry.smooth:
        tensors[f"{entry.group}.smooth"] = ((columns,), "float16")
    return tensors
