"""Servers in processes of their own, with an OpenAI API: ours, transformers', and vLLM's where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from skillweave.engine.vllm import VllmServer
from skillweave.errors import UserError

VLLM_PYTHON = "SKILLWEAVE_VLLM_PYTHON"
"""The environment variable that names the Python of an environment with vLLM."""
_START = 240.0
"""Seconds within which a server has to answer."""


@contextlib.contextmanager
def skillweave_server(weave: Path, log: Path, *more: str) -> Iterator[str]:
    """Serve a weave folder with ``skillweave serve``, and yield the address of its API."""
    port = _free_port()
    command = [sys.executable, "-m", "skillweave", "serve", str(weave), "--port", str(port), *more]
    with _process(command, f"http://127.0.0.1:{port}/ready", log):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def transformers_server(model: Path, dtype: str, log: Path) -> Iterator[str]:
    """Serve a model folder with ``transformers serve`` and its continuous batching."""
    port = _free_port()
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--continuous-batching",
        "--dtype", dtype, "--port", str(port), "--host", "127.0.0.1",
    ]  # fmt: skip
    with _process(command, f"http://127.0.0.1:{port}/health", log, {"HF_HUB_OFFLINE": "1"}):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def vllm_server(exported: Path, log: Path) -> Iterator[str]:
    """Serve a folder of ``skillweave export vllm`` with vLLM of the environment that :data:`VLLM_PYTHON` names.

    The address is that of vLLM's own API, so that nothing of ours is measured.
    """
    # vLLM keeps a part of the memory for keys and values: 1 GiB is more than this load needs.
    server = VllmServer(
        exported,
        port=_free_port(),
        python=os.environ[VLLM_PYTHON],
        options=["--max-model-len", "2048"],
        environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
        log=log,
    )
    asyncio.run(server.start())
    try:
        yield f"{server.url}/v1"
    finally:
        asyncio.run(server.stop())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(command: Sequence[str], health: str, log: Path, environment: Mapping[str, str] | None = None):
    """Run a server until the block ends; it begins when the server answers. Its output goes to ``log``."""
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        try:
            _wait(child, health, log)
            yield
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(child: subprocess.Popen[bytes], health: str, log: Path) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until:
        if child.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise UserError(f"the server ended with status {child.returncode}; the end of {log}:\n{tail}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if urllib.request.urlopen(health, timeout=2).status == 200:
                return
        time.sleep(0.2)
    raise UserError(f"the server does not answer at {health} after {_START:.0f} s; see {log}")
