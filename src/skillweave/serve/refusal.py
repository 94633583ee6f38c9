"""Answer a request with an error before it reaches the routes."""

from __future__ import annotations

import json

from starlette.types import Send

from skillweave.serve.errors import ApiError


async def refuse(send: Send, error: ApiError) -> None:
    """Send an error as the whole response."""
    body = json.dumps(error.body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
