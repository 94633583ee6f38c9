"""Errors that are sent before a request reaches the API, in the shape of OpenAI's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Send


def error_body(message: str, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """Return the body of an error as OpenAI writes it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def refuse(
    send: Send,
    status: int,
    code: str,
    message: str,
    *,
    kind: str = "invalid_request_error",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send an error as the whole response."""
    body = json.dumps(error_body(message, code, kind)).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
