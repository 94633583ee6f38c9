"""Run the command line in this process, and return what a user would see and the exit code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from skillweave.cli import main


@dataclass(frozen=True)
class Ran:
    """A finished command: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def run(*arguments: object, columns: int = 80, environment: Mapping[str, str] | None = None) -> Ran:
    """Run ``skillweave ARGUMENTS`` in a terminal with that many columns. A bug raises its own exception."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["skillweave", *map(str, arguments)]),
        # main() speaks to the libraries through the environment; nothing of that may outlive the command.
        mock.patch.dict(os.environ, {"COLUMNS": str(columns), **(environment or {})}),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _hooks_of_ours(),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _hooks_of_ours() -> Iterator[None]:
    """Restore the handlers of signals and exceptions that a command replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        with (
            mock.patch.object(sys, "excepthook", sys.excepthook),
            mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
        ):
            yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def made(*arguments: object, columns: int = 80) -> Ran:
    """:func:`run` for a command that must go well."""
    ran = run(*arguments, columns=columns)
    assert ran.code == 0, ran.err
    return ran


def refused(*arguments: object) -> str:
    """The error message of a command that must fail; the rules for all such messages are checked here."""
    ran = run(*arguments)
    assert ran.code == 2, (ran.out, ran.err)
    assert ran.out == ""
    assert ran.err.count("Error: ") == 1
    assert "Traceback" not in ran.err
    return ran.err.partition("Error: ")[2].strip()


@dataclass(frozen=True)
class Bench:
    """The paths of a base and of what was made on it."""

    folder: Path
    base: Path
    other_base: Path

    task: Path
    """A task of six test prompts, two numbers each."""
    settings: Path
    """Settings of a specialist that is made in a second."""
    delta: Path
    adapter: Path
    pack: Path
    """The pack of the delta, called ``sort``."""
