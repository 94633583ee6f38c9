"""Run code that a model wrote in CPython, in a process that has locked itself in.

The process (:mod:`skillweave.tools.process_child`) has no network (a network namespace, and no sockets by seccomp), can
read only the files of Python's own library (Landlock), cannot start processes or send signals, and is limited in
memory, processor time and wall-clock time. Its environment, its standard input and its working folder are empty.

Unlike the interpreter of :mod:`skillweave.tools.sandbox`, CPython was not made to run hostile code. So the kernel must
isolate it, and a fault in the kernel would break the isolation. The code may use threads, but no other processes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skillweave.errors import UserError
from skillweave.progress import console
from skillweave.tools.process_child import REPLY, Opaque, TooLarge, decode, encode
from skillweave.tools.sandbox import Host, Limits, Result, shortened

_CHILD = Path(__file__).with_name("process_child.py")
_START = 60.0  # most seconds for a process to start; only a broken installation takes so long
_lock = threading.Lock()
_folder: str | None = None
_said_missing = False


class ProcessSession:
    """One CPython process. Names persist from one text to the next. A process that breaks a limit is ended.

    Raises :class:`UserError` at the start if the system cannot isolate the process from the network, the files or other
    processes, unless ``allow_unjailed`` is true.
    """

    def __init__(self, limits: Limits | None = None, *, allow_unjailed: bool = False) -> None:
        self._limits = limits or Limits()
        self._allow_unjailed = allow_unjailed
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""

    def __enter__(self) -> ProcessSession:
        to_child, self._to = os.pipe()
        self._from, from_child = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(_CHILD), str(to_child), str(from_child)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=_empty_folder(),
                env={},
                pass_fds=(to_child, from_child),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._to)
            os.close(self._from)
            raise
        finally:
            os.close(to_child)
            os.close(from_child)
        try:
            bounds = ("memory", "seconds", "items", "characters")
            self._send({name: getattr(self._limits, name) for name in bounds})
            reply = self._receive(time.perf_counter() + _START, _Output(0))
            if reply is None or "walls" not in reply:
                raise RuntimeError(f"the process for 'runner: process' did not start: {sys.executable} {_CHILD}")
            check_walls(reply["walls"], self._allow_unjailed)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        os.close(self._to)
        os.close(self._from)
        self._process = None

    def feed(
        self, code: str, inputs: Mapping[str, Any] | None = None, host: Host | None = None, name: str | None = None
    ) -> Result:
        """Run ``code`` with ``inputs`` as global names; see :meth:`.InterpreterSession.feed`."""
        output, start = _Output(self._limits.output), time.perf_counter()
        try:
            code.encode()
            self._send({"source": code, "inputs": encode(dict(inputs or {})), "name": name, "host": host is not None})
            value, error = self._converse(start + self._limits.seconds, output, host)
        except UnicodeEncodeError:
            value, error = None, "SyntaxError: the code holds a lone surrogate, which no source text may"
        except BrokenPipeError:
            value, error = None, "RuntimeError: the process has ended"
        text, cut = output.text()
        return Result(error is None, value, text, error, time.perf_counter() - start, cut)

    def _converse(self, deadline: float, output: _Output, host: Host | None) -> tuple[Any, str | None]:
        """The value or the error of the running text. Its calls of ``host`` are answered meanwhile."""
        while True:
            reply = self._receive(deadline, output)
            if reply is None:
                self._end()
                if time.perf_counter() >= deadline:
                    return None, "TimeoutError: the process did not end in time and was killed"
                return None, "RuntimeError: the process ended before its program did"
            try:
                if isinstance(reply.get("error"), str):
                    return None, shortened(reply["error"])
                if "ask" in reply and host is not None:
                    before = time.perf_counter()
                    self._send(_answer(host, decode(reply["ask"])))
                    deadline += time.perf_counter() - before
                    continue
                return decode(reply["value"]), None
            except TooLarge as problem:
                return Opaque(str(problem)), None
            except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
                self._end()
                return None, "RuntimeError: the process sent what is no reply"

    def _send(self, message: dict[str, Any]) -> None:
        """Send one JSON line with a new token; the next reply must have the same token."""
        self._token = secrets.token_hex(8)
        data = json.dumps({**message, "token": self._token}).encode() + b"\n"
        deadline = time.perf_counter() + max(_START, self._limits.seconds)
        os.set_blocking(self._to, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._to, selectors.EVENT_WRITE)
            while data:
                if not selector.select(deadline - time.perf_counter()):
                    raise BrokenPipeError  # the process reads nothing
                data = data[os.write(self._to, data[: 2**16]) :]

    def _receive(self, deadline: float, output: _Output) -> dict[str, Any] | None:
        """The next JSON object that the process sends, or None if it ended, was too slow or sent too much.

        What it prints meanwhile is read continuously, so that a full pipe does not stop it, and kept up to the limit.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        printed = self._process.stdout.fileno()
        line = self._pending
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            selector.register(printed, selectors.EVENT_READ)
            while b"\n" not in line:
                ready = selector.select(max(0.0, deadline - time.perf_counter()))
                if not ready or len(line) > REPLY + 2**16:
                    return None
                for key, _ in ready:
                    piece = os.read(key.fd, 2**16)
                    if key.fd == self._from:
                        line += piece
                        if not piece:
                            output.drain(printed)
                            return None
                    elif piece:
                        output.add(piece)
                    else:
                        selector.unregister(printed)
        output.drain(printed)
        line, _, self._pending = line.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            return {}
        return reply if isinstance(reply, dict) and reply.get("token") == self._token else {}

    def _end(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class _Output:
    """Collects the first ``room`` characters that a process prints."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._bytes = bytearray()
        self._left_out = 0

    def add(self, piece: bytes) -> None:
        if len(self._bytes) < 4 * self._room:  # a character takes at most four bytes
            self._bytes += piece
        else:
            self._left_out += len(piece)

    def drain(self, source: int) -> None:
        """Add what is already in the pipe, without waiting, up to the size of a pipe."""
        os.set_blocking(source, False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                piece = os.read(source, 2**16)
                if not piece:
                    break
                self.add(piece)

    def text(self) -> tuple[str, int]:
        """The text kept, and how much more was printed: in characters if all of it is ASCII, else partly in bytes."""
        text = self._bytes.decode("utf-8", "replace")
        return text[: self._room], len(text[self._room :]) + self._left_out


def _answer(host: Host, question: Any) -> dict[str, Any]:
    try:
        return {"value": encode(host(*question))}
    except Exception as error:  # sent by its name, to be raised in the code that asked
        return {"raise": [type(error).__name__, str(error)]}


def run(
    code: str,
    inputs: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    *,
    allow_unjailed: bool = False,
) -> Result:
    """Run ``code`` once in a process of its own, with ``inputs`` as global names.

    As :func:`skillweave.tools.sandbox.run`: errors of the code are in the result. ``limits`` bounds processor time and
    memory, but not ``depth``, which is CPython's own.
    """
    with ProcessSession(limits, allow_unjailed=allow_unjailed) as session:
        return session.feed(code, inputs, name="__main__")


def check_walls(walls: Mapping[str, bool], allow_unjailed: bool) -> None:
    """Say once which kinds of isolation this system does not have.

    Raises :class:`UserError` if code could reach the network, files or processes, unless ``allow_unjailed`` is true.
    """
    global _said_missing
    missing = [_WALLS[name] for name in _WALLS if not walls.get(name)]
    open_ways = [_WALLS[name] for name in ("network", "files", "calls") if not walls.get(name)]
    if open_ways and not allow_unjailed:
        raise UserError(
            f"runner: process: this system has no {' and no '.join(open_ways)}, so code that a model wrote could reach "
            "out. Use 'runner: interpreter', run inside a container or virtual machine of its own, and set "
            "allow_unjailed: true only where nothing on the machine is worth protecting"
        )
    with _lock:
        if missing and not _said_missing:
            _said_missing = True
            console.print(f"  runner: process: programs run without {'; without '.join(missing)}", soft_wrap=True)


_WALLS = {
    "network": "wall around the network (a network namespace or seccomp)",
    "files": "wall around the files (Landlock, Linux 5.13 or later)",
    "calls": "wall around other processes (seccomp)",
    "user": "a user of their own (Python's library can be read by root alone, so they keep root's number, "
    "without its capabilities)",
}


def _empty_folder() -> str:
    """The empty folder in which all processes run; they cannot write to it."""
    global _folder
    with _lock:
        if _folder is None or not os.path.isdir(_folder):
            _folder = tempfile.mkdtemp(prefix="skillweave-empty-")
            os.chmod(_folder, 0o555)
        return _folder


@atexit.register
def _remove_folder() -> None:
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
