"""Who may ask the server, and what a request may look like: guards that stand before the API.

Each guard is a layer of ASGI: it answers a request that must not pass, and hands every other one on.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skillweave.errors import UserError
from skillweave.serve.body import keep_json, parse_body
from skillweave.serve.errors import ApiError
from skillweave.serve.logs import current_record
from skillweave.serve.refusal import refuse
from skillweave.units import human_bytes

OPEN_PATHS = ("/health", "/ready")
"""Paths that need no key: they tell nothing but the state of the process."""
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?")
_LARGE = 2**16
"""A body of more bytes is parsed in a thread, so that other requests do not wait for it."""


# -- at the start ------------------------------------------------------------------------------------------------------


def address_of(
    host: str, port: int, key: str | None, origins: Collection[str] = ()
) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the address to listen on. The name is resolved once, so what is checked is what is bound.

    Raises :class:`UserError` if there is no key and the server could be reached from other machines, or by the scripts
    of any web page.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host!a:.100}: no address is known for this name ({error}): use 127.0.0.1") from error
    others = [str(where[0]) for *_, where in found if not _is_loopback(str(where[0]))]
    if key is None and others:
        meaning = (
            "all interfaces of this machine" if ipaddress.ip_address(_plain(others[0])).is_unspecified else others[0]
        )
        raise UserError(
            f"--host {host!a:.100} means {meaning}, which other machines can reach, and there is no key: everybody "
            "there could use the model. Set SKILLWEAVE_API_KEY or --api-key-file, or listen on 127.0.0.1"
        )
    if key is None and "*" in origins:
        raise UserError(
            "--cors-origin '*' lets every web page use the model, and there is no key: name the pages, or set a key"
        )
    family, _, _, _, where = sorted(found, key=lambda one: one[0] != socket.AF_INET)[0]
    return family, where


def _plain(address: str) -> str:
    return address.partition("%")[0]  # an IPv6 address may name its interface


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(_plain(address)).is_loopback


# -- for each request --------------------------------------------------------------------------------------------------


class KeyGuard:
    """Lets requests pass that carry the key as ``Authorization: Bearer KEY``; :data:`OPEN_PATHS` need none.

    ``pages``: a path; it and what is below it have a login of their own
    """

    def __init__(self, app: ASGIApp, key: str, pages: str | None = None) -> None:
        self._app, self._key, self._pages = app, key.encode(), pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope["path"]) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        message = "this server needs its key: send it in the header 'Authorization: Bearer KEY'"
        error = ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        await refuse(send, error, receive)

    def _is_open(self, path: str) -> bool:
        below = self._pages is not None and (path == self._pages or path.startswith(f"{self._pages}/"))
        return path in OPEN_PATHS or below

    def _has_key(self, scope: Scope) -> bool:
        given = _header(scope, b"authorization")
        scheme, _, key = (given or b"").partition(b" ")
        # The time of the comparison must not tell how many characters are right.
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


class HostGuard:
    """Lets requests pass that name this machine in their Host header; for a server without a key.

    A web page of a stranger can point its own name at 127.0.0.1 (DNS rebinding). The browser then takes this server for
    a part of that page, but still sends the page's name.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {*_LOOPBACK_NAMES, host.lower().strip("[]")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_ours(_header(scope, b"host")):
            await self._app(scope, receive, send)
            return
        message = (
            "without a key, this server answers only requests to localhost: use http://127.0.0.1 in the address, or "
            "start the server with a key"
        )
        await refuse(send, ApiError(403, message, code="host_not_allowed"), receive)

    def _is_ours(self, header: bytes | None) -> bool:
        match = _HOST.fullmatch((header or b"").decode("latin-1"))
        return match is not None and (match[1] or match[2]).lower().removesuffix(".") in self._names


class BodyGuard:
    """Reads the whole body of a request, and lets it pass if it is complete, not too large and well-formed JSON.

    - ``largest``: bytes; chunks are counted too, so a body without a Content-Length has the same limit
    - ``seconds``: for the whole body; a client that sends a byte now and then cannot keep its place
    """

    def __init__(self, app: ASGIApp, largest: int, seconds: float) -> None:
        self._app, self._largest, self._seconds = app, largest, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        whole = False

        async def noted() -> Message:
            nonlocal whole
            message = await receive()
            whole = not message.get("more_body", False)
            return message

        try:
            body = await self._checked_body(scope, noted)
        except ApiError as error:
            await refuse(send, error, None if whole else receive)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    async def _checked_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body, or None if the client has gone away. Its value is kept, so that it is parsed only once.

        Raises :class:`ApiError` for one that must not pass.
        """
        length = _header(scope, b"content-length") or b"0"
        if not length.isdigit():
            raise ApiError(400, "the Content-Length is not a number", code="invalid_header")
        if int(length[:20]) > self._largest:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except TimeoutError:
            message = f"the body was not complete within {self._seconds:g} seconds: send it faster"
            raise ApiError(408, message, code="body_timeout") from None
        if not body:
            return body
        if len(body) > self._largest:
            raise self._too_large()
        _check_type(_header(scope, b"content-type"))
        packed = (_header(scope, b"content-encoding") or b"").decode("latin-1").strip()
        if packed.lower() not in ("", "identity"):
            raise ApiError(
                400, f"the Content-Encoding is {packed!a:.60}: send the body as it is", code="invalid_header"
            )
        try:
            value = await asyncio.to_thread(parse_body, body) if len(body) > _LARGE else parse_body(body)
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_json") from None
        current_record().read(value)
        keep_json(scope, value)
        return body

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, or its beginning if it is too large; None if the client has gone away."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._largest or not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {human_bytes(self._largest)}: send less, or raise max_body"
        return ApiError(413, message, code="body_too_large", headers={"connection": "close"})


def _check_type(header: bytes | None) -> None:
    # Scripts of other web pages can send text/plain without asking the browser, but not application/json.
    kind = (header or b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind != "application/json":
        found = f"the Content-Type is {kind!a:.60}" if kind else "there is no Content-Type"
        raise ApiError(400, f"{found}: send 'application/json'", code="invalid_content_type")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body once, and then what the client does."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header; None if it is missing, or if it stands twice, because then two readers may differ."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None
