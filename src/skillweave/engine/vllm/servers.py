"""Start ``vllm serve`` as a child process, wait until it answers, and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2

from skillweave.engine.vllm.folder import VllmFolder, server_arguments
from skillweave.errors import UserError
from skillweave.progress import console

_STOP = 20.0
"""Seconds that a server has to end by itself."""
_SAY = 15.0
"""Seconds between two notes that it is still starting."""


class VllmServer:
    """A vLLM server of an exported folder, as a child process of this one.

    - ``python``: an interpreter with vLLM installed; None: this one
    - ``options``: more arguments of vLLM, for example ``["--max-model-len", "2048"]``
    - ``environment``: more variables, for example ``{"VLLM_CPU_KVCACHE_SPACE": "1"}``
    - ``log``: the file of its output; None: a temporary one
    - ``patience``: seconds until it must answer
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        port: int = 8000,
        python: str | Path | None = None,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        log: str | Path | None = None,
        patience: float = 600.0,
    ) -> None:
        exported = VllmFolder(folder)
        self.url = f"http://127.0.0.1:{port}"
        self._python = str(python or sys.executable)
        arguments = server_arguments(exported.path, exported.card, port=port)
        self._command = [self._python, "-m", "vllm.entrypoints.openai.api_server", *options, *arguments]
        self._environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", **(environment or {})}
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        if log is None:
            handle, log = tempfile.mkstemp(prefix="vllm-", suffix=".log")
            os.close(handle)
        self.log = Path(log)

    async def start(self) -> None:
        """Start it and wait until it answers. Raises :class:`UserError`, with its output, if it ends or is too slow."""
        if await self._answers():
            raise UserError(f"{self.url} answers already: name this server by its URL, or choose another port")
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    start_new_session=True,  # its workers end with it
                )
        except OSError as error:
            raise UserError(f"{self._python} cannot be run ({error.strerror}): name a Python with vLLM") from error
        console.print(f"  starting vLLM at {self.url}; its output is in {self.log}", soft_wrap=True)
        began = said = time.monotonic()
        try:
            while not await self._answers():
                now = time.monotonic()
                if self._process.poll() is not None:
                    raise UserError(
                        f"vLLM ended with {self._process.returncode} while it started:\n{self._last_lines()}"
                    )
                if now - began > self._patience:
                    raise UserError(f"vLLM did not answer within {self._patience:.0f} s:\n{self._last_lines()}")
                if now - said > _SAY:
                    console.print(f"  vLLM is still starting ({now - began:.0f} s)", soft_wrap=True)
                    said = now
                await asyncio.sleep(0.5)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop it and its workers, and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        self._signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, _STOP)
        self._signal(process, signal.SIGKILL)  # workers that outlived it, too
        await asyncio.to_thread(process.wait)

    def _signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    async def _answers(self) -> bool:
        try:
            async with httpx2.AsyncClient(timeout=5.0) as client:
                return (await client.get(f"{self.url}/health")).status_code == 200
        except httpx2.HTTPError:
            return False

    def _last_lines(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-15:])
