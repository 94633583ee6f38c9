"""A server in a process of its own: started, waited for, and stopped when nobody needs it any more."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from skillweave.errors import UserError

_START_SECONDS, _STOP_SECONDS = 300.0, 60.0


def free_port() -> int:
    """Return a port of this machine that no program listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def child_server(
    command: Sequence[str], health: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Context in which a server runs; it begins when the URL ``health`` answers with status 200.

    At the end the server gets SIGTERM, and a minute to stop; then it is killed. ``environment``: more variables. Raises
    :class:`UserError`, with the end of its output, if it stops before it answers or does not answer within 5 minutes.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        try:
            _wait_until_it_answers(child, health, log)
            yield child
        finally:
            child.terminate()
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait_until_it_answers(child: subprocess.Popen[bytes], health: str, log: IO[str]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if child.poll() is not None:
            raise UserError(f"the server ended with status {child.returncode}: {_end_of(log)}")
        if _answers(health):
            return
        time.sleep(0.1)
    raise UserError(f"the server did not answer at {health} within {_START_SECONDS:.0f} s: {_end_of(log)}")


def _answers(health: str) -> bool:
    try:
        with urllib.request.urlopen(health, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _end_of(log: IO[str]) -> str:
    log.seek(0)
    return log.read()[-2000:].strip()
