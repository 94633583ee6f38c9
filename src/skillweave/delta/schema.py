"""``delta.json``: what a delta folder holds, and for which base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from skillweave.errors import UserError
from skillweave.files.read import read_card_file
from skillweave.files.recover import settle

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
DELTA_FILE = "delta.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BaseRef(_Strict):
    """The base a delta or a pack belongs on: the name it was opened by, and the fingerprint that decides."""

    ref: str
    fingerprint: str


class TensorEntry(_Strict):
    """One changed tensor. ``dtype`` is that of the tensor a reader gets; ``lora`` is computed from two factors."""

    stored: Literal["difference", "whole", "lora"]
    shape: tuple[int, ...]
    dtype: str
    file: str
    transposed: bool = False


class DeltaCard(_Strict):
    """The whole of ``delta.json``. ``files`` gives the SHA-256 of every other file of the delta."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["full", "lora"]
    base: BaseRef
    entries: dict[str, TensorEntry]
    files: dict[str, str]
    provenance: dict[str, Any]


def dtype_name(dtype: torch.dtype) -> str:
    """``"bfloat16"`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def is_delta(folder: str | Path) -> bool:
    """Whether a folder holds a delta."""
    settle(folder)
    return (Path(folder) / DELTA_FILE).is_file()


def read_card(folder: Path) -> DeltaCard:
    """Read and check ``delta.json``; a missing, newer or damaged one is a :class:`UserError`."""
    settle(folder)
    path = folder / DELTA_FILE
    if not path.is_file():
        hint = (
            f"it is a PEFT adapter that names no fingerprint: open it with Delta.from_lora('{folder}', base)"
            if (folder / "adapter_config.json").is_file()
            else "name the folder that a delta was saved in"
        )
        raise UserError(f"{folder} has no {DELTA_FILE}; {hint}")
    return read_card_file(path, DeltaCard, SCHEMA_VERSION, "Copy or make the delta again.")
