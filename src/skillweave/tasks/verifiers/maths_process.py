"""Run Math-Verify in a separate process, so that no answer can use more than its limits of time and memory.

Math-Verify has a timeout of its own, but it works by a signal: only in the main thread, and not during a long
multiplication.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from skillweave.errors import UserError

_SCRIPT = Path(__file__).with_name("maths_worker.py")
_START = 600.0
_WAIT = 30.0
"""A process that does not answer is ended after 10 times its processor time plus this many seconds of wall clock."""


class MathsProcess:
    """A process of :mod:`~skillweave.tasks.verifiers.maths_worker`.

    It is started at the first question, and again after an answer has ended it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, question: dict[str, Any]) -> bool:
        """Return whether the process finds both the same; False if the process ended. Any thread may call it."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
            except OSError:
                line = b""
            else:
                line = _line(process, 10 * question["seconds"] + _WAIT)
            if not line:
                self._end()
                self._start()  # it starts while other answers are judged
                return False
            return bool(json.loads(line)["same"])

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, ready for a question. A fork of this process starts its own."""
        if self._owner != os.getpid() or self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        assert process is not None
        if not self._ready and _line(process, _START) != b"ready\n":
            process.kill()
            message = process.communicate()[1].decode(errors="replace").strip().splitlines()[-1:]
            self._process = None
            raise UserError(f"verifier 'math' could not start Math-Verify; run pip install math-verify {message or ''}")
        self._ready = True
        return process

    def _start(self) -> None:
        # -P: keeps the script's folder off sys.path, because its module `code` would hide that of the standard library.
        command = [sys.executable, "-P", str(_SCRIPT)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        self._ready, self._owner = False, os.getpid()

    def _end(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None

    def close(self) -> None:
        """End the process; the next question starts another one."""
        with self._lock:
            self._end()


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the next line that a process writes; empty if it ended or took longer than ``seconds`` of wall clock."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else b""


_PROCESS = MathsProcess()
atexit.register(_PROCESS.close)


def same_mathematics(
    answer: str, gold: str, tolerances: tuple[float, float], seconds: float, places: int | None = None
) -> bool:
    """Return whether Math-Verify finds two formulas the same within ``seconds`` of processor time.

    - ``tolerances``: the absolute and the relative tolerance, for constants
    - ``places``: decimal places of the gold number, if it may be the rounding of an irrational answer
    """
    question = {"answer": answer, "gold": gold, "tolerance": tolerances[0], "relative_tolerance": tolerances[1]}
    question["places"] = places
    return _PROCESS.ask({**question, "seconds": seconds})
