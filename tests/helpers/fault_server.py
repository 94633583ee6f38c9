"""A local server with OpenAI's API that fails as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str
"""ok, slow, limited (429), error (500), garbage, cut, empty, no-usage, thinking, hang-up, refused (400), key (401),
no-seed or new-limit"""


class FaultServer:
    """Answers chat completions with ``answer(body)``, or fails as ``fault(number, body)`` says for request ``number``.

    ``answered`` counts the completed answers by prompt and seed: what a user pays for. ``bodies`` are all requests.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], str], fault: Callable[[int, dict[str, Any]], Fault]) -> None:
        self.answer, self.fault = answer, fault
        self.answered: Counter[tuple[str, int]] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = ["tester", "other"]
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def _counted(self) -> Iterator[int]:
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            number = len(self.bodies)
        try:
            yield number
        finally:
            with self._lock:
                self.in_flight -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: object) -> None:
                pass

            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._counted() as number:
                    server.bodies.append(body)
                    server.headers.append({name.lower(): text for name, text in self.headers.items()})
                    self._fail_or_answer(server.fault(number, body), body)

            def _fail_or_answer(self, fault: Fault, body: dict[str, Any]) -> None:
                if fault == "slow":
                    time.sleep(0.4)
                elif fault == "limited":
                    return self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"})
                elif fault == "error":
                    return self._send(500, {"error": {"message": "oops"}})
                elif fault == "refused":
                    return self._send(400, {"error": {"message": "the prompt is too long"}})
                elif fault == "key":
                    return self._send(401, {"error": {"message": "bad key"}})
                elif fault == "no-seed" and "seed" in body:
                    return self._send(400, {"error": {"message": "unknown parameter: seed"}})
                elif fault == "new-limit" and "max_tokens" in body:
                    return self._send(400, {"error": {"message": "use max_completion_tokens instead of max_tokens"}})
                elif fault == "garbage":
                    return self._send(200, b"<html>not JSON")
                elif fault == "hang-up":
                    self.close_connection = True
                    self.connection.close()
                    return None
                text = server.answer(body)
                reply: dict[str, Any] = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                    ],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
                }
                if fault == "empty":
                    return self._send(200, reply | {"choices": []})
                if fault == "no-usage":
                    reply.pop("usage")
                if fault == "thinking":
                    reply["choices"][0] |= {
                        "finish_reason": "length",
                        "message": {"role": "assistant", "content": None},
                    }
                if fault == "cut":
                    return self._send(200, json.dumps(reply).encode()[:40], longer=500)
                if fault != "slow":
                    with server._lock:
                        server.answered[body["messages"][-1]["content"], body.get("seed", 0)] += 1
                return self._send(200, reply)

            def _send(self, status: int, value: Any, headers: dict[str, str] | None = None, longer: int = 0) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data) + longer))
                    for name, text in (headers or {}).items():
                        self.send_header(name, text)
                    self.end_headers()
                    self.wfile.write(data)
                    if longer:
                        self.close_connection = True
                        self.connection.close()
                except OSError:  # the client has gone away, as it does after its time-out
                    self.close_connection = True

        return Handler
