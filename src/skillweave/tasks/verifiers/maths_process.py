"""Asks Math-Verify in a process of its own, so that no answer can take more than its time and memory.

Math-Verify stops itself by a signal, which works in the main thread alone and not within a long multiplication.
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
"""Seconds by the clock beyond ten times the processor time after which a process that does not answer is ended."""


class MathsProcess:
    """One process of :mod:`maths_worker`, started when it is first asked, and again where an answer ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, question: dict[str, Any]) -> bool:
        """Whether the process says that both are the same; False where it ended instead. For any thread."""
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
                self._start()  # while others are judged without it
                return False
            return bool(json.loads(line)["same"])

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, ready to be asked; a fork of this one starts its own."""
        if self._owner != os.getpid() or self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        assert process is not None
        if not self._ready and _line(process, _START) != b"ready\n":
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()[-1:]
            self._process = None
            raise UserError(f"verifier 'math' could not start Math-Verify; pip install math-verify {said or ''}")
        self._ready = True
        return process

    def _start(self) -> None:
        # -P: the folder of the script holds a module named code, which is not the standard library's.
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
        """End the process; another starts where it is asked again."""
        with self._lock:
            self._end()


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line that a process writes; nothing where it ended or took longer by the clock."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else b""


_PROCESS = MathsProcess()
atexit.register(_PROCESS.close)


def same_mathematics(answer: str, gold: str, tolerances: tuple[float, float], seconds: float) -> bool:
    """Whether Math-Verify finds two pieces of mathematics the same within ``seconds`` of processor time.

    ``tolerances``: absolute and relative, for constants.
    """
    question = {"answer": answer, "gold": gold, "tolerance": tolerances[0], "relative_tolerance": tolerances[1]}
    return _PROCESS.ask({**question, "seconds": seconds})
