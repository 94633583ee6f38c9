"""The running server: its address, and how it stops: draining, the end of the grace time, a second signal."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from helpers.small_server import SmallEngine, small_service
from skillweave.errors import UserError
from skillweave.serve.app import create_app
from skillweave.serve.run import _is_no_lost_write, bind, how_to_ask, run_server, url_of
from skillweave.serve.settings import ServeConfig


@dataclass
class Server:
    """A server in a process of its own, which writes its address and what it prints into files."""

    process: multiprocessing.process.BaseProcess
    folder: Path

    @property
    def url(self) -> str:
        return (self.folder / "url").read_text()

    @property
    def errors(self) -> str:
        return (self.folder / "errors").read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> int | None:
        """Wait for the end of the process, and return its exit code."""
        self.process.join(20)
        return self.process.exitcode


def _serve(folder: Path, pause: float, grace: float, opening: float | Exception) -> None:
    sys.stderr = (folder / "errors").open("w")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    service = small_service(SmallEngine("abcdef", pause, opening))
    app = create_app(service, ServeConfig(), None)
    bound = bind(ServeConfig(port=0), None)

    def ready() -> None:
        (folder / "new").write_text(url_of(bound))
        (folder / "new").rename(folder / "url")

    run_server(app, bound, grace=grace, ready=ready)


@contextmanager
def server(folder: Path, *, pause: float = 0.0, grace: float = 20.0, broken: bool = False) -> Iterator[Server]:
    """A running server, or one whose engine cannot be opened."""
    opening = UserError("no memory") if broken else 0.0
    # A fork does not import torch again, which takes seconds.
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(folder, pause, grace, opening))
    process.start()
    try:
        until = time.monotonic() + 20
        while process.is_alive() and not (folder / "url").exists() and time.monotonic() < until:
            time.sleep(0.01)
        yield Server(process, folder)
    finally:
        process.kill()
        process.join()


class Streaming(threading.Thread):
    """A client that reads a stream."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.events = url, list[dict[str, Any]]()
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        body = {"model": "sort", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        with httpx2.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=30) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line[6:]))
                    if self.words:
                        self.begun.set()

    @property
    def words(self) -> int:
        return sum(bool(event["choices"][0]["delta"].get("content")) for event in self.events if event.get("choices"))


def test_it_drains_and_refuses_new_requests_meanwhile(tmp_path: Path) -> None:
    with server(tmp_path, pause=0.3) as running:
        url, client = running.url, Streaming(running.url)
        assert client.begun.wait(20)
        running.signal(signal.SIGTERM)
        until = time.monotonic() + 5
        while (ready := httpx2.get(f"{url}/ready")).status_code == 200:
            assert time.monotonic() < until
        assert ready.json() == {"status": "stopping"}
        assert httpx2.get(f"{url}/health").status_code == 200
        refused = httpx2.post(f"{url}/v1/chat/completions", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        client.join(20)
        assert client.words == 6
        assert running.end() == 0


def test_after_the_grace_time_the_rest_is_cancelled(tmp_path: Path) -> None:
    with server(tmp_path, pause=5, grace=0.3) as running:
        answers: list[Any] = []
        client = threading.Thread(target=lambda: answers.append(_ask(running.url)))
        client.start()
        time.sleep(0.5)
        began = time.monotonic()
        running.signal(signal.SIGINT)
        assert running.end() == 0
        assert time.monotonic() - began < 5
        client.join(20)
        assert "1 request was cancelled after" in running.errors
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "stopping")


def test_a_stream_that_is_cut_ends_with_an_error(tmp_path: Path) -> None:
    with server(tmp_path, pause=0.4, grace=0.1) as running:
        client = Streaming(running.url)
        assert client.begun.wait(20)
        running.signal(signal.SIGTERM)
        client.join(20)
        assert running.end() == 0
    assert 1 <= client.words < 6
    assert client.events[-1]["error"]["code"] == "stopping"


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with server(tmp_path, pause=5, grace=60) as running:
        threading.Thread(target=_ask, args=(running.url,), daemon=True).start()
        time.sleep(0.5)
        running.signal(signal.SIGINT)
        time.sleep(0.3)
        began = time.monotonic()
        running.signal(signal.SIGINT)
        assert running.end() == 130
        assert time.monotonic() - began < 2


def test_an_engine_that_cannot_be_opened_ends_the_server_with_its_error(tmp_path: Path) -> None:
    with server(tmp_path, broken=True) as running:
        assert running.end() == 1
        assert "UserError: no memory" in running.errors


def _ask(url: str) -> Any:
    body = {"model": "sort", "messages": [{"role": "user", "content": "x"}]}
    try:
        return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    except httpx2.TransportError as error:
        return error


def test_a_client_that_sends_too_much_sees_why(tmp_path: Path) -> None:
    with server(tmp_path) as running:
        for _ in range(3):
            sent = httpx2.post(f"{running.url}/v1/chat/completions", content=b"x" * 2**23, timeout=20)
            assert (sent.status_code, sent.json()["error"]["code"]) == (413, "body_too_large")


def test_a_log_that_cannot_be_written_stops_nothing_and_says_later_what_is_missing(tmp_path: Path) -> None:
    with server(tmp_path) as running:
        assert _ask(running.url).status_code == 200
        pid, log = running.process.pid, tmp_path / "errors"
        time.sleep(0.5)  # a line is written when its client has the answer already
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 10, before[1]))
        assert [_ask(running.url).status_code for _ in range(3)] == [200, 200, 200]
        time.sleep(0.5)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        assert _ask(running.url).status_code == 200
        time.sleep(0.5)
        told = [json.loads(line) for line in running.errors.splitlines() if line.startswith("{") and line.endswith("}")]
    assert [line.get("status", line.get("warning")) for line in told] == [
        200,
        "3 lines of the log could not be written",
        200,
    ]


def test_a_write_to_a_client_that_has_left_is_no_line_of_the_log() -> None:
    for text, kept in (("socket.send() raised exception.", False), ("Executing took 3 seconds", True)):
        record = logging.LogRecord("asyncio", logging.WARNING, "", 0, text, (), None)
        assert _is_no_lost_write(record) is kept


# -- the address -------------------------------------------------------------------------------------------------------


def test_a_free_port_is_found_and_a_used_one_is_told() -> None:
    with bind(ServeConfig(port=0), None) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=rf"port {port} of 127\.0\.0\.1 is in use"):
            bind(ServeConfig(port=port), None)


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(UserError, match="no address of this machine"):
        bind(ServeConfig(host="192.0.2.7", port=0), "key")


def test_all_interfaces_are_shown_as_this_machine() -> None:
    with bind(ServeConfig(host="0.0.0.0", port=0), "key") as bound:
        assert url_of(bound).startswith("http://127.0.0.1:")
    if socket.has_ipv6:
        with bind(ServeConfig(host="::1", port=0), None) as bound:
            assert re.fullmatch(r"http://\[::1\]:\d+", url_of(bound))


def test_the_commands_to_ask_read_the_key_from_its_place() -> None:
    url = "http://127.0.0.1:1"
    ask, chat = how_to_ask(url, "auto", False)
    assert ask.startswith(f"curl {url}/v1/chat/completions -H 'Content-Type")
    assert '"temperature": 0' in ask
    assert chat == f"skillweave chat {url}/v1"
    ask, chat = how_to_ask(url, "auto", True)
    assert '"Authorization: Bearer $SKILLWEAVE_API_KEY"' in ask
    assert chat == f"skillweave chat {url}/v1"  # it reads the same variable
    ask, chat = how_to_ask(url, "auto", True, Path("my key.txt"))
    assert "\"Authorization: Bearer $(cat 'my key.txt')\"" in ask
    assert chat == f"skillweave chat {url}/v1 --api-key-file 'my key.txt'"
