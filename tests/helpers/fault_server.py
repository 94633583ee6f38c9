"""A real HTTP server that speaks OpenAI's API, and fails as it is told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass(frozen=True)
class Reply:
    """What the server sends.

    - ``body``: a text, or a value that is sent as JSON; None is a completion of ``answer``
    - ``how``: ``cut``: the connection is closed after half of the body; ``hang up``: before anything is sent; ``hang``:
      nothing is ever sent; ``drip``: the body is sent character by character, for seconds
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    answer: str = "fine"
    how: Literal["whole", "cut", "hang up", "hang", "drip"] = "whole"


def completion_body(text: Any, ended: str = "stop", **more: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": ended}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


class FaultServer:
    """Sends the replies in the order of the requests; after the last one, ``after`` for every request.

    ``after`` may be a function of the request. ``requests`` are the bodies of all completions that were asked for,
    ``paid`` of those that were answered in full, and ``keys`` the headers with the key.
    """

    def __init__(self, *replies: Reply, after: Reply | Callable[[dict[str, Any]], Reply] = Reply()) -> None:
        self.replies = list(replies)
        self.after = after
        self.models: Any = {"data": [{"id": "m"}, {"id": "other"}]}
        self.requests: list[dict[str, Any]] = []
        self.paid: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Listen on the port; after :meth:`die`, the server comes back there."""
        self._stop.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """Close the port and all connections."""
        if self._server is not None:
            self._stop.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _next(self, request: dict[str, Any]) -> Reply:
        with self._lock:
            self.requests.append(request)
            reply = self.replies.pop(0) if self.replies else self.after
            reply = reply(request) if callable(reply) else reply
            if reply.status == 200 and reply.body is None and reply.how == "whole":
                self.paid.append(request)
            return reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.keys.append(self.headers["Authorization"])
                found = self.path == "/v1/models" and server.models is not None
                self._send(Reply(200 if found else 404, server.models if found else {"error": {"message": "no route"}}))

            def do_POST(self) -> None:
                server.keys.append(self.headers["Authorization"])
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(server._next(request))

            def _send(self, reply: Reply) -> None:
                self.close_connection = True
                if reply.how == "hang":
                    server._stop.wait(10)
                if reply.how in ("hang", "hang up"):
                    return
                body = completion_body(reply.answer) if reply.body is None else reply.body
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(reply.status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close"}
                for name, value in (headers | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    if reply.how == "drip":
                        for byte in data:
                            self.wfile.write(bytes([byte]))
                            time.sleep(0.02)
                    else:
                        self.wfile.write(data[: len(data) // 2] if reply.how == "cut" else data)
                except OSError:  # the client has gone away, as it does after its time-out
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def fault_server(*replies: Reply, after: Reply | Callable[[dict[str, Any]], Reply] = Reply()) -> Iterator[FaultServer]:
    """A running server."""
    server = FaultServer(*replies, after=after)
    server.start()
    try:
        yield server
    finally:
        server.die()
