"""What ``skillpack.json`` says: the card of a pack, and one entry for each tensor the pack changes.

Every tensor of ``skillpack.safetensors`` follows from an entry, by name:

=============  ==========================================================================================
entry          tensors, for an entry called ``name`` whose matrix is (out, in)
=============  ==========================================================================================
``lowrank``    ``name.A`` (out, rank) and ``name.B`` (rank, in): int8, or for 4 bits uint8 with two codes a byte
               along the last axis; ``name.A_scale`` float16 (out,); ``name.B_scale`` float16 (rank,); and where
               ``smooth`` is true ``group.smooth`` float16 (in,), one for all matrices of the group.
               matrix = diag(A_scale) A diag(B_scale) B diag(1 / smooth)
``factors``    ``name.A`` (out, rank) and ``name.B`` (rank, in) in bfloat16; matrix = A B  (the peer ``svd``)
``stacked``    a tensor (..., out, in) that is a stack of matrices (the experts of a layer), each with a rank of its
               own: as ``lowrank``, with the factors side by side along the rank. ``name.A`` (out, the ranks' columns),
               ``name.B`` (sum of ranks, in), ``name.A_scale`` (matrices, out), ``name.B_scale`` (sum of ranks,).
               16 bits: the factors are bfloat16, and there are no scales
``difference`` ``name``, any shape: the delta itself, in a float type
``whole``      ``name``, any shape: the tuned tensor itself (added tokens have no base to differ from)
``rows``       an embedding or a head, whose rows are tokens, with another number of rows than the base's: ``name`` is
               the tensor's own with ``.rows`` behind it, ``shape`` that of the tuned tensor. The rows behind the base's
               are stored as ``name``, as tuned; a model with fewer rows than its base stores none. How the rows that
               both have differ is another entry, which has the base's shape
=============  ==========================================================================================

``shape`` is always that of the base's tensor. The matrix of ``lowrank`` and ``factors`` is that tensor with its axes
after the first flattened (the weight of a convolution), or, where ``transposed`` is true, the tensor turned round: a
layer that stores its weight as (in, out).
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from skillweave.delta.schema import BaseRef
from skillweave.errors import UserError
from skillweave.files.folder import FileHashes, FileMeanings
from skillweave.files.values import Count, Flag, Free, Line, Shape, Size, TensorName, Version

SCHEMA_VERSION = 2
_BYTES_WIDTH = 13
"""Columns of a number of bytes in ``skillpack.json``: enough for ten terabytes."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a pack may be called: it names a folder, and a model to those who ask a server for it."""
RESERVED = {"base": "the plain base", "auto": "the router's choice"}


def check_name(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` may be a pack's."""
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"{name[:100]!r} cannot name a pack: use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if name.casefold() in RESERVED:
        raise UserError(f"'{name}' cannot name a pack: it stands for {RESERVED[name.casefold()]}")


def _as_name(name: str) -> str:
    try:
        check_name(name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


PackName = Annotated[str, AfterValidator(_as_name)]
"""What a pack may be called, for a card."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class _MatrixEntry(_Strict):
    """A tensor that is written as one matrix (out, in) in two factors."""

    shape: Annotated[Shape, Field(min_length=2)]
    rank: Size
    transposed: Flag = False

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in) of the matrix that the factors make."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        return (columns, rows) if self.transposed else (rows, columns)


class LowRankEntry(_MatrixEntry):
    """A matrix in two integer factors. Matrices of one ``group`` are fed the same input and share one ``smooth``."""

    kind: Literal["lowrank"] = "lowrank"
    bits: Literal[4, 8]
    group: TensorName
    smooth: Flag = False


class FactorsEntry(_MatrixEntry):
    """A matrix in two bfloat16 factors."""

    kind: Literal["factors"] = "factors"


class StackedEntry(_Strict):
    """A stack of matrices (..., out, in), each in two factors of a rank of its own; rank 0: unchanged."""

    kind: Literal["stacked"] = "stacked"
    shape: Annotated[Shape, Field(min_length=3)]
    ranks: list[Count]
    bits: Literal[4, 8, 16]

    @model_validator(mode="after")
    def _one_rank_a_matrix(self) -> StackedEntry:
        if len(self.ranks) != math.prod(self.shape[:-2]):
            raise ValueError(f"{len(self.ranks)} ranks for the {math.prod(self.shape[:-2])} matrices of {self.shape}")
        return self

    def columns(self, index: int) -> slice:
        """The columns of ``A`` that hold the matrix ``index``."""
        widths = [width(rank, self.bits) for rank in self.ranks]
        return slice(sum(widths[:index]), sum(widths[: index + 1]))

    def ranks_of(self, index: int) -> slice:
        """The rows of ``B`` that hold the matrix ``index``."""
        return slice(sum(self.ranks[:index]), sum(self.ranks[: index + 1]))


class DifferenceEntry(_Strict):
    """A tensor whose delta is stored as it is."""

    kind: Literal["difference"] = "difference"
    shape: Shape


class WholeEntry(_Strict):
    """A tensor stored as tuned, in place of the base's."""

    kind: Literal["whole"] = "whole"
    shape: Shape


ROWS = ".rows"
"""Ends the name of a ``rows`` entry, behind the name of its tensor."""


class RowsEntry(_Strict):
    """A tensor whose rows are tokens, and which has other rows than the base's ``base_rows``."""

    kind: Literal["rows"] = "rows"
    shape: Annotated[Shape, Field(min_length=1, max_length=2)]
    base_rows: Size

    @property
    def added(self) -> int:
        """Rows behind those of the base; 0 where there are fewer than in the base."""
        return max(0, self.shape[0] - self.base_rows)

    @property
    def shared(self) -> int:
        """Rows that the base has too."""
        return min(self.shape[0], self.base_rows)


Entry = Annotated[
    LowRankEntry | FactorsEntry | StackedEntry | DifferenceEntry | WholeEntry | RowsEntry, Field(discriminator="kind")
]


class Codec(_Strict):
    """How the pack was made: the codec's name, its settings, and what was measured while zipping."""

    name: Line
    settings: Free = {}
    measured: Free = {}


class PackBytes(_Strict):
    """Bytes on disk. ``total`` = matrices + whole + scales + metadata, and is what the whole folder takes.

    ``bf16_delta`` is the whole delta in bf16 (what ``total`` is compared with); ``bf16_matrices`` the part of it that
    went into the matrices (what ``matrices + scales`` is compared with).
    """

    matrices: Count = 0
    whole: Count = 0
    scales: Count = 0
    metadata: Count = 0
    total: Count = 0
    bf16_delta: Count = 0
    bf16_matrices: Count = 0


class PackCard(_Strict):
    """The card of a pack: ``skillpack.json``. ``bytes`` and ``files`` are filled in when the pack is saved.

    ``files`` gives the SHA-256 of the data file and of what lies in ``files/``; ``from_base`` the files of the base's
    tokenizer that these are completed with, and what they must mean (:mod:`skillweave.delta.carry`).
    """

    schema_version: Version = SCHEMA_VERSION
    name: PackName
    base: BaseRef
    method: Line = "unknown"
    data: Free = {}
    codec: Codec
    bytes: PackBytes = PackBytes()
    scores: Free = {}
    audit: Free | None = None
    left_out: list[Line] = []
    files: FileHashes = {}
    from_base: FileMeanings = {}
    entries: dict[TensorName, Entry] = {}

    def oldest_version(self) -> int:
        """The oldest schema version that can say all that the card says: older skillweaves read what they can."""
        newer = any(
            isinstance(entry, StackedEntry | RowsEntry)
            or (isinstance(entry, _MatrixEntry) and (entry.transposed or len(entry.shape) != 2))
            for entry in self.entries.values()
        )
        return 2 if newer or self.from_base or len(self.files) > 1 else 1

    def to_json(self) -> str:
        """The text of ``skillpack.json``: indented, but one line an entry, for there are hundreds."""
        empty = set() if self.from_base else {"from_base"}
        values = self.model_dump(mode="json", exclude={"bytes", "entries", *empty})
        # A fixed width: the length of this text must not depend on the total, which counts this text too.
        sizes = ", ".join(f'"{part}": {count:{_BYTES_WIDTH}d}' for part, count in self.bytes)
        lines = []
        for name, entry in self.entries.items():
            fields = {"kind": entry.kind, **entry.model_dump(mode="json", exclude_defaults=True)}
            lines.append(f"    {json.dumps(name)}: {json.dumps(fields, separators=(',', ':'))}")
        entries = "{\n" + ",\n".join(lines) + "\n  }" if lines else "{}"
        head = json.dumps(values, indent=2, ensure_ascii=False).removesuffix("\n}")
        return f'{head},\n  "bytes": {{{sizes}}},\n  "entries": {entries}\n}}\n'


def expected_tensors(name: str, entry: Entry) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """Shape and dtype, as torch names it (None: any float), of every tensor that an entry needs in the file."""
    if isinstance(entry, DifferenceEntry | WholeEntry):
        return {name: (entry.shape, None)}
    if isinstance(entry, RowsEntry):
        return {name: ((entry.added, *entry.shape[1:]), None)} if entry.added else {}
    if isinstance(entry, StackedEntry):
        return _expected_stack(name, entry)
    rows, columns = entry.matrix
    if isinstance(entry, FactorsEntry):
        return {
            f"{name}.A": ((rows, entry.rank), "bfloat16"),
            f"{name}.B": ((entry.rank, columns), "bfloat16"),
        }
    codes = "uint8" if entry.bits == 4 else "int8"
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        f"{name}.A": ((rows, width(entry.rank, entry.bits)), codes),
        f"{name}.B": ((entry.rank, width(columns, entry.bits)), codes),
        f"{name}.A_scale": ((rows,), "float16"),
        f"{name}.B_scale": ((entry.rank,), "float16"),
    }
    if entry.smooth:
        tensors[f"{entry.group}.smooth"] = ((columns,), "float16")
    return tensors


def _expected_stack(name: str, entry: StackedEntry) -> dict[str, tuple[tuple[int, ...], str | None]]:
    rows, columns = entry.shape[-2:]
    total = sum(entry.ranks)
    codes = {4: "uint8", 8: "int8", 16: "bfloat16"}[entry.bits]
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        f"{name}.A": ((rows, sum(width(rank, entry.bits) for rank in entry.ranks)), codes),
        f"{name}.B": ((total, width(columns, entry.bits)), codes),
    }
    if entry.bits != 16:
        tensors[f"{name}.A_scale"] = ((len(entry.ranks), rows), "float16")
        tensors[f"{name}.B_scale"] = ((total,), "float16")
    return tensors


def width(n: int, bits: int) -> int:
    """Elements of a file's tensor that n codes take: two codes of four bits share a byte."""
    return (n + 1) // 2 if bits == 4 else n
