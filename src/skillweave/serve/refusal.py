"""Answer a request with an error before it reaches the routes."""

from __future__ import annotations

import asyncio
import contextlib
import json

from starlette.types import Receive, Send

from skillweave.serve.errors import ApiError

_LINGER_SECONDS = 2.0
_LINGER_BYTES = 2**26


async def refuse(send: Send, error: ApiError, unread: Receive | None = None) -> None:
    """Send an error as the whole response.

    ``unread``: gives the rest of the request's body. It is read and thrown away for a while, because the system resets
    a connection that is closed with unread bytes, and a client that still sends would then not see the response.
    """
    body = json.dumps(error.body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    if unread is None:
        await send({"type": "http.response.body", "body": body})
        return
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            await _thrown_away(unread)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _thrown_away(unread: Receive) -> None:
    size = 0
    while size <= _LINGER_BYTES:
        message = await unread()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
