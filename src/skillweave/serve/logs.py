"""The log: one line for each request, as JSON or as text, without what was asked unless that is wanted."""

from __future__ import annotations

import datetime
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skillweave.serve.settings import PLAYGROUND
from skillweave.terminal import one_line

LogForm = Literal["json", "text"]
GONE = 499
"""The status in the log if the client went away before it got any."""
_PROBED = ("/health", "/ready", "/metrics")
"""Paths that machines ask every few seconds; only their failures are logged. So it is with the pages of the
playground, which ask for their news."""
_LONGEST_NAME = 200


@dataclass
class RequestRecord:
    """What is known about one HTTP request. A request may have several answers: tokens are added up over them."""

    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(8)}")
    model: str | None = None
    packs: list[str] = field(default_factory=list)
    """the pack of each answer; `base` is the plain base"""
    confidence: float | None = None
    """how sure the router was of the last answer's pack; None: the client named it"""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float | None = None
    ended: str | None = None
    asked: Any = None
    status: int = GONE

    def read(self, body: Any) -> None:
        """Keep what the body of a request says about it."""
        if isinstance(body, dict):
            model = body.get("model")
            self.model = model if isinstance(model, str) else None
            self.asked = body.get("messages", body.get("prompt"))


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("skillweave_request", default=None)


def current_record() -> RequestRecord:
    """Return the record of the request that this task works for; one that nobody reads if there is none."""
    return _CURRENT.get() or RequestRecord()


class RequestLog:
    """Writes a line for each request when it has ended, and tells the client its id in the header ``x-request-id``.

    - ``write``: takes a line without its line break
    - ``prompts``: whether the lines hold what was asked
    - ``count``: takes the status of each request that is logged
    """

    def __init__(
        self, app: ASGIApp, write: Callable[[str], None], form: LogForm, prompts: bool, count: Callable[[int], None]
    ) -> None:
        self._app, self._write, self._form, self._prompts, self._count = app, write, form, prompts, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord()
        token = _CURRENT.set(record)
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            record.status = 500 if record.status == GONE else record.status
            raise
        finally:
            _CURRENT.reset(token)
            if record.status >= 400 or not _is_quiet(scope["path"]):
                self._count(record.status)
                fields = self._fields(record, scope, time.perf_counter() - began)
                self._write(as_json(fields) if self._form == "json" else as_text(fields))

    def _fields(self, record: RequestRecord, scope: Scope, seconds: float) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC)
        fields = {
            "time": now.isoformat(timespec="milliseconds"),
            "id": record.id,
            "client": (scope.get("client") or [None])[0],
            "request": one_line(f"{scope['method']} {scope['path']}", _LONGEST_NAME),
            "status": record.status,
            "seconds": round(seconds, 3),
            "model": None if record.model is None else one_line(record.model, _LONGEST_NAME),
            "pack": ",".join(dict.fromkeys(record.packs)) or None,
            "confidence": None if record.confidence is None else round(record.confidence, 3),
            "prompt_tokens": record.prompt_tokens or None,
            "completion_tokens": record.completion_tokens or None,
            "first_token_seconds": None if record.first_token_seconds is None else round(record.first_token_seconds, 3),
            "ended": record.ended,
            "asked": record.asked if self._prompts else None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _is_quiet(path: str) -> bool:
    return path in _PROBED or path.startswith(f"{PLAYGROUND}/")


def as_json(fields: dict[str, Any]) -> str:
    """Return the fields as one line of JSON in ASCII, so that no value can begin a line of its own."""
    return json.dumps(fields, ensure_ascii=True)


def as_text(fields: dict[str, Any]) -> str:
    """Return the fields as ``name=value`` on one line; a value that is no plain word is quoted as in JSON."""
    return " ".join(
        f"{name}={value if _is_plain(value) else json.dumps(value, ensure_ascii=True)}"
        for name, value in fields.items()
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str) and value.isascii() and value.isprintable() and not set(' "=\\') & set(value)
    )


class StderrLog:
    """Writes lines to standard error, whatever state its disk or its reader is in.

    A line that cannot be written is counted, and the next one that can be is preceded by the count.
    """

    def __init__(self, form: LogForm) -> None:
        self._form, self._lost, self._torn = form, 0, False

    def __call__(self, line: str) -> None:
        """Write a line without its line break."""
        text = f"{line}\n"
        if self._lost:
            told = {"warning": f"{self._lost} lines of the log could not be written"}
            text = f"{as_json(told) if self._form == 'json' else as_text(told)}\n{text}"
        data = f"\n{text}".encode() if self._torn else text.encode()
        try:
            # Without Python's buffer, which keeps what it could not write, and writes it twice or torn later.
            written = os.write(sys.stderr.fileno(), data)
        except OSError:
            written = 0
        if written == len(data):
            self._lost, self._torn = 0, False
        else:
            self._lost += 1
            self._torn = self._torn or written > 0


def form_of_log(wanted: Literal["auto", "json", "text"]) -> LogForm:
    """Return the form of the log's lines: for ``auto``, text on a terminal, else JSON."""
    if wanted == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return wanted
