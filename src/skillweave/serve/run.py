"""Run the server until a signal stops it: it drains within its grace time, and a second signal ends it at once."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import math
import os
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from skillweave.errors import UserError
from skillweave.progress import console
from skillweave.serve.admission import Admission
from skillweave.serve.connection import ApiConnection, most_connections
from skillweave.serve.security import address_of
from skillweave.serve.settings import KEY_VARIABLE, ServeConfig
from skillweave.units import human_seconds

_IDLE_SECONDS = 15
"""A connection without a request is closed after so long."""


def bind(settings: ServeConfig, key: str | None) -> socket.socket:
    """Return a socket at the server's address, which does not listen yet: clients are refused until the model is there.

    Raises :class:`UserError` if the address may not be used without a key, or cannot be used at all.
    """
    family, where = address_of(settings.host, settings.port, key, settings.cors_origins)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The system resets a connection whose client takes nothing for so long, also after the server closed it.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(1000 * settings.stalled_seconds))
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise _not_bound(settings, error) from error
    return bound


def _not_bound(settings: ServeConfig, error: OSError) -> UserError:
    place = f"port {settings.port} of {settings.host or 'all interfaces'}"
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"{place} is in use by another program: stop it, or choose another port with --port (0: any free one)"
        )
    if error.errno == errno.EACCES:
        return UserError(f"{place} is reserved for the system: choose a port above 1023 with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"{settings.host} is no address of this machine: use 127.0.0.1 for this machine alone")
    return UserError(f"{place} cannot be used: {error.strerror}")


def url_of(bound: socket.socket) -> str:
    """Return the address of the server for clients on this machine, without a path."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def how_to_ask(url: str, model: str, has_key: bool, key_file: Path | None = None) -> list[str]:
    """Return commands that ask the server something. They read the key from its file or the environment."""
    place = f"${KEY_VARIABLE}" if key_file is None else f"$(cat {shlex.quote(str(key_file))})"
    header = "" if not has_key else f' -H "Authorization: Bearer {place}"'
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}], "temperature": 0}}'
    file = "" if key_file is None else f" --api-key-file {shlex.quote(str(key_file))}"
    return [
        f"curl {url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        f"skillweave chat {url}/v1{file}",
    ]


def run_server(app: FastAPI, bound: socket.socket, *, grace: float, ready: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM, and return when the running ones have ended.

    - ``app``: of :func:`~skillweave.serve.app.create_app`
    - ``grace``: seconds that running requests have to end; then they are cancelled
    - ``ready``: called once, when the server takes requests

    Raises the error of an engine that cannot be opened or that ends by itself.
    """
    asyncio.run(_run(app, bound, grace, ready))


async def _run(app: FastAPI, bound: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    admission: Admission = app.state.admission
    logging.getLogger("asyncio").addFilter(_is_no_lost_write)
    server = _Server(http_config(app), asyncio.get_running_loop())
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    stopped = asyncio.create_task(server.stop.wait())
    settled = asyncio.create_task(admission.settled.wait())
    await asyncio.wait({serving, stopped, settled}, return_when=asyncio.FIRST_COMPLETED)
    if admission.state == "open":
        ready()
        failed = asyncio.create_task(admission.failed.wait())
        await asyncio.wait({serving, stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
    if admission.failure is None and not serving.done():
        await _drain(admission, grace)
    server.should_exit = True
    await serving
    if admission.failure is not None:
        raise admission.failure


def _is_no_lost_write(record: logging.LogRecord) -> bool:
    """Whether a line of asyncio's log is not one about a write to a client that has just left, which is no fault."""
    return not record.getMessage().startswith("socket.send() raised exception")


async def _drain(admission: Admission, grace: float) -> None:
    running = len(admission.running)
    if running:
        told = f"{_requests(running, 'has', 'have')} {human_seconds(grace)} to end"
        console.print(f"Stopping: {told}. A second Ctrl-C ends the server at once.", soft_wrap=True)
    cancelled = await admission.drain(grace)
    if cancelled:
        told = _requests(cancelled, "was", "were")
        console.print(f"{told} cancelled after {human_seconds(grace)} without an end.", soft_wrap=True)
    await admission.close_pages()


def _requests(count: int, one: str, several: str) -> str:
    return f"{count} request {one}" if count == 1 else f"{count} requests {several}"


def http_config(app: FastAPI) -> uvicorn.Config:
    """Return how uvicorn serves an application of :func:`~skillweave.serve.app.create_app`."""
    settings: ServeConfig = app.state.settings
    connection = functools.partial(
        ApiConnection, seconds=settings.body_seconds, most=most_connections(settings.max_streams)
    )
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=connection,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,  # the server has a log of its own, which cannot be forged
        proxy_headers=False,  # the address of a client is the one that connects
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=1,
    )


class _Server(uvicorn.Server):
    """A server of uvicorn that does not end at a signal, but sets :attr:`stop`; a second signal ends the process."""

    def __init__(self, config: uvicorn.Config, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()
        self._loop = loop
        self._signalled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal, which may come at any moment of the event loop."""
        if self._signalled:
            # Threads of the engine may be in the middle of a step. There is nothing to save.
            os.write(2, b"\nStopped at once.\n")
            os._exit(128 + sig)
        self._signalled = True
        self._loop.call_soon_threadsafe(self.stop.set)
