"""Responses that are streams of server-sent events, and give their answers up when they end for any reason."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response):
    """Sends events as they come. ``close`` is called at the end, perhaps twice, also if nothing was sent.

    Starlette's own streams notice a client that left only when they send. Here the answers themselves watch the
    client (:class:`~skillweave.serve.openai.answers.Answers`), and their stream ends when it is gone.
    """

    def __init__(
        self, events: AsyncIterator[str], close: Callable[[], Awaitable[None]], headers: Mapping[str, str]
    ) -> None:
        super().__init__(status_code=200, headers={**_HEADERS, **headers})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
                async for event in events:
                    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await self._close()  # before the client knows that the answer is complete
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._close()


def data_event(body: str) -> str:
    """Return an event without a name."""
    return f"data: {body}\n\n"


def named_event(name: str, body: str) -> str:
    """Return an event with a name."""
    return f"event: {name}\ndata: {body}\n\n"


DONE = data_event("[DONE]")
