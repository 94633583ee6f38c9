"""Read the tensors of a saved delta on access, and check its files against its card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from skillweave.base.safetensors_io import Spec, TensorFiles, read_headers
from skillweave.delta.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from skillweave.delta.arithmetic import finite
from skillweave.delta.carry import FOLDER
from skillweave.delta.schema import AGAIN, DELTA_FILE, DeltaCard, dtype_name
from skillweave.delta.source import TensorSource
from skillweave.errors import UserError
from skillweave.files.folder import named_shortly

_WEIGHTS = re.compile(r"delta(-\d{5}-of-\d{5})?\.safetensors")


class StoredTensors(TensorSource):
    """The tensors of a delta of the kind "full" in its folder, read on access.

    ``files`` maps file names to paths; their hashes are checked already. Raises :class:`UserError` where the files do
    not hold the tensors that the card describes, and on access for a tensor with NaN or infinity.
    """

    def __init__(self, folder: Path, card: DeltaCard, files: Mapping[str, Path]) -> None:
        check_entries(card, {name: read_headers(path) for name, path in files.items()}, folder)
        self._paths = {name: folder / entry.file for name, entry in card.entries.items()}
        self._tensors = TensorFiles(self._paths)
        self._tensors.open()  # the tensors are read later, and the folder may be replaced until then
        self.specs = {name: (entry.shape, getattr(torch, entry.dtype)) for name, entry in card.entries.items()}
        self.whole = frozenset(name for name, entry in card.entries.items() if entry.stored == "whole")
        self.rows = {name: entry.shared for name, entry in card.entries.items() if entry.shared is not None}
        self.where = str(folder)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors.read(name)
        if tensor.is_floating_point() and not finite(tensor.float() if tensor.itemsize == 1 else tensor):
            raise UserError(f"{self._paths[name]}: the tensor '{name}' holds NaN or infinity. {AGAIN}")
        return tensor


def weight_files(card: DeltaCard, folder: Path) -> dict[str, str]:
    """The files of a delta that hold tensors: name -> SHA-256. Raises :class:`UserError` for any other file."""
    weights = {file for file in card.files if not file.startswith(f"{FOLDER}/")}
    if card.kind == "lora":
        odd = weights ^ {CONFIG_FILE, WEIGHTS_FILE}
    else:
        odd = {file for file in weights if not _WEIGHTS.fullmatch(file)}
    if odd:
        raise UserError(
            f"{folder / DELTA_FILE}: files: '{min(odd)}' does not fit a delta of the kind '{card.kind}'. {AGAIN}"
        )
    for name, entry in card.entries.items():
        if entry.file not in weights - {CONFIG_FILE}:
            raise UserError(
                f"{folder / DELTA_FILE}: entries.{name}.file: '{entry.file}' is not a file of tensors that 'files' "
                f"names. {AGAIN}"
            )
        if (entry.stored == "lora") > (card.kind == "lora") or (card.kind == "full" and entry.transposed):
            raise UserError(f"{folder / DELTA_FILE}: entries.{name}: a delta of the kind 'full' has no LoRA. {AGAIN}")
    return {file: card.files[file] for file in weights}


def check_entries(card: DeltaCard, files: Mapping[str, Mapping[str, Spec]], folder: Path) -> None:
    """Raise unless each of the ``files`` (name -> specs) holds exactly the tensors that the card describes."""
    for name, entry in card.entries.items():
        file, specs = folder / entry.file, files[entry.file]
        if name not in specs:
            raise UserError(f"{file} does not have the tensor '{name}' that {DELTA_FILE} names. {AGAIN}")
        shape, dtype = specs[name]
        if (shape, dtype_name(dtype)) != (entry.shape, entry.dtype):
            raise UserError(
                f"{file}: the tensor '{name}' is {dtype_name(dtype)} {shape}, {DELTA_FILE} says {entry.dtype} "
                f"{entry.shape}. {AGAIN}"
            )
    for file_name, specs in files.items():
        extra = sorted(name for name in specs if name not in card.entries or card.entries[name].file != file_name)
        if extra:
            raise UserError(
                f"{folder / file_name} holds the tensor {named_shortly(extra)} that no entry of {DELTA_FILE} puts "
                f"there. {AGAIN}"
            )
