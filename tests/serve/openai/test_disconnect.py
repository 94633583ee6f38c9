"""A client that leaves ends its answers within a step, and the event loop is never held up for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx2
import pytest

ASK = [{"role": "user", "content": "Hi"}]


def wait_until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_is_closed_cancels_all_its_answers(served, path: str, n: int) -> None:
    served.engine.script = lambda asked: "x" * 1000
    served.engine.delay = 0.005
    prompt = {"chat/completions": {"messages": ASK}, "completions": {"prompt": "a"}, "responses": {"input": "a"}}[path]
    if path == "responses":
        n = 1
    body = {"model": "sort", "stream": True, **prompt, **({"n": n} if n > 1 else {})}
    if path == "completions":
        body["max_tokens"] = 1000
    with served.raw.stream("POST", "/v1/" + path, json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        assert served.service.held == ["sort"]
    wait_until(lambda: len(served.engine.generations) == n and all(one.cancelled for one in served.engine.generations))
    assert all(len(one.written) < 300 for one in served.engine.generations)
    wait_until(lambda: served.service.held == [])
    wait_until(lambda: len(served.service.observer.failed_) == n)
    assert served.service.observer.finished_ == []


@pytest.mark.parametrize("n", [1, 2])
def test_a_client_that_leaves_while_it_waits_cancels_its_answers(served, n: int) -> None:
    served.engine.script = lambda asked: "x" * 390
    served.engine.delay = 0.01
    body = {"model": "sort", "messages": ASK, "n": n}
    with pytest.raises(httpx2.ReadTimeout), httpx2.Client(base_url=served.url, timeout=0.3) as client:
        client.post("/v1/chat/completions", json=body)
    left = time.monotonic()
    wait_until(lambda: bool(served.engine.generations) and all(one.cancelled for one in served.engine.generations))
    assert time.monotonic() - left < 0.5
    wait_until(lambda: served.service.held == [])
    assert len(served.service.observer.failed_) == n


def test_a_silent_stream_notices_too_that_its_client_left(served) -> None:
    served.engine.script = lambda asked: "x" * 10
    served.engine.delay = 60.0
    with served.raw.stream(
        "POST", "/v1/chat/completions", json={"model": "base", "messages": ASK, "stream": True}
    ) as answer:
        assert next(answer.iter_lines())
    wait_until(lambda: served.engine.generations[0].cancelled)


def test_a_prompt_that_takes_long_to_render_does_not_hold_others_up(served) -> None:
    served.engine.the_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'slow' %}{% for i in range(2500) %}{% for j in range(30) %}"
        "{% set x = i * j %}{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}"
    )
    slow: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        served.post("chat/completions", model="base", messages=[{"role": "user", "content": "slow"}])
        slow.append(time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    worst = 0.0
    while asking.is_alive():
        began = time.monotonic()
        served.raw.get("/v1/models")
        worst = max(worst, time.monotonic() - began)
    asking.join()
    assert worst < slow[0] / 2
