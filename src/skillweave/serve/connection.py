"""The connections of the server: what is no HTTP is refused in the API's shape, and none stays open without a request.

uvicorn speaks HTTP, but it waits without an end for the head of a request, answers what is no HTTP in a shape of its
own, and fails with a traceback if a body breaks the rules of HTTP when its answer has begun.
"""

from __future__ import annotations

import asyncio
import json
import resource
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from skillweave.serve.errors import ApiError

_OTHER_FILES = 256
"""Open files that the server may need beside its connections: packs, the model, the log."""


class ApiConnection(H11Protocol):
    """One connection.

    - ``seconds``: from its begin, or the end of the last answer, until the head of a request is complete
    - ``most``: connections at once; a further one is told so, and closed
    """

    def __init__(self, *args: Any, seconds: float, most: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds, self._most = seconds, most
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            message = f"the server has {self._most} connections already: close some, or ask again in a second"
            code, headers = "too_many_connections", {"retry-after": "1"}
            self._refuse(ApiError(503, message, type="server_error", code=code, headers=headers))
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP. If it is in the body of a request, the application sees a client that has left."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._refuse(ApiError(400, "this is no HTTP request that the server can read", code="invalid_http"))

    def _watch_head(self) -> None:
        """Let the clock run while no request is being answered."""
        waits = self.cycle is None or self.cycle.response_complete
        if waits and not self.transport.is_closing():
            self._head_timer = self._head_timer or self.loop.call_later(self._seconds, self._late)
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        if self.conn.trailing_data[0]:
            message = f"the head of the request was not complete within {self._seconds:g} seconds: send it faster"
            self._refuse(ApiError(408, message, code="head_timeout"))
        self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Send an error if no other answer has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            headers = [(name.encode(), value.encode()) for name, value in {**fields, **error.headers}.items()]
            reason = HTTPStatus(error.status).phrase.encode()
            events = [
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ]
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


def most_connections(requests: int) -> int:
    """Return how many connections a server for so many requests keeps open: as many as the system lets it have.

    Clients keep connections open between their requests, so there may be more of them than requests.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(16 * requests, files - _OTHER_FILES))
