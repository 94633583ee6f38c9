"""Servers in processes of their own, with an OpenAI API: ours, transformers', and vLLM's where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from skillweave.engine.vllm import VllmServer
from skillweave.serve.child import child_server, free_port

VLLM_PYTHON = "SKILLWEAVE_VLLM_PYTHON"
"""The environment variable that names the Python of an environment with vLLM."""


@contextlib.contextmanager
def skillweave_server(weave: Path, *more: str) -> Iterator[str]:
    """Serve a weave folder with ``skillweave serve``, and yield the address of its API."""
    port = free_port()
    command = [sys.executable, "-m", "skillweave", "serve", str(weave), "--port", str(port), *more]
    with child_server(command, f"http://127.0.0.1:{port}/ready"):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def transformers_server(model: Path, dtype: str) -> Iterator[str]:
    """Serve a model folder with ``transformers serve`` and its continuous batching."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--continuous-batching",
        "--dtype", dtype, "--port", str(port), "--host", "127.0.0.1",
    ]  # fmt: skip
    with child_server(command, f"http://127.0.0.1:{port}/health", {"HF_HUB_OFFLINE": "1"}):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def vllm_server(exported: Path) -> Iterator[str]:
    """Serve a folder of ``skillweave export vllm`` with vLLM of the environment that :data:`VLLM_PYTHON` names.

    The address is that of vLLM's own API, so that nothing of ours is measured.
    """
    # vLLM keeps a part of the memory for keys and values: 1 GiB is more than this load needs.
    server = VllmServer(
        exported,
        port=free_port(),
        python=os.environ[VLLM_PYTHON],
        options=["--max-model-len", "2048"],
        environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    asyncio.run(server.start())
    try:
        yield f"{server.url}/v1"
    finally:
        asyncio.run(server.stop())
