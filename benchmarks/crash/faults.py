"""Kill a save at its n-th system call, or let that call fail, and check what a reader finds afterwards.

:class:`Faults` replaces the calls that change a disk. The calls of a save are counted once. Then the save is run again
for every n: in a forked child that dies by SIGKILL just before the call, or in this process with an error instead of
the call. Half-done calls (half a write) are covered too, because the file that was opened for it is then empty or cut.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from skillweave.errors import UserError
from skillweave.files import disk
from skillweave.files.recover import settle

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EACCES", "EROFS", "EINTR", "ESTALE")
"""The errors of a disk that is full, broken, read-only or remote."""
_CALLS: list[tuple[Any, str]] = [
    *(
        (os, name)
        for name in (
            "open",
            "close",
            "replace",
            "rename",
            "fsync",
            "mkdir",
            "unlink",
            "rmdir",
            "chmod",
            "write",
            "ftruncate",
            "pwrite",
            "link",
            "symlink",
            "utime",
            "sendfile",
            "scandir",
            "listdir",
            "lstat",
            "stat",
        )
    ),
    (fcntl, "flock"),
    (disk, "renameat2"),
    (safetensors.torch, "serialize_file"),
]
_LOOKS = {"scandir", "listdir", "lstat", "stat", "close"}
"""Calls that change nothing. A kill at one of them equals a kill at the next call, so they count for errors only."""


@dataclass
class Faults:
    """Count system calls; at number ``at``, kill the process or let the call (``onwards``: and all later ones) fail."""

    at: int = 0
    error: int | None = None
    onwards: bool = False
    looks: bool = False
    without_exchange: bool = False
    calls: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Faults]:
        """Inside this context every call is counted."""
        old = [(module, name, getattr(module, name)) for module, name in _CALLS if hasattr(module, name)]
        opened = io.open
        try:
            for module, name, call in old:
                if name not in _LOOKS or self.looks:
                    setattr(module, name, self._watched(name, call))
            builtins.open = io.open = self._opener(opened)
            yield self
        finally:
            for module, name, call in old:
                setattr(module, name, call)
            builtins.open = io.open = opened

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **more: Any) -> Any:
            code = self._count(name)
            if name == "renameat2":
                if code is None and self.without_exchange:
                    code = errno.EINVAL
                return call(*args, **more) if code is None else code
            if code is not None:
                raise OSError(code, os.strerror(code))
            return call(*args, **more)

        return watched

    def _opener(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        def opener(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(file, mode, *args, **more)
            code = self._count("open for writing")
            if code is not None:
                raise OSError(code, os.strerror(code))
            return opened(file, mode, *args, **more)

        return opener

    def _count(self, name: str) -> int | None:
        """The error that this call must raise, if any; kills the process if this is the call to die at."""
        self.calls.append(name)
        number = len(self.calls)
        if number == self.at and self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.error if number == self.at or (self.onwards and 0 < self.at < number) else None


@dataclass(frozen=True)
class Save:
    """A kind of save. ``old(root)`` writes the first version (or none), ``new(root)`` the next, at ``root/place``."""

    name: str
    place: str
    old: Callable[[Path], object] | None
    new: Callable[[Path], object]
    read: Callable[[Path], object] = lambda path: None
    """Opens the artefact as the library does, and raises if anything is wrong."""
    without_exchange: bool = False
    may_be_absent: bool = False
    """Whether the old version is removed before the new one is written, so that a kill may leave neither."""


@dataclass
class Outcome:
    """The counts of one kind of save over all points of interruption."""

    name: str
    points: int = 0
    kept: int = 0
    """points after which a reader found the old version, whole"""
    replaced: int = 0
    """points after which a reader found the new version, whole"""
    empty: int = 0
    """points after which nothing lay at the place for a reader other than this library"""
    wrong: list[str] = field(default_factory=list)


def contents(path: Path) -> str | None:
    """A digest of all names and bytes at a path, without hidden files; None if the path does not exist."""
    if not os.path.lexists(path):
        return None
    seen = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = file.relative_to(path.parent).as_posix()
        if "/." not in name:
            seen.update(f"{name}\0{file.stat().st_size}\0".encode() + _meaning(file))
    return seen.hexdigest()


def _meaning(file: Path) -> bytes:
    """The bytes of a file without what differs between runs (the order of safetensors' metadata, and its hash)."""
    if file.suffix == ".safetensors":
        tensors = sorted(safetensors.deserialize(file.read_bytes()))
        return b"".join(f"{name}{view['dtype']}{view['shape']}".encode() + view["data"] for name, view in tensors)
    if file.suffix == ".json" and isinstance(values := json.loads(file.read_bytes()), dict):
        return json.dumps({key: value for key, value in values.items() if key != "files"}).encode()
    return file.read_bytes()


def litter(root: Path) -> list[str]:
    """Hidden entries anywhere under a folder."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob(".*"))


def _call(faults: Faults, at: int) -> str:
    return faults.calls[at - 1] if at <= len(faults.calls) else "not reached"


class Trial:
    """One kind of save, interrupted at one point after another, in a folder of its own."""

    def __init__(self, save: Save, scratch: Path):
        self.save, self.scratch, self.outcome = save, scratch, Outcome(save.name)
        self.before = self._reference("old", [save.old])
        self.after = self._reference("new", [save.old, save.new])
        assert self.before != self.after

    def _reference(self, name: str, writes: Sequence[Callable[[Path], object] | None]) -> str | None:
        root = self.scratch / name
        root.mkdir()
        for write in writes:
            if write is not None:
                write(root)
        assert not litter(root), litter(root)
        return contents(root / self.save.place)

    def calls(self, *, looks: bool = False) -> list[str]:
        """The calls of one save without a fault, in order."""
        faults = Faults(looks=looks, without_exchange=self.save.without_exchange)
        root = self._fresh()
        with faults.installed():
            self.save.new(root)
        return faults.calls

    def kill(self, at: int) -> None:
        """Die at the call, then read, then save again."""
        root, faults = self._fresh(), Faults(at, without_exchange=self.save.without_exchange)
        child = os.fork()
        if child == 0:
            try:
                with faults.installed():
                    self.save.new(root)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            self._wrong(f"not killed at call {at}")
        self._look(root, f"killed at call {at}", self._either)

    def fail(self, at: int, name: str, *, onwards: bool, looks: bool = False) -> None:
        """Let the call fail, then read, then save again."""
        code = getattr(errno, name)
        root, faults = self._fresh(), Faults(at, code, onwards, looks, self.save.without_exchange)
        what = f"{name} at call {at}{' and all after it' if onwards else ''}"
        allowed: tuple[str | None, ...] = (self.after,)
        try:
            with faults.installed():
                self.save.new(root)
        except UserError:
            allowed = self._either
        except BaseException as error:
            self._wrong(f"{what} ({_call(faults, at)}): {type(error).__name__}: {error}")
            allowed = self._either
        self._look(root, f"{what} ({_call(faults, at)})", allowed)

    @property
    def _either(self) -> tuple[str | None, ...]:
        return (self.before, self.after, *[None] * self.save.may_be_absent)

    def _look(self, root: Path, what: str, allowed: tuple[str | None, ...]) -> None:
        outcome, place = self.outcome, root / self.save.place
        outcome.points += 1
        outcome.empty += self.before is not None and not os.path.lexists(place)
        try:
            settle(place)
            found = contents(place)
            if found not in allowed:
                self._wrong(f"{what}: a reader finds {'nothing' if found is None else 'another content'}")
            elif found is not None:
                self.save.read(place)
            outcome.kept += found == self.before
            outcome.replaced += found == self.after
            self.save.new(root)
            if contents(place) != self.after:
                self._wrong(f"{what}: the next save leaves another content")
            if left := litter(root):
                self._wrong(f"{what}: after the next save there is left: {left}")
        except Exception as error:
            self._wrong(f"{what}: then {type(error).__name__}: {error}")
        shutil.rmtree(root)

    def _wrong(self, text: str) -> None:
        self.outcome.wrong.append(f"{self.save.name}: {text}")

    def _fresh(self) -> Path:
        root = self.scratch / "now"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if self.save.old is not None:
            self.save.old(root)
        return root
