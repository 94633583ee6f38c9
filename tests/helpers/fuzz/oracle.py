"""Check what must hold of every mutation.

A mutated file or folder is read. Three outcomes are right:

- *refused*: a UserError whose message names one of its files;
- *the same*: the tensors, the card and the rows are those from before;
- *as written*: no hash protects what was changed, and the result is exactly what a plain reader, which shares no code
  with ours, finds in the files now. Authors may write what they like into their own files.

Everything else is a fault: another exception (a *traceback*) or another result (a *silent difference*).
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from helpers.fuzz.mutations import LEFT_OUTSIDE, hashed_files, mutate_file, mutate_folder, rehash
from skillweave.errors import UserError

FAULTS = ("traceback", "silent difference", "nameless", "hang")
_MOST_MEMORY = 24 * 2**30  # bytes of address space; libraries reserve most of it and use little
_PATIENCE = 5.0  # seconds; a reader that waits for a pipe this long would wait forever

Found = dict[str, Any]
"""The parts that were read: digests of tensors, values of cards, rows."""


class Nonsense(Exception):
    """A reader accepted a value that makes no sense, such as a weight that is not a number."""


@dataclass(frozen=True)
class Kind:
    """A kind of artefact or input, with our reader and a plain reader."""

    name: str
    good: Path
    """a folder, or a file"""
    read: Callable[[Path], Found]
    plain: Callable[[Path], Found]
    """Reads the files without any code of ours; returns those parts of the result of ``read`` that it knows."""
    called: tuple[str, ...] = ()
    """Names that a message may use besides the names of its files."""


@dataclass
class Tally:
    """The outcomes of the mutations of one kind."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_case: str = ""

    @property
    def mutations(self) -> int:
        """The number of mutations that were tried."""
        return self.outcomes.total()


def fuzz(kind: Kind, seeds: range, work: Path) -> Tally:
    """Mutate and read once for each seed. A seed always gives the same mutation."""
    tally = Tally(kind.name)
    before = kind.read(kind.good)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, limits[1]))
    try:
        _try_all(kind, seeds, before, work, tally)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return tally


def _try_all(kind: Kind, seeds: range, before: Found, work: Path, tally: Tally) -> None:
    for seed in seeds:
        outcome, told, seconds = _one(kind, seed, before, work)
        if seconds > _PATIENCE and ": pipe" in told:
            outcome, told = "hang", f"{told}: the reader waited for a pipe"
        tally.outcomes[outcome] += 1
        if outcome in FAULTS:
            tally.faults.append(f"{kind.name}, seed {seed}: {outcome}: {told}")
        if seconds > tally.slowest:
            tally.slowest, tally.slowest_case = seconds, f"seed {seed}: {told:.200}"


def _one(kind: Kind, seed: int, before: Found, work: Path) -> tuple[str, str, float]:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rng = Random(f"{kind.name} {seed}")
    place, told, free = _mutated(rng, kind, work)
    start = time.perf_counter()
    try:
        with _pipes_end(work):
            found = kind.read(place)
    except UserError as error:
        named = any(name in str(error) for name in (*kind.called, *_names(kind.good, place)))
        return ("refused" if named else "nameless"), f"{told}: {error}", time.perf_counter() - start
    except Nonsense as error:
        return "silent difference", f"{told}: {error}", time.perf_counter() - start
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error!s:.300} ({Path(last.filename).name}:{last.lineno})"
        return "traceback", f"{told}: {said}", time.perf_counter() - start
    seconds = time.perf_counter() - start
    if found == before:
        return "same", told, seconds
    different = next(part for part in {**before, **found} if before.get(part) != found.get(part))
    if not free:
        return "silent difference", f"{told}: {different} is another, and a hash protects it", seconds
    try:
        plain = kind.plain(place)
    except Exception as error:
        return (
            "silent difference",
            f"{told}: a plain reader refuses it ({type(error).__name__}: {error!s:.100})",
            seconds,
        )
    for part, value in plain.items():
        if part not in found or not same(found[part], value):
            return (
                "silent difference",
                f"{told}: {part} is {found.get(part)!r:.150}, written is {value!r:.150}",
                seconds,
            )
    return "as written", told, seconds


_WRITER = (
    "import os, sys, time; time.sleep(float(sys.argv[1])); os.close(os.open(sys.argv[2], os.O_WRONLY | os.O_NONBLOCK))"
)


@contextlib.contextmanager
def _pipes_end(work: Path) -> Iterator[None]:
    """Write to the pipes of ``work`` from another process after some seconds, so that no reader waits forever.

    A thread would not do: a library that waits for a file may hold the interpreter's lock.
    """
    pipes = [path for path in work.rglob("*") if path.is_fifo()]
    command = [sys.executable, "-S", "-c", _WRITER, str(_PATIENCE)]
    writers = [subprocess.Popen([*command, str(path)], stderr=subprocess.DEVNULL) for path in pipes]
    try:
        yield
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


def _mutated(rng: Random, kind: Kind, work: Path) -> tuple[Path, str, bool]:
    """A mutated copy, a description of the mutation, and whether no hash protects what was changed."""
    (work / LEFT_OUTSIDE).write_text("nobody may read this")
    place = work / kind.good.name
    if not kind.good.is_dir():
        shutil.copyfile(kind.good, place)
        return place, mutate_file(rng, place), True
    shutil.copytree(kind.good, place)
    told = mutate_folder(rng, place)
    if rng.random() < 0.2:
        told += f"; {mutate_folder(rng, place)}"
    if rng.random() < 0.5:
        rehash(place)
        return place, f"{told}; hashes written anew", True
    protected = {path.relative_to(kind.good) for path in hashed_files(kind.good)}
    changed = {path for path in protected if not _equal(kind.good / path, place / path)}
    return place, told, not changed


def _equal(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _names(good: Path, place: Path) -> Iterator[str]:
    yield str(place)
    yield from (path.name for path in good.rglob("*") if good.is_dir())


def same(ours: Any, plain: Any) -> bool:
    """Whether a value that we read is the value in the file: numbers are compared by value, nothing else is converted.

    The plain mapping may omit keys, which then have their defaults.
    """
    if isinstance(ours, dict) and isinstance(plain, dict):
        return all(key in ours and same(ours[key], value) for key, value in plain.items())
    if isinstance(ours, list | tuple) and isinstance(plain, list | tuple):
        return len(ours) == len(plain) and all(map(same, ours, plain))
    if isinstance(ours, bool) or isinstance(plain, bool):
        return ours is plain
    return bool(ours == plain) and isinstance(ours, int | float) == isinstance(plain, int | float)
