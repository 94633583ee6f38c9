"""The start and the stop of the program. Nothing slow is imported here.

Ctrl-C (SIGINT), SIGTERM and SIGHUP end the program with one sentence and the exit code that shells expect, at any
moment: while modules are imported, in the middle of a progress bar, or while it is already stopping.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_SENTENCE = "Stopped. Run the same command again to resume."
_NOTHING_TO_RESUME = ("serve", "chat", "bench")
"""Commands that are not started again for a result, so they only say that they have stopped."""
_ANEW = "Stopped. Run the same command again to start anew."
_STARTS_ANEW = ("audit", "cku score", "cku corpus", "export", "induction", "inspect", "tasks", "unzip")
"""Commands that keep nothing until they are done."""
_ANEW_WITHOUT_OUT = ("eval", "generate")
"""Commands that keep what is done beside the file of ``--out``, and nothing without it."""
_SHOW_CURSOR = "\x1b[?25h"
_GRACE = 2.0  # seconds for a clean stop; after that, a second Ctrl-C ends the process at once


def main() -> None:
    """Run the command line. Exit codes: 0, 1 for a bug, 2 for a user's mistake, 128 + the signal if it was stopped."""
    stops = _Stops()
    stops.listen()
    sys.excepthook = _show_bug
    try:
        from skillweave.cli import app

        app.main()
    except BaseException as error:
        # Libraries turn a Ctrl-C into their own errors, so after one was pressed the kind of the error does not matter.
        if stops.number is None and not _is_stop(error):
            raise
        stops.number = stops.number or signal.SIGINT
    finally:
        stops.over = True
    if stops.number is not None:
        _say_stopped()
        sys.exit(128 + stops.number)


class _Stops:
    """The signals that stop the program. The first one is raised as KeyboardInterrupt, so files are cleaned up."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The number of the signal that stopped the program, or None."""
        self.over = False
        """Whether the command has ended and Python is shutting down."""
        self._since = 0.0
        self._process = os.getpid()

    def listen(self) -> None:
        """Handle the signals, except those that the parent process ignores for us (``nohup``, a background job)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._received)
        sys.unraisablehook = self._in_a_callback

    def _received(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process or self.over:  # a forked worker: its parent prints the sentence
            os._exit(128 + number)
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._since > _GRACE:
            _say_stopped()
            os._exit(128 + self.number)

    def _in_a_callback(self, ignored: Any) -> None:
        """Raise a Ctrl-C again if it came while Python freed an object, because Python ignores errors there."""
        if self.number is not None and issubclass(ignored.exc_type, KeyboardInterrupt):
            number, self.number = self.number, None
            # Not from here: errors in this function are ignored too.
            threading.Timer(0.01, os.kill, (self._process, number)).start()
        elif self.number is None:
            sys.__unraisablehook__(ignored)


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == 130)  # typer's


def _say_stopped() -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        terminal = sys.stderr.isatty()
        sys.stderr.write(f"{_SHOW_CURSOR if terminal else ''}\n{_sentence(sys.argv[1:])}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # standard error is closed


def _sentence(arguments: list[str]) -> str:
    names = {" ".join(arguments[:1]), " ".join(arguments[:2])}
    if names & set(_NOTHING_TO_RESUME):
        return "Stopped."
    keeps = any(argument.startswith(("-o", "--out")) for argument in arguments)
    anew = names & set(_STARTS_ANEW) or (names & set(_ANEW_WITHOUT_OUT) and not keeps)
    return _ANEW if anew else _SENTENCE


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug; texts in it cannot control the terminal."""
    import traceback

    from skillweave.terminal import for_file

    sys.stderr.write(for_file("".join(traceback.format_exception(kind, error, trace)), sys.stderr))
