"""Import functions of the user's own, named by module or by file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from skillweave.errors import UserError, nearest
from skillweave.files.hashes import digest


def import_function(named: str, what: str = "the tool") -> Callable[..., Any]:
    """The function that ``package.module:function`` or ``path/to/file.py:function`` names. Its module is run.

    ``what`` names the purpose of the function in errors. Raises :class:`UserError` if there is no such file, module or
    function, and if the module itself fails.
    """
    place, colon, name = named.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"'{named}' names no function: write package.module:function or path/to/file.py:function")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(
            f"could not import {place} for {what} '{named}': {type(error).__name__}: {error}. "
            "A module must be installed; a file is named by its path, path/to/file.py:function"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{place} has no function '{name}'; {nearest(name, functions)}")
    return function


def _module_of_file(path: Path) -> ModuleType:
    """The file as a module. It is run once, however many of its functions are named."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a Python file (looked in {Path.cwd()})")
    name = f"{path.stem}_{digest(str(path.resolve()))}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look up their module there
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
