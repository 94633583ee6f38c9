"""The JSON in the body of a request: parsed once, where the guards check it, and kept for the route that answers it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from skillweave.errors import UserError
from skillweave.files.parse_json import parse_json
from skillweave.serve.errors import ApiError

_KEPT = "skillweave.json"


def parse_body(body: bytes) -> Any:
    """Return the JSON value of a body.

    Raises :class:`UserError` for text that is not UTF-8, a key that stands twice in an object, NaN and numbers that no
    request has, half characters, and lists and objects that are nested too deeply.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the body is not UTF-8 (at byte {error.start}): encode it as UTF-8") from None
    return parse_json(text, "the body", bounded=True)


def keep_json(scope: Scope, value: Any) -> None:
    """Keep the value of a request's body for :func:`json_of`."""
    scope[_KEPT] = value


async def json_of(request: Request) -> Any:
    """Return the JSON value of a request's body. Raises :class:`ApiError` for a body that is none."""
    if _KEPT in request.scope:
        return request.scope[_KEPT]
    try:
        return parse_body(await request.body())
    except UserError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
