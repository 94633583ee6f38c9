"""Which requests are taken on now: none before the engine is open, not too many, and none when the server stops."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any, Literal

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skillweave.serve.errors import ApiError
from skillweave.serve.refusal import refuse

_API = "/v1/"
_STOPPING = "the server is stopping: ask it again when it is back"
_LAST_WORDS = 1.0
"""Seconds for pages to get the end of an answer that was given up."""

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
        self.running: set[asyncio.Future[Any]] = set()
        """the answers that are being written; cancelling one gives it up"""
        self.pages: set[asyncio.Future[Any]] = set()
        """other requests, which may stay open for as long as a browser shows a page"""
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

    async def close_pages(self) -> None:
        """End the other requests. Pages get their answers through them, so this comes after :meth:`drain`."""
        pages = list(self.pages)
        if pages:  # a page is still being told how its answer ended
            await asyncio.wait(pages, timeout=_LAST_WORDS)
        for page in pages:
            page.cancel()
        await asyncio.gather(*pages, return_exceptions=True)

    @property
    def full(self) -> ApiError | None:
        """Why no further request is taken on now; None if there is room."""
        if len(self.running) < self.most:
            return None
        message = f"the server answers {self.most} requests already: ask it again in a second"
        headers = {"retry-after": "1"}
        return ApiError(429, message, type="rate_limit_error", code="too_many_requests", headers=headers)

    def enter(self, answer: asyncio.Future[Any]) -> None:
        """Note that an answer is being written."""
        self.running.add(answer)

    def leave(self, answer: asyncio.Future[Any]) -> None:
        """Note that an answer has ended."""
        self.running.discard(answer)
        self._changed.set()


class AdmissionGuard:
    """Lets a request of the API pass if the :class:`Admission` has room for it; others pass always.

    ``stalled``: seconds after which a client that takes none of its answer is disconnected
    """

    def __init__(self, app: ASGIApp, admission: Admission, stalled: float) -> None:
        self._app, self._admission, self._stalled = app, admission, stalled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        admission = self._admission
        if not scope["path"].startswith(_API):
            await self._passed(scope, receive, send)
        elif admission.state == "starting":
            await refuse(send, _unavailable("starting", "the model is still being loaded", 5), receive)
        elif admission.state == "stopping":
            await refuse(send, _unavailable("stopping", _STOPPING, admission.until - time.monotonic()), receive)
        elif (full := admission.full) is not None:
            await refuse(send, full, receive)
        else:
            await self._answered(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
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

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        pages, task = self._admission.pages, asyncio.current_task()
        assert task is not None
        response = _Answer(send, None)
        pages.add(task)
        try:
            await self._app(scope, receive, response.send)
        except asyncio.CancelledError:
            if self._admission.state != "stopping":
                raise
            await response.end()
        finally:
            pages.discard(task)


def _unavailable(code: str, message: str, wait: float) -> ApiError:
    """Return the error of a server that takes no requests now; ``wait``: seconds until another try may succeed."""
    headers = {"retry-after": str(max(1, math.ceil(wait))), "connection": "close"}
    return ApiError(503, message, type="server_error", code=code, headers=headers)


class _Answer:
    """A response on its way, which can be ended with an error if the server stops in the middle of it."""

    def __init__(self, send: Send, stalled: float | None) -> None:
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

    async def end(self) -> None:
        """End the response where it is, without a word; with the status 503 if it has not begun."""
        if not self._began:
            await refuse(self._send, _unavailable("stopping", _STOPPING, 1))
        elif not self._ended:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
