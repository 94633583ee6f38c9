"""What stands before the pages: the login with the server's key, and the only paths that the pages need.

Gradio has routes that read files, take uploads and fetch other addresses. None of them is among these paths, so they do
not have to be turned off one by one.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.resources
import json
import re
import secrets
import time

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "skillweave_session"
_SESSION_SECONDS = 12 * 3600
_LONGEST_LOGIN = 2**14
_OPEN = ("GET /login", "POST /login")
_FILES = re.compile(r"/(?:theme\.css|(?:static|assets|svelte)/[\w./@+-]+)")
_READ = re.compile(r"/|/config/?|/gradio_api/(?:queue/data|startup-events|heartbeat/\w+)")
_WRITTEN = re.compile(r"/gradio_api/(?:queue/join|cancel|reset)/?")
_FOREIGN = re.compile(r'<link rel="manifest"[^>]*>|<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')
_ICON = '<link rel="icon" href="data:,">'
HEADERS = {
    # Gradio's own scripts are inline and compile templates. Nothing comes from, or goes to, another address.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Sessions:
    """Tickets for browsers that have shown the key. They are valid for some hours, and in this process alone."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._secret = secrets.token_bytes(32)

    def ticket(self, given: str) -> str | None:
        """Return a ticket, or None for a wrong key."""
        # The time of the comparison must not tell how many characters are right.
        if not hmac.compare_digest(given.encode(), self._key):
            return None
        until = str(int(time.time()) + _SESSION_SECONDS)
        return f"{until}.{self._sign(until)}"

    def valid(self, ticket: str) -> bool:
        """Return whether the ticket is one of this process and still valid."""
        until, _, signature = ticket.partition(".")
        signed = hmac.compare_digest(signature.encode(), self._sign(until).encode())
        return signed and time.time() < int(until)

    def _sign(self, until: str) -> str:
        return hmac.new(self._secret, until.encode(), hashlib.sha256).hexdigest()


class PlaygroundGate:
    """Lets requests for the pages pass: those of browsers that are logged in, and only for what the pages need.

    ``key``: what people must give; None: everybody who reaches the server may see the pages
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._sessions = None if key is None else Sessions(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        request = Request(scope, receive)
        answer = await self._answer(request)
        if answer is not None:
            await answer(scope, receive, guarded)
        elif _path(request) == "/":
            await (await _rewritten(self._app, scope, receive))(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    async def _answer(self, request: Request) -> Response | None:
        """Return the response to a request that does not reach the pages, or None for one that does."""
        path = _path(request)
        method = "GET" if request.method == "HEAD" else request.method
        # A browser says so if the script of another page sends the request.
        foreign = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if foreign and not (method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"):
            return _refusal(403, "the pages of the playground take requests only from themselves")
        if self._sessions is not None:
            if f"{method} {path}" in _OPEN:
                return await _login(request, self._sessions)
            if not self._sessions.valid(request.cookies.get(COOKIE, "")):
                if path == "/":
                    return RedirectResponse("login", 303, headers={"cache-control": "no-store"})
                return _refusal(401, "log in first: open the playground in a browser")
        if method == "GET":
            known = _READ.fullmatch(path) or _FILES.fullmatch(path)
        else:
            known = _WRITTEN.fullmatch(path) if method == "POST" else None
        return None if known else _refusal(404, "the playground does not have this")


def _path(request: Request) -> str:
    """Return the path below the place where the pages are mounted."""
    return str(request.scope["path"]).removeprefix(request.scope.get("root_path", "")) or "/"


async def _rewritten(app: ASGIApp, scope: Scope, receive: Receive) -> Response:
    """Return the page without what belongs to Gradio: a manifest and an icon at the root, and names of other sites."""
    messages: list[Message] = []

    async def kept(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, kept)
    status = next(message["status"] for message in messages if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in messages)
    page = _FOREIGN.sub("", body.decode("utf-8")).replace("<head>", f"<head>{_ICON}", 1)
    return HTMLResponse(page, status, headers={"cache-control": "no-store"})


async def _login(request: Request, sessions: Sessions) -> Response:
    if request.method != "POST":
        return _login_page()
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_LOGIN:
            return _refusal(413, "this is no key")
    try:
        given = json.loads(body)["key"].strip()
        ticket = sessions.ticket(given)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _refusal(400, 'send {"key": "..."} as JSON')
    if ticket is None:
        return _refusal(401, "This is not the key of the server.")
    response = JSONResponse({"ok": True})
    response.set_cookie(
        COOKIE, ticket, max_age=_SESSION_SECONDS, path=request.scope.get("root_path", "") or "/", httponly=True,
        samesite="strict", secure=request.url.scheme == "https",
    )  # fmt: skip
    return response


def _login_page() -> Response:
    page = importlib.resources.files(__package__).joinpath("login.html").read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"cache-control": "no-store"})


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)
