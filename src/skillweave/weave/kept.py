"""Copies on disk of packs in the form that they have in memory, so that a pack that left comes back in milliseconds.

Decoding a pack and laying it out for a model takes far longer than reading it. So when a pack is read for the first
time, all tensors that were made of it may be written into one file in the cache folder. The file has no name: no other
process can open it, and it ends with this one. The hash of each copy stays in memory, and a copy is used only if its
bytes, read into memory, have this hash.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import IO, Any

import torch

from skillweave.base.voice import Voice
from skillweave.files.cache import cache_folder
from skillweave.pack.probe import PackProbe
from skillweave.pack.stored import CARD_FILE
from skillweave.progress import say_once
from skillweave.weave.factors import aligned, mapped
from skillweave.weave.resident import Resident


@dataclass(frozen=True)
class ReadPack:
    """A pack that was read and prepared, and is not loaded yet."""

    ready: Resident
    voice: Voice
    probe: PackProbe | None
    files: Mapping[str, str]
    """the SHA-256 of the card and of all files that it names; empty if no file names the hash of the card"""
    own_tokenizer: bool
    prefill: str
    """who reads its prompts: the ``pack``, or the ``backbone``"""

    @property
    def name(self) -> str:
        """The pack's name."""
        return self.ready.name

    @property
    def card_hash(self) -> str | None:
        """The hash of the card, which has the hashes of all other files; None if no file names it."""
        return self.files.get(CARD_FILE)

    @property
    def nbytes(self) -> int:
        """The most bytes that the pack takes in memory when it is loaded."""
        return self.ready.most_nbytes


@dataclass(frozen=True)
class _Copy:
    read: ReadPack
    """the pack with tensors that have a shape and a dtype and no values"""
    devices: tuple[torch.device, ...]
    """of the tensors, in the order of :meth:`Resident.with_tensors`"""
    at: int
    room: int
    """bytes of the file that belong to this copy; a smaller pack may have got the room of a larger one"""
    size: int
    sha256: bytes


class KeptPacks:
    """The copies of the packs of one weave. Threads may read and keep different packs at the same time."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: list[tuple[int, int]] = []
        """(where, bytes) of rooms whose packs were forgotten"""
        self._copies: dict[str, _Copy] = {}
        self._lock = threading.Lock()

    def files(self, name: str) -> Mapping[str, str] | None:
        """The hashes of the files that a pack's copy was made of, or None if there is no copy."""
        copy = self._copies.get(name)
        return None if copy is None else copy.read.files

    def keep(self, read: ReadPack) -> None:
        """Write a copy of a pack that was just read. A pack that cannot have one is left out.

        These are packs with a tokenizer of their own, which takes longer to open than the factors, and those that
        exchange tensors of the model. That the disk takes no copy is said once.
        """
        if not read.files or read.own_tokenizer or read.ready.exchanged or read.ready.tokens is not None:
            return
        tensors: list[torch.Tensor] = []

        def without_values(tensor: torch.Tensor) -> torch.Tensor:
            tensors.append(tensor)
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        empty = replace(read, ready=read.ready.with_tensors(without_values))
        size = sum(aligned(tensor.nbytes) for tensor in tensors)
        self.drop(read.name)
        try:
            with self._lock:
                if self._file is None:
                    cache_folder().mkdir(parents=True, exist_ok=True)
                    self._file = tempfile.TemporaryFile(dir=cache_folder(), buffering=0)  # noqa: SIM115
                at, room = self._take(size)
            written = self._write(self._file.fileno(), at, tensors)
        except OSError as error:
            say_once(
                f"no copies of packs can be kept in {cache_folder()} ({error.strerror or error}), so a pack that has "
                "left memory is decoded again when it is loaded, which takes longer"
            )
            return
        devices = tuple(tensor.device for tensor in tensors)
        self._copies[read.name] = _Copy(empty, devices, at, room, size, written)

    def read(self, name: str) -> ReadPack | None:
        """The pack that was kept, or None if its copy is not what was written, which is said; the copy is then gone."""
        copy = self._copies[name]
        assert self._file is not None
        buffer = mapped(copy.size)
        values: Any = buffer.numpy()
        view = memoryview(values)[: copy.size]
        if not _read_into(view, self._file.fileno(), copy.at) or sha256(view).digest() != copy.sha256:
            say_once(f"the copy of the pack '{name}' in {cache_folder()} was damaged: the pack is read from its folder")
            self.drop(name)
            return None
        at, devices = 0, iter(copy.devices)

        def with_values(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal at
            begin, at = at, at + aligned(tensor.nbytes)
            part = buffer[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            return part.to(next(devices))

        return replace(copy.read, ready=copy.read.ready.with_tensors(with_values))

    def drop(self, name: str) -> None:
        """Forget the copy of a pack, if there is one. Its room is given to others."""
        copy = self._copies.pop(name, None)
        if copy is not None:
            with self._lock:
                self._free.append((copy.at, copy.room))

    def _take(self, size: int) -> tuple[int, int]:
        """Return where so many bytes have room in the file, and how many bytes this room has."""
        room = min((room for room in self._free if room[1] >= size), key=lambda room: room[1], default=None)
        if room is not None:
            self._free.remove(room)
            return room
        at, self._end = self._end, self._end + size
        return at, size

    @staticmethod
    def _write(file: int, at: int, tensors: list[torch.Tensor]) -> bytes:
        """Write tensors one after the other, each at a multiple of 64 bytes, and return the hash of all that."""
        whole = sha256()
        for tensor in tensors:
            values: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            for part in (memoryview(values), memoryview(bytes(aligned(tensor.nbytes) - tensor.nbytes))):
                whole.update(part)
                done = 0
                while done < len(part):
                    done += os.pwrite(file, part[done:], at + done)
                at += len(part)
        return whole.digest()


def _read_into(view: memoryview, file: int, at: int) -> bool:
    """Fill ``view`` from a place in a file; return whether the file has so many bytes."""
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], at + done)
        if count == 0:
            return False
        done += count
    return True
