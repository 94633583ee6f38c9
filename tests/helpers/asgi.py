"""Call an ASGI application without a server, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Response:
    """What an application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


async def call(
    app: ASGIApp,
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: Iterable[tuple[str, str]] = (("content-type", "application/json"),),
    chunks: Iterable[bytes] = (b"{}",),
    pause: float = 0.0,
) -> Response:
    """Send one request, whose body comes in chunks with pauses between them, and return the response."""
    parts = list(chunks)
    response = Response()

    async def receive() -> Message:
        if not parts:
            await asyncio.sleep(3600)
        await asyncio.sleep(pause)
        body = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            response.status = message["status"]
            response.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            response.body += message.get("body", b"")

    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return response


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with the body that it is sent."""
    body = b""
    if scope["method"] != "GET":
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
