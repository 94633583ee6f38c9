"""Connections: what is no HTTP, clients that begin a request and do not end it, and too many connections."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.live_server import live
from helpers.small_server import SmallEngine, small_service
from skillweave.serve import connection
from skillweave.serve.app import create_app
from skillweave.serve.settings import ServeConfig

HOST = b"Host: 127.0.0.1\r\n"
CHUNKED = HOST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"


@contextlib.contextmanager
def running(engine: SmallEngine | None = None, **settings: Any) -> Iterator[int]:
    """The port of a server."""
    app = create_app(small_service(engine), ServeConfig(**settings), None, write_log=lambda _: None)
    with live(app) as url:
        yield int(url.rsplit(":", 1)[1])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running() as found:
        yield found


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def sent(port: int, data: bytes) -> bytes:
    """What the server says until it closes the connection."""
    with connected(port) as client:
        client.sendall(data)
        return rest(client)


def rest(client: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(2**16):
            got += part
    return got


def refusal(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head[9:12]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01" + bytes(64),
        b"GET\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        POST + HOST + b"Content-Length: -4\r\n\r\n",
        POST + CHUNKED + b"zz\r\n",
        POST + CHUNKED + b"2\r\n{}\r\nzz\r\n",
        POST + CHUNKED + b"2\r\n{}XX0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_the_shape_of_the_api(port: int, data: bytes) -> None:
    status, error = refusal(sent(port, data))
    assert (status, error["code"]) == (400, "invalid_http")
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /v1/models HTTP/1.1\r\n" + CHUNKED,
        b"OPTIONS /v1/models HTTP/1.1\r\n" + CHUNKED,
        POST + HOST + b"Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5000000\r\n" + b"x" * (5 * 2**20),
        POST.replace(b"127", b"1") + CHUNKED.replace(b"127.0.0.1", b"evil.example"),
    ],
)
@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_broken_chunk_leaves_no_traceback(
    port: int, begin: bytes, pause: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), connected(port) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(begin)
            time.sleep(pause)
            client.sendall(b"\r\nzz\r\n" * 10)
        rest(client)
        time.sleep(0.1)
    assert not [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()]
    assert "failed" not in caplog.text


def test_a_head_that_does_not_end_is_given_up() -> None:
    with running(body_seconds=0.4) as port:
        began = time.monotonic()
        with connected(port) as client:
            for byte in b"GET /health HTTP/1.1\r\nx-slow: aaa":
                with contextlib.suppress(ConnectionError):
                    client.sendall(bytes([byte]))
                time.sleep(0.02)
            status, error = refusal(rest(client))
        assert (status, error["code"]) == (408, "head_timeout")
        assert time.monotonic() - began < 5


def test_a_connection_without_a_request_is_closed() -> None:
    with running(body_seconds=0.3) as port, connected(port) as idle, connected(port) as used:
        used.sendall(GET)
        assert used.recv(2**16).startswith(b"HTTP/1.1 200")
        used.sendall(b"G")  # from here on uvicorn itself waits without an end
        assert rest(idle) == b""
        assert b"HTTP/1.1 408" in rest(used)


def test_an_answer_may_take_longer_than_a_head() -> None:
    with running(SmallEngine("abcd", pause=0.3), body_seconds=0.3) as port:
        body = json.dumps({"model": "sort", "messages": [{"role": "user", "content": "x"}]}).encode()
        head = POST + HOST + b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        assert sent(port, head % len(body) + body).startswith(b"HTTP/1.1 200")


def test_too_many_connections_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillweave.serve.run.most_connections", lambda _: 3)
    with running() as port, contextlib.ExitStack() as stack:
        time.sleep(0.2)
        for _ in range(3):
            stack.enter_context(connected(port))
        time.sleep(0.2)
        status, error = refusal(sent(port, b""))
        assert (status, error["code"]) == (503, "too_many_connections")
        stack.close()
        time.sleep(0.2)
        assert sent(port, GET.replace(HOST, HOST + b"Connection: close\r\n")).startswith(b"HTTP/1.1 200")


def test_there_are_never_more_connections_than_files() -> None:
    files, _ = connection.resource.getrlimit(connection.resource.RLIMIT_NOFILE)
    assert 64 <= connection.most_connections(10**9) <= max(64, files)
    assert connection.most_connections(1) == 64


def test_a_client_that_reads_nothing_is_cut_off_also_after_the_server_closed() -> None:
    with running(SmallEngine("x" * 20_000), stalled_seconds=1.0, body_seconds=1.0) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
            client.setblocking(False)
            until = time.monotonic() + 20
            with contextlib.suppress(BlockingIOError):
                while time.monotonic() < until:  # answers without an end that nobody reads
                    client.send((b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n") * 100)
            # The system tells an error on this socket when the server has reset it.
            while time.monotonic() < until:
                if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return
                with contextlib.suppress(BlockingIOError):
                    try:
                        client.send(b"x")
                    except (ConnectionError, BrokenPipeError):
                        return
                time.sleep(0.1)
        raise AssertionError("the connection is still open")
