"""Keep the decompositions of a zip: in memory, or one file for each in a folder from which a killed zip resumes.

A decomposition takes as many bytes as its matrix times the share of the ranks that are kept, so those of all matrices
together can be larger than the pack by far. In a folder, each is written as soon as it is made, and mapped from its
file when it is read. Then memory holds only the one in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from skillweave.base.safetensors_io import tensor_bytes, write_tensors
from skillweave.errors import UserError
from skillweave.files.disk import make_folders
from skillweave.files.hashes import digest
from skillweave.files.read import is_file, regular_file
from skillweave.files.recover import drop
from skillweave.progress import console
from skillweave.skillzip.lowrank import Decomposed

_DECOMPOSED = {"U", "gains", "energy"}
_LARGEST = "largest inputs of "
"""The start of the keys under which the largest inputs of groups are kept."""


class DecompositionStore(Mapping[str, Decomposed]):
    """The decompositions by the keys of their matrices, and what calibration found for each group.

    Args:
        folder: Where they are kept. An entry that an earlier run left there is part of the store when it is asked for,
            unless it is damaged: then this is said, and it counts as missing. The caller makes sure that the folder
            belongs to the same delta, base and settings. None keeps everything in memory. So does a folder that cannot
            be written to (a full disk): this is said, and the folder is deleted.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        """what is in memory, by key: all tensors without a folder, else the small ones of the entries that are sound"""
        self._missing: set[str] = set()
        if folder is not None:
            make_folders(folder)

    def __getitem__(self, key: str) -> Decomposed:
        """Return one decomposition. From a folder, its ``U`` is mapped, and is read where it is used."""
        small = self._entry(key, _DECOMPOSED)
        if small is None:
            raise KeyError(key)
        U = small["U"] if self._folder is None else _mapped(self._file(key))["U"]
        return Decomposed(U, small["gains"], float(small["energy"]))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._entry(key, _DECOMPOSED) is not None

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._kept if not key.startswith(_LARGEST))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def put(self, key: str, decomposed: Decomposed) -> None:
        """Keep one decomposition. It is on disk when this returns, if the store has a folder."""
        energy = torch.tensor([decomposed.energy], dtype=torch.float64)
        self._put(key, {"U": decomposed.U, "gains": decomposed.gains, "energy": energy})

    def largest_inputs(self, group: str) -> torch.Tensor | None:
        """Return the largest inputs (in,) of a group, or None if they were not kept."""
        entry = self._entry(_LARGEST + group, {"largest"})
        return None if entry is None else entry["largest"]

    def put_largest_inputs(self, group: str, largest: torch.Tensor) -> None:
        """Keep the largest inputs (in,) of a group."""
        self._put(_LARGEST + group, {"largest": largest})

    def _put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        if self._folder is not None:
            try:
                write_tensors(self._file(key), tensors, {"key": key, "sha256": _checksum(tensors)})
            except UserError as error:
                console.print(f"  the work is kept in memory, so a killed zip cannot resume: {error}", soft_wrap=True)
                self._leave_folder(self._folder)
        self._keep(key, tensors)

    def _leave_folder(self, folder: Path) -> None:
        """Read everything into memory and delete the folder, whose room the pack needs."""
        for key in self._kept:
            self._kept[key] = {name: tensor.clone() for name, tensor in _mapped(self._file(key)).items()}
        drop(folder)
        self._folder = None

    def _keep(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        on_disk = {"U"} if self._folder is not None else set()
        self._kept[key] = {name: tensor for name, tensor in tensors.items() if name not in on_disk}
        self._missing.discard(key)

    def _entry(self, key: str, names: set[str]) -> dict[str, torch.Tensor] | None:
        """Return the tensors of an entry that are in memory. The first call looks in the folder, and checks it."""
        if key not in self._kept and key not in self._missing and self._folder is not None:
            found = _checked(self._file(key), key, names)
            if found is not None:
                self._keep(key, found)
            else:
                self._missing.add(key)
        return self._kept.get(key)

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{digest(key)}.safetensors"


def _checked(file: Path, key: str, names: set[str]) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a file that an earlier run wrote for ``key``, or None if there is no sound one."""
    if not is_file(file):
        return None
    try:
        with safe_open(regular_file(file), framework="pt") as stored:
            metadata = stored.metadata() or {}
        tensors = _mapped(file)
        if metadata.get("key") == key and set(tensors) == names and metadata.get("sha256") == _checksum(tensors):
            # Small tensors are copied: they outlive the mapping.
            return {name: tensor if name == "U" else tensor.clone() for name, tensor in tensors.items()}
    except (SafetensorError, OSError, UserError):
        pass
    console.print(f"  the stored work for '{key}' is damaged ({file}): it is made again", soft_wrap=True)
    return None


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, whose pages are read when they are used and freed with the tensors."""
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha.update(tensor_bytes(tensors[name]))
    return sha.hexdigest()
