"""Which requests are taken on now: none before the engine is open, not too many, and none when the server stops."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Literal

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skillweave.serve.errors import ApiError
from skillweave.serve.refusal import refuse

_API = "/v1/"
_STOPPING = "the server is stopping: ask it again when it is back"

ServerState = Literal["starting", "open", "stopping"]


class Admission:
    """Counts the requests that run, and ends them when the server stops.

    ``most``: requests at once. ``state`` is what ``/ready`` tells.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.state: ServerState = "starting"
        self.until = 0.0
        """when the server ends, in the time of ``time.monotonic``"""
        self.running: set[asyncio.Task[object]] = set()
        self.failure: BaseException | None = None
        """why the engine could not be opened, or ended by itself"""
        self.settled = asyncio.Event()
        """set when the engine is open, or could not be opened"""
        self.failed = asyncio.Event()
        self._changed = asyncio.Event()

    def open(self) -> None:
        """Take requests on from now, unless the server stops already."""
        if self.state == "starting":
            self.state = "open"
        self.settled.set()

    def fail(self, error: BaseException) -> None:
        """Take no requests on, because there is no engine."""
        self.failure = error
        self.state = "stopping"
        self.settled.set()
        self.failed.set()

    async def drain(self, grace: float) -> int:
        """Take no more requests on, wait for those that run, and cancel them after ``grace`` seconds.

        Return how many were cancelled.
        """
        self.state = "stopping"
        self.until = time.monotonic() + grace
        while self.running and (left := self.until - time.monotonic()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                break
        rest = list(self.running)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        return len(rest)

    def enter(self, task: asyncio.Task[object]) -> None:
        """Note that a request runs."""
        self.running.add(task)

    def leave(self, task: asyncio.Task[object]) -> None:
        """Note that a request has ended."""
        self.running.discard(task)
        self._changed.set()


class AdmissionGuard:
    """Lets a request of the API pass if the :class:`Admission` has room for it.

    ``stalled``: seconds after which a client that takes none of its answer is disconnected
    """

    def __init__(self, app: ASGIApp, admission: Admission, stalled: float) -> None:
        self._app, self._admission, self._stalled = app, admission, stalled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        admission = self._admission
        if admission.state == "starting":
            await refuse(send, _unavailable("starting", "the model is still being loaded", 5), receive)
        elif admission.state == "stopping":
            await refuse(send, _unavailable("stopping", _STOPPING, admission.until - time.monotonic()), receive)
        elif len(admission.running) >= admission.most:
            message = f"the server answers {admission.most} requests already: ask it again in a second"
            code, headers = "too_many_requests", {"retry-after": "1"}
            await refuse(send, ApiError(429, message, type="rate_limit_error", code=code, headers=headers), receive)
        else:
            await self._admitted(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        answer = _Answer(send, self._stalled)
        self._admission.enter(task)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if self._admission.state != "stopping":
                raise
            await answer.cut()
        except (OSError, ClientDisconnect):
            if not answer.stalled:
                raise
        finally:
            self._admission.leave(task)


def _unavailable(code: str, message: str, wait: float) -> ApiError:
    """Return the error of a server that takes no requests now; ``wait``: seconds until another try may succeed."""
    headers = {"retry-after": str(max(1, math.ceil(wait))), "connection": "close"}
    return ApiError(503, message, type="server_error", code=code, headers=headers)


class _Answer:
    """A response on its way, which can be ended with an error if the server stops in the middle of it."""

    def __init__(self, send: Send, stalled: float) -> None:
        self._send, self._stalled = send, stalled
        self._began = self._ended = self._is_stream = False
        self.stalled = False
        """whether the client took nothing for too long"""

    async def send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stalled):
                await self._send(message)
        except TimeoutError:
            self.stalled = True
            raise
        if message["type"] == "http.response.start":
            self._began = True
            self._is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream") for name, value in message["headers"]
            )
        else:
            self._ended = not message.get("more_body", False)

    async def cut(self) -> None:
        """End the response: with the status 503, or with an error event in a stream."""
        if not self._began:
            await refuse(self._send, _unavailable("stopping", _STOPPING, 1))
        elif self._is_stream and not self._ended:
            event = json.dumps(_unavailable("stopping", _STOPPING, 1).body)
            body = f"data: {event}\n\n".encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
