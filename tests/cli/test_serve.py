"""`skillweave chat` and `bench serve` against a running server, and what `serve` refuses before it loads a model."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.live_server import live
from helpers.small_server import SmallEngine, small_service
from helpers.terminal import made, refused, run
from skillweave.serve.app import create_app
from skillweave.serve.run import bind
from skillweave.serve.settings import ServeConfig

ENGINE = SmallEngine("abc")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    service = small_service(ENGINE)
    with live(create_app(service, ServeConfig(), None, write_log=lambda _: None)) as address:
        yield f"{address}/v1"


def talk(monkeypatch: pytest.MonkeyPatch, url: str, *lines: str, options: tuple[str, ...] = ()) -> tuple[str, str]:
    """What `chat` prints on standard output and on standard error for typed lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    ran = made("chat", url, *options)
    return ran.out, ran.err


def test_a_conversation(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    out, err = talk(monkeypatch, url, "sort 2 1", "/packs", "/pack base", "hello", "/reset", "/quit", "never")
    assert out == "abc\n  base\n* auto\n  sort\n  reverse\nabc\n"
    assert "route: sort (97%)" in err
    assert "route: base\n" in err
    assert "base answers now" in err


def test_mistakes_do_not_end_a_conversation(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    out, err = talk(monkeypatch, url, "/pack srot", "/packz", "sort", options=("--pack", "reverse"))
    assert out == "abc\n"
    assert "did you mean 'sort'" in err
    assert "unknown command /packz" in err


def test_control_c_stops_the_answer_and_not_the_program(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(ENGINE, "delay", 0.5)
    press = threading.Timer(1.2, os.kill, (os.getpid(), signal.SIGINT))
    press.start()
    out, err = talk(monkeypatch, url, "sort", "/packs")
    assert out.startswith("a")
    assert "abc" not in out
    assert "(stopped)" in err
    assert "* auto" in out


def test_the_text_of_a_model_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    from skillweave.cli import chat
    from skillweave.cli.output import out as console
    from skillweave.serve.chat import ChatSession

    monkeypatch.setattr(ChatSession, "_stream", lambda *_: iter(["a\x1b[2Jb\r", "\u202ec"]))
    shown = Terminal()
    monkeypatch.setattr(console, "_file", shown)
    chat._answer(ChatSession(None, [], "auto"), "hello")  # type: ignore[arg-type]
    assert shown.getvalue() == "a\\x1b[2Jb\\r\\u202ec\n"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8000", "no address of a server"),
        ("ftp://x", "no address of a server"),
        ("http://user:secret@host/v1", "no address of a server"),
        ("http://127.0.0.1:9", "no server answers at http://127.0.0.1:9/v1/"),
    ],
)
def test_a_wrong_address_is_told(address: str, message: str) -> None:
    assert message in " ".join(refused("chat", address).split())


# -- bench -------------------------------------------------------------------------------------------------------------


def test_bench_prints_percentiles_and_writes_every_request(url: str, tmp_path: Path) -> None:
    ran = made(
        "bench",
        "serve",
        url,
        "-r",
        "6",
        "--concurrency",
        "2",
        "--mix",
        "sort=0.7,base=0.3",
        "-o",
        tmp_path / "out.json",
    )
    for words in ("p50", "p95", "p99", "first token", "each further token", "6 of 6 requests answered", "requests/s"):
        assert words in " ".join(ran.out.split())
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["plan"]["mix"] == {"sort": 0.7, "base": 0.3}
    assert (result["figures"]["answered"], len(result["requests"])) == (6, 6)
    assert result["requests"][0]["completion_tokens"] == 4


def test_bench_ends_with_1_if_a_request_failed(url: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("hello\nsort 3 1\n")
    ENGINE.breaks = RuntimeError("broken")
    try:
        ran = run("bench", "serve", url, "-r", "3", "--rate", "50", "-f", tmp_path / "prompts.txt")
    finally:
        ENGINE.breaks = None
    assert ran.code == 1
    assert "0 of 3 requests answered" in " ".join(ran.out.split())
    assert "failed with" in ran.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "1", "--concurrency", "2"), "--concurrency has no effect"),
        (("--mix", "sort"), "write NAME=SHARE"),
        (("--mix", "sort=most"), "is no number"),
        (("--mix", "nobody=1"), "no model 'nobody'"),
        (("--prompts", "nowhere.txt"), "nowhere.txt does not exist"),
    ],
)
def test_mistakes_of_bench_are_told(url: str, options: tuple[str, ...], message: str) -> None:
    assert message in " ".join(refused("bench", "serve", url, *options).split())


# -- serve -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "there is no key"),
        (("--host", ""), "there is no key"),
        (("--engine", "vlm"), "did you mean 'vllm'"),
        (("--pack-memory", "lots"), "pack_memory: this is no number of bytes: write bytes as 800MB"),
        (("--set", "stalled_seconds=0"), "stalled_seconds"),
        (("--allow-pack-management",), "needs a key"),
        (("--api-key", "a", "--api-key-file", "b"), "two keys"),
        (("--cors-origin", "*"), "every web page"),
    ],
)
def test_serve_refuses_settings_before_it_loads_a_model(options: tuple[str, ...], message: str) -> None:
    assert message in " ".join(refused("serve", "nowhere", *options).split())


def test_serve_says_at_once_that_it_opens_something() -> None:
    assert run("serve", "nowhere", "--port", "0").err.startswith("Opening nowhere. ")


def test_serve_tells_a_port_in_use_before_it_loads_a_model() -> None:
    with bind(ServeConfig(port=0), None) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in " ".join(refused("serve", "nowhere", "--port", port).split())


def test_a_secret_is_in_no_message_and_no_help() -> None:
    ran = run("serve", "nowhere", "--api-key", "hunter2 hunter2", environment={"SKILLWEAVE_API_KEY": "hunter3"})
    assert ran.code == 2
    assert "hunter" not in ran.out + ran.err
    assert "hunter" not in run("serve", "--help", environment={"SKILLWEAVE_API_KEY": "hunter3"}).out
