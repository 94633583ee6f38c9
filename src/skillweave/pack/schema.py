"""The schema of ``skillpack.json``: the card of a pack, with one entry for each tensor that the pack changes.

The entries determine the tensors of ``skillpack.safetensors``, by name. If an entry has ``scales: rank``, all of them
are in ``skillpack.coded`` instead (:mod:`skillweave.pack.coded`), and the card has ``layers`` beside ``entries``
(:mod:`skillweave.pack.layers`).

=============  ==========================================================================================
entry          tensors, for an entry called ``name`` whose matrix is (out, in)
=============  ==========================================================================================
``lowrank``    ``name.A`` (out, rank) and ``name.B`` (rank, in): int8, or for 4 bits uint8 with two codes a byte
               along the last axis; ``name.A_scale`` float16 (out,); ``name.B_scale`` float16 (rank,); and, if
               ``smooth`` is true, ``group.smooth`` float16 (in,), which all matrices of the group share.
               matrix = diag(A_scale) A diag(B_scale) B diag(1 / smooth). With ``scales: rank`` (and 8 bits) there is no
               ``A_scale``, which stands for ones, and ``name.B_scale`` is bfloat16 (rank,)
``factors``    ``name.A`` (out, rank) and ``name.B`` (rank, in) in bfloat16; matrix = A B  (the codec ``svd``)
``stacked``    a tensor (..., out, in) that is a stack of matrices (the experts of a layer), each with a rank of its
               own. The factors are those of ``lowrank``, side by side along the rank: ``name.A`` (out, columns of all
               ranks), ``name.B`` (sum of ranks, in), ``name.A_scale`` (matrices, out), ``name.B_scale`` (sum of
               ranks,). With 16 bits the factors are bfloat16, and there are no scales
``grouped``    ``name.codes`` uint8 (out, bytes of in codes): codes of 1, 2, 3, 4 or 8 bits, each row packed by
               :func:`skillweave.pack.integers.pack_codes`; ``name.scale`` bfloat16 (out, groups), one for each
               ``group_size`` codes of a row, or, without a group size, float32 (1,). If ``rank`` is above 0, ``name.A``
               (out, rank) and ``name.B`` (rank, in) in bfloat16. matrix = scale * codes + A B
``mixed``      two factors whose singular vectors have different widths: ``bands`` lists (bits, number of vectors).
               ``name.codes`` uint8 (1, bytes) and ``name.scale`` bfloat16 (1, groups) hold, band after band, the
               vectors of A^T (rank, out) and then those of B (rank, in), each packed and scaled as a row of
               ``grouped``; matrix = A B
``difference`` ``name``, any shape: the delta itself, in a float type
``whole``      ``name``, any shape: the tuned tensor itself (the base has no tensor of this name)
``rows``       an embedding or a head (its rows are tokens) that has more or fewer rows than the base's. ``name`` is the
               name of the tensor followed by ``.rows``, and ``shape`` is that of the tuned tensor. Rows after the
               base's last are stored as ``name``, as tuned; a model with fewer rows than its base stores none. The
               difference in the rows that both have is another entry, which has the base's shape
=============  ==========================================================================================

In all other entries ``shape`` is that of the base's tensor. The matrix of ``lowrank`` and ``factors`` is that tensor
with all axes after the first flattened (the weight of a convolution). If ``transposed`` is true, it is the transpose:
the layer stores its weight as (in, out). The same holds for ``grouped`` and ``mixed``, unless ``stacked`` is true. In
that case the tensor (..., out, in) is a stack of matrices, and the tensors of the entry are those of its matrices, one
after the other along the first axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from skillweave.delta.schema import BaseRef
from skillweave.files.folder import FileHashes, FileMeanings
from skillweave.files.values import Count, Flag, Free, Line, Number, Shape, Size, TensorName, Version
from skillweave.pack.layers import expanded, joined
from skillweave.pack.name import PackName
from skillweave.pack.probe import PackProbe

SCHEMA_VERSION = 5
_BYTES_WIDTH = 13
"""Columns of a number of bytes in ``skillpack.json``: enough for ten terabytes."""

Prefill = Literal["pack", "backbone"]
"""Who reads the prompts of a pack: the pack, or the plain base."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class _MatrixEntry(_Strict):
    """A tensor that is stored as one matrix (out, in), in two factors."""

    shape: Annotated[Shape, Field(min_length=2)]
    rank: Size
    transposed: Flag = False

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in): the shape of the product of the factors."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        return (columns, rows) if self.transposed else (rows, columns)


Scales = Literal["row", "rank"]
"""Where the scales of integer factors lie: one for each row of A and of B, or one for each rank, which both share."""


class LowRankEntry(_MatrixEntry):
    """A matrix in two integer factors. Matrices of one ``group`` have the same input and share one ``smooth``."""

    kind: Literal["lowrank"] = "lowrank"
    bits: Literal[4, 8]
    scales: Scales = "row"
    group: TensorName
    smooth: Flag = False

    @model_validator(mode="after")
    def _one_form(self) -> LowRankEntry:
        _check_scales(self.scales, self.bits)
        return self


def _check_scales(scales: Scales, bits: int) -> None:
    if scales == "rank" and bits != 8:
        raise ValueError(f"codes with one scale for each rank have 8 bits, not {bits}")


class FactorsEntry(_MatrixEntry):
    """A matrix in two bfloat16 factors."""

    kind: Literal["factors"] = "factors"


class StackedEntry(_Strict):
    """A stack of matrices (..., out, in), each in two factors with a rank of its own; rank 0 means unchanged."""

    kind: Literal["stacked"] = "stacked"
    shape: Annotated[Shape, Field(min_length=3)]
    ranks: list[Count]
    bits: Literal[4, 8, 16]
    scales: Scales = "row"

    @model_validator(mode="after")
    def _one_rank_a_matrix(self) -> StackedEntry:
        _check_scales(self.scales, self.bits)
        if len(self.ranks) != math.prod(self.shape[:-2]):
            raise ValueError(f"{len(self.ranks)} ranks for the {math.prod(self.shape[:-2])} matrices of {self.shape}")
        return self

    def columns(self, index: int) -> slice:
        """Return the columns of ``A`` that belong to matrix ``index``."""
        widths = [width(rank, self.bits) for rank in self.ranks]
        return slice(sum(widths[:index]), sum(widths[: index + 1]))

    def ranks_of(self, index: int) -> slice:
        """Return the rows of ``B`` that belong to matrix ``index``."""
        return slice(sum(self.ranks[:index]), sum(self.ranks[: index + 1]))


class _CodedEntry(_Strict):
    """A tensor that is stored as codes with a scale for each group: one matrix (out, in), or a stack of them."""

    shape: Annotated[Shape, Field(min_length=2)]
    transposed: Flag = False
    stacked: Flag = False

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.stacked and (self.transposed or len(self.shape) < 3):
            raise ValueError("a stack has three or more axes and is not transposed")
        return self

    @property
    def matrices(self) -> int:
        """The number of matrices."""
        return math.prod(self.shape[:-2]) if self.stacked else 1

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in) of each matrix."""
        if self.stacked:
            return self.shape[-2], self.shape[-1]
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        return (columns, rows) if self.transposed else (rows, columns)


def _as_width(bits: int) -> int:
    if bits not in (1, 2, 3, 4, 8):
        raise ValueError(f"codes have 1, 2, 3, 4 or 8 bits, not {bits}")
    return bits


CodeBits = Annotated[int, Field(strict=True), AfterValidator(_as_width)]
"""A width of codes in bits."""


class GroupedEntry(_CodedEntry):
    """A matrix of codes with a scale for each group of a row, or one for all, and two factors that are added to it."""

    kind: Literal["grouped"] = "grouped"
    bits: CodeBits
    group_size: Size | None = None
    rank: Count = 0


class MixedEntry(_CodedEntry):
    """A matrix in two factors of codes, whose singular vectors come in bands of different widths."""

    kind: Literal["mixed"] = "mixed"
    bands: Annotated[list[tuple[CodeBits, Size]], Field(min_length=1, max_length=8)]
    group_size: Size

    @property
    def rank(self) -> int:
        """The number of singular vectors."""
        return sum(vectors for _, vectors in self.bands)

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return (bits, number of vectors, length of each) of the blocks of codes, in the order of the file."""
        return [(bits, vectors, length) for bits, vectors in self.bands for length in self.matrix]


class DifferenceEntry(_Strict):
    """A tensor whose delta is stored without compression."""

    kind: Literal["difference"] = "difference"
    shape: Shape


class WholeEntry(_Strict):
    """A tuned tensor, stored whole."""

    kind: Literal["whole"] = "whole"
    shape: Shape


ROWS = ".rows"
"""The name of a ``rows`` entry is that of its tensor, followed by this."""


class RowsEntry(_Strict):
    """A tensor whose rows are tokens, and whose number of rows is not the base's ``base_rows``."""

    kind: Literal["rows"] = "rows"
    shape: Annotated[Shape, Field(min_length=1, max_length=2)]
    base_rows: Size

    @property
    def added(self) -> int:
        """The number of rows after the base's last; 0 if the tensor has fewer rows than the base's."""
        return max(0, self.shape[0] - self.base_rows)

    @property
    def shared(self) -> int:
        """The number of rows that the base has too."""
        return min(self.shape[0], self.base_rows)


Entry = Annotated[
    LowRankEntry | FactorsEntry | StackedEntry | GroupedEntry | MixedEntry | DifferenceEntry | WholeEntry | RowsEntry,
    Field(discriminator="kind"),
]


class Codec(_Strict):
    """How the pack was made: the codec's name, its settings, and the measurements of the zip."""

    name: Line
    settings: Free = {}
    measured: Free = {}


class PackBytes(_Strict):
    """Bytes on disk.

    ``total`` = matrices + whole + scales + metadata is the size of the whole folder. It compares with ``bf16_delta``,
    the size of the whole delta in bf16; ``matrices + scales`` compares with ``bf16_matrices``, the size of the matrices
    of the delta in bf16.
    """

    matrices: Count = 0
    whole: Count = 0
    scales: Count = 0
    metadata: Count = 0
    total: Count = 0
    bf16_delta: Count = 0
    bf16_matrices: Count = 0


class PackAudit(BaseModel):
    """An audit of a pack as its card holds it, under ``audit``.

    A card may hold more there, and anything at all if it was not ``skillweave audit`` that wrote it: nothing proves who
    wrote a card.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    outcome: Literal["alarm", "no alarm at this threshold", "not enough evidence"]
    date: Annotated[Line, Field(pattern=r"^\d{4}-\d\d-\d\d")]
    tool: Annotated[Line, Field(pattern=r"^skillweave \S+$")]
    digest: Annotated[Line, Field(pattern=r"^[0-9a-f]{16}$")]
    """``Skillpack.digest`` of the audited pack: an audit of other weights does not count"""
    score: Number | None = None
    p_value: Annotated[Number, Field(ge=0, le=1)] | None = None
    false_positive_rate: Annotated[Number, Field(ge=0, le=1)] | None = None
    references: Count = 0


class PackCard(_Strict):
    """The card of a pack: ``skillpack.json``. ``bytes`` and ``files`` are filled in when the pack is saved.

    ``files`` gives the SHA-256 of the data file and of each file in ``files/``. ``from_base`` names the files of the
    base's tokenizer that complete these, each with a digest of its meaning (:mod:`skillweave.delta.carry`). ``probe``
    is what a model with the pack must say (:mod:`skillweave.pack.probe`); packs of older versions have none. With
    ``prefill: backbone`` the plain base reads the prompts (:mod:`skillweave.base.prefix`); the pack was made for it.
    ``base_config`` holds the values of the base's config that its answers depend on, which the fingerprint does not
    cover (:func:`skillweave.delta.config_values.recorded_values`); packs of older versions have none.
    """

    schema_version: Version = SCHEMA_VERSION
    name: PackName
    base: BaseRef
    base_config: Free = {}
    method: Line = "unknown"
    prefill: Prefill = "pack"
    data: Free = {}
    codec: Codec
    bytes: PackBytes = PackBytes()
    scores: Free = {}
    audit: Free | None = None
    left_out: list[Line] = []
    files: FileHashes = {}
    from_base: FileMeanings = {}
    probe: PackProbe | None = None
    entries: dict[TensorName, Entry] = {}

    @model_validator(mode="before")
    @classmethod
    def _expand_layers(cls, values: Any) -> Any:
        if isinstance(values, dict) and "layers" in values:
            layers, entries = expanded(values["layers"]), values.get("entries", {})
            if not isinstance(entries, dict) or set(entries) & set(layers):
                raise ValueError("entries: expected an object, without the names that 'layers' gives")
            values = {**{key: value for key, value in values.items() if key != "layers"}, "entries": layers | entries}
        return values

    @property
    def coded(self) -> bool:
        """Whether the tensors are in an entropy-coded file: if any entry has one scale for each rank."""
        return any(is_coded(entry) for entry in self.entries.values())

    def oldest_version(self) -> int:
        """Return the oldest schema version that can express this card, so that older versions read what they can."""
        if self.base_config:
            return 5
        if self.probe is not None or self.prefill != "pack":
            return 4
        if self.coded:
            return 3
        newer = any(
            isinstance(entry, StackedEntry | GroupedEntry | MixedEntry | RowsEntry)
            or (isinstance(entry, _MatrixEntry) and (entry.transposed or len(entry.shape) != 2))
            for entry in self.entries.values()
        )
        return 2 if newer or self.from_base or len(self.files) > 1 else 1

    def to_json(self) -> str:
        """Return the text of ``skillpack.json``: indented, but one line for a config, the probe and an entry."""
        empty = (set() if self.from_base else {"from_base"}) | ({"prefill"} if self.prefill == "pack" else set())
        values = self.model_dump(mode="json", exclude={"bytes", "base_config", "probe", "entries", *empty})
        # A fixed width: the length of this text must not depend on the total, which counts this text too.
        sizes = ", ".join(f'"{part}": {count:{_BYTES_WIDTH}d}' for part, count in self.bytes)
        entries = {
            name: {"kind": entry.kind, **entry.model_dump(mode="json", exclude_defaults=True)}
            for name, entry in self.entries.items()
        }
        layers, entries = joined(entries) if self.coded else ({}, entries)
        parts = [json.dumps(values, indent=2, ensure_ascii=False).removesuffix("\n}"), f'  "bytes": {{{sizes}}}']
        lines = {"base_config": self.base_config, "probe": self.probe and self.probe.model_dump(mode="json")}
        parts += [f'  "{key}": {json.dumps(value, separators=(",", ":"))}' for key, value in lines.items() if value]
        parts += [f'  "layers": {_lines(layers)}'] if layers else []
        return ",\n".join([*parts, f'  "entries": {_lines(entries)}\n}}\n'])


def is_coded(entry: Entry) -> bool:
    """Return whether an entry has integer factors with one scale for each rank, which are entropy coded in the file."""
    return isinstance(entry, LowRankEntry | StackedEntry) and entry.scales == "rank"


def _lines(values: Mapping[str, Any]) -> str:
    """Return JSON with one line for each value."""
    lines = (f"    {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n  }" if values else "{}"


def group_count(n: int, size: int) -> int:
    """Return the number of groups of ``size`` codes among n codes; the last one may be shorter."""
    return (n + size - 1) // size


def packed_width(n: int, bits: int) -> int:
    """Return the number of bytes that n codes of ``bits`` bits take as a stream of bits."""
    return (n * bits + 7) // 8


def width(n: int, bits: int) -> int:
    """Return the number of elements that n codes take in a tensor of the file: two four-bit codes share a byte."""
    return (n + 1) // 2 if bits == 4 else n
