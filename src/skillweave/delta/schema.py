"""``delta.json``, the card of a delta folder: what the folder holds, and for which base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skillweave.errors import UserError
from skillweave.files.folder import FileHashes, FileMeanings, FileName, Folder
from skillweave.files.read import is_file, read_card_file
from skillweave.files.recover import settle
from skillweave.files.values import Flag, Free, Line, Shape, Size, TensorName, Version

if TYPE_CHECKING:  # a card is read without waiting for torch
    import torch

SCHEMA_VERSION = 3
DELTA_FILE = "delta.json"
AGAIN = "Copy or make the delta again."

_DTYPES = Literal[
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "bool",
]  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BaseRef(_Strict):
    """The base that a delta or a pack belongs on: the name it was opened by, and its fingerprint, which decides."""

    ref: Annotated[str, Field(max_length=4096)]
    fingerprint: Line


class TensorEntry(_Strict):
    """One changed tensor.

    ``stored`` is what the file holds: a ``difference`` from the base's tensor; the tuned tensor ``whole``; two ``lora``
    factors; or ``rows``, where the first ``shared`` rows are a difference and the others are added tokens, as tuned.
    ``shape`` and ``dtype`` are those of the tensor that a reader gets.
    """

    stored: Literal["difference", "whole", "lora", "rows"]
    shape: Shape
    dtype: _DTYPES
    file: FileName
    transposed: Flag = False
    shared: Size | None = None


class DeltaCard(_Strict):
    """The content of ``delta.json``. ``files`` holds the SHA-256 of every other file of the delta.

    ``from_base`` names files of the base's tokenizer that complete the carried ones, with a digest of what they must
    mean (:func:`skillweave.delta.carry.meaning_digest`). ``base_config`` holds the values of the base's config that its
    answers depend on, which the fingerprint does not cover (:func:`skillweave.delta.config_values.recorded_values`);
    deltas of older versions have none.
    """

    schema_version: Version = SCHEMA_VERSION
    kind: Literal["full", "lora"]
    base: BaseRef
    base_config: Free = {}
    entries: dict[TensorName, TensorEntry]
    files: FileHashes
    from_base: FileMeanings = {}
    provenance: Free

    def to_values(self) -> dict[str, Any]:
        """The values of ``delta.json``, with the oldest schema version that can express them."""
        newer = any(entry.stored == "rows" for entry in self.entries.values())
        newer = newer or bool(self.from_base) or any(name.count("/") > 1 for name in self.files)
        empty = {key for key in ("base_config", "from_base") if not getattr(self, key)}
        values = self.model_dump(mode="json", exclude=empty)
        for entry in values["entries"].values():
            if entry["shared"] is None:
                del entry["shared"]
        return values | {"schema_version": 3 if self.base_config else 2 if newer else 1}


def dtype_name(dtype: torch.dtype) -> str:
    """``"bfloat16"`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def is_delta(folder: str | Path) -> bool:
    """Whether a folder holds a delta."""
    settle(folder)
    return is_file(Path(folder) / DELTA_FILE)


def read_card(folder: Path) -> DeltaCard:
    """Read and check ``delta.json``. Raises :class:`UserError` if it is missing, newer or damaged."""
    settle(folder)
    path = folder / DELTA_FILE
    if not path.is_file():
        hint = (
            f"it is a PEFT adapter without a fingerprint: open it with Delta.from_lora('{folder}', base)"
            if (folder / "adapter_config.json").is_file()
            else f"the delta of this run is {folder / 'delta'}"
            if (folder / "delta" / DELTA_FILE).is_file()
            else "name the folder that a delta was saved in"
        )
        raise UserError(f"{folder} has no {DELTA_FILE}; {hint}")
    card = Folder(folder, DELTA_FILE, AGAIN).file(DELTA_FILE)
    return read_card_file(card, DeltaCard, SCHEMA_VERSION, AGAIN)
