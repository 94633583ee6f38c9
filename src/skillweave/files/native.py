"""Libraries of C++ functions, compiled on this machine when they are first needed.

Each is kept in ``cache_folder()/compiled``, named by a digest of its source files and of the command that makes it.
What the functions compute is also written in Python, for machines without a C++ compiler. The environment variable
:data:`OVERRIDE` switches all of them off.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from skillweave.errors import UserError
from skillweave.files.atomic import atomic_file
from skillweave.files.cache import cache_folder
from skillweave.files.hashes import digest
from skillweave.files.lock import claim
from skillweave.progress import say_once

OVERRIDE = "SKILLWEAVE_COMPILED"
"""Set to 0, it keeps this module from compiling and loading anything."""
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared")
_LONGEST_COMPILATION = 300
"""Seconds."""


def allowed() -> bool:
    """Return whether compiled functions may be used. Raises :class:`UserError` unless :data:`OVERRIDE` is 0 or 1."""
    override = os.environ.get(OVERRIDE, "")
    if override not in ("", "0", "1"):
        raise UserError(f"the environment variable {OVERRIDE} is '{override}': set it to 1 or 0, or remove it")
    return override != "0"


def library(source: Path, without: str, headers: Sequence[Path] = (), flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """Return the functions of a C++ file, or None if this machine cannot compile or load it, which is said once.

    ``headers`` are the files of ours that it includes, and ``without`` says what happens without the functions.
    """
    compiler = next((found for name in ("g++", "c++") if (found := shutil.which(name))), None)
    if compiler is None:
        say_once(f"there is no C++ compiler, so {without}")
        return None
    flags = (*_FLAGS, *flags)
    name = digest([*(file.read_text(encoding="utf-8") for file in (source, *headers)), compiler, *flags])
    place = cache_folder() / "compiled" / f"{name}.so"
    if not place.exists() and (problem := _compile([compiler, *flags, str(source)], source.name, place)):
        say_once(f"{problem}, so {without}")
        return None
    try:
        return ctypes.CDLL(str(place))
    except OSError as error:
        say_once(f"{place} cannot be loaded ({error}), so {without}")
        return None


def _compile(command: Sequence[str], name: str, place: Path) -> str | None:
    """Compile a source file into ``place``. Returns what went wrong, or None."""
    try:
        with claim(place, waiting=f"waiting until {name} is compiled"):
            if place.exists():  # another process compiled it meanwhile
                return None
            with atomic_file(place) as made:
                whole = [*command, "-o", str(made)]
                subprocess.run(whole, capture_output=True, text=True, timeout=_LONGEST_COMPILATION, check=True)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return f"{command[0]} did not compile {name} ({lines[0] if lines else 'it gave no reason'})"
    except (UserError, OSError, subprocess.TimeoutExpired) as error:
        return f"{name} could not be compiled ({error})"
    return None
