"""The client of OpenAI-compatible servers, against a real server that fails in every way."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from helpers.fault_server import FaultServer, Reply, completion_body, fault_server
from skillweave import progress
from skillweave.errors import UserError
from skillweave.reason.models.model import Completion, ModelCall, ModelUnreachable
from skillweave.reason.models.openai_model import OpenAIModel

CALL = ModelCall((("user", "Hello there"),), temperature=0.5, max_tokens=9, seed=4)
FINE = Completion("fine", "stop", 3, 2)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(progress, "_SAID", set())


def open_model(url: str, name: str = "m", **options: Any) -> OpenAIModel:
    return OpenAIModel(url, name, **({"timeout": 5.0, "retries": 2, "wait": 0.01} | options))


def ask(server: FaultServer, call: ModelCall = CALL, **options: Any) -> Completion:
    async def run() -> Completion:
        model = open_model(server.url, **options)
        try:
            return await model.complete(call)
        finally:
            await model.close()

    return asyncio.run(run())


def test_a_call_is_sent_as_it_is() -> None:
    with fault_server() as server:
        assert ask(server, api_key="secret") == FINE
    assert server.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hello there"}],
            "temperature": 0.5,
            "seed": 4,
            "max_tokens": 9,
        }
    ]
    assert server.keys == ["Bearer secret"]


FAULTS = {
    "it did not answer within 0.3 seconds": Reply(how="hang"),
    "answer within 0.3": Reply(how="drip"),
    "connection failed": Reply(how="hang up"),
    "status 429: slow down": Reply(429, {"error": {"message": "slow down"}}),
    "status 500: oops": Reply(500, {"error": {"message": "oops"}}),
    "status 503": Reply(503, "<html>busy</html>"),
    "not JSON: <html>": Reply(200, "<html>hello</html>"),
    "the connection failed": Reply(how="cut"),
    'no choice: {"choices": []}': Reply(200, {"choices": []}),
    'no choice: {"error"': Reply(200, {"error": {"message": "upstream"}}),
    "no choice: [1]": Reply(200, [1]),
    "no text (content is [1])": Reply(200, completion_body([1])),
}


@pytest.mark.parametrize("why", FAULTS)
def test_a_fault_is_retried_and_at_last_named(why: str) -> None:
    timeout = 0.3 if FAULTS[why].how in ("hang", "drip") else 5.0
    with fault_server(FAULTS[why]) as server:
        assert ask(server, timeout=timeout) == FINE
        assert len(server.requests) == 2
    with fault_server(after=FAULTS[why]) as server:
        with pytest.raises(ModelUnreachable) as error:
            ask(server, retries=1, timeout=timeout)
        assert len(server.requests) == 2
    assert why in str(error.value)
    assert "'m' gave no usable answer in 2 tries" in str(error.value)


def test_waits_double_and_the_servers_wish_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, sleep_for = [], asyncio.sleep

    async def sleep(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            waits.append(seconds)
        else:  # a server that another test left
            await sleep_for(seconds)

    monkeypatch.setattr("skillweave.reason.models.openai_model.asyncio.sleep", sleep)
    limited = Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "7"})
    with fault_server(Reply(500), limited, Reply(500), Reply(500)) as server:
        assert ask(server, retries=4, wait=1.0) == FINE
    for wait, (low, high) in zip(waits, [(0.75, 1), (7, 7), (3, 4), (6, 8)], strict=True):
        assert low <= wait <= high
    with fault_server(Reply(429, {}, {"Retry-After": "3600"})) as server:
        with pytest.raises(ModelUnreachable, match="asks to wait 3600 seconds"):
            ask(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(401, {"error": {"message": "bad key sk-secret"}}), r"refuses the key \(status 401: bad key \*\*\*\)"),
        (Reply(403, {"error": {"message": "no"}}), "Set OPENAI_API_KEY"),
        (
            Reply(400, {"error": {"message": "context too long"}}),
            r"refuses a request to 'm' \(status 400: context",
        ),
        (Reply(413, "too large"), "status 413: too large"),
        (Reply(429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "the quota of this key is used up"),
        (Reply(404, {"error": {"message": "no model"}}), "does not know the model 'm'; did you mean 'mm'"),
    ],
)
def test_what_no_retry_can_help_fails_at_once_and_says_what_to_do(reply: Reply, error: str) -> None:
    with fault_server(after=reply) as server:
        server.models = {"data": [{"id": "mm"}]}
        with pytest.raises(UserError, match=error) as raised:
            ask(server, api_key="sk-secret")
        assert len(server.requests) == 1
    assert "secret" not in str(raised.value)


def test_a_listed_model_that_does_not_chat_is_not_called_unknown() -> None:
    with (
        fault_server(after=Reply(404, {"error": {"message": "no route"}})) as server,
        pytest.raises(UserError, match=r"has the model 'm', but it does not answer chats there \(status 404: no r"),
    ):
        ask(server)


def test_parameters_that_a_server_refuses_are_given_up_once(capsys: pytest.CaptureFixture[str]) -> None:
    def strict(request: dict[str, Any]) -> Reply:
        if "max_tokens" in request:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Reply(400, {"error": {"message": message, "param": "max_tokens"}})
        if "seed" in request:
            return Reply(422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]})
        return Reply()

    async def run() -> None:
        model = open_model(server.url, retries=0)
        assert await asyncio.gather(*(model.complete(CALL) for _ in range(3))) == [FINE] * 3
        before = len(server.requests)
        assert await model.complete(CALL) == FINE
        assert len(server.requests) == before + 1
        await model.close()

    with fault_server(after=strict) as server:
        asyncio.run(run())
    last = server.requests[-1]
    assert last["max_completion_tokens"] == 9
    assert not {"max_tokens", "seed"} & set(last)
    said = capsys.readouterr().err
    assert said.count("does not take max_tokens") == said.count("does not take seed") == 1


def test_a_wrong_value_is_not_taken_for_a_refused_parameter() -> None:
    with fault_server(after=Reply(400, {"error": {"message": "max_tokens must be at most 4"}})) as server:
        with pytest.raises(UserError, match="must be at most 4"):
            ask(server)
        assert len(server.requests) == 1


def test_missing_usage_is_estimated_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    body = completion_body("abcde")
    for usage in (
        None,
        {},
        {"prompt_tokens": "3", "completion_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
    ):
        with fault_server(after=Reply(200, body | {"usage": usage})) as server:
            assert ask(server) == Completion("abcde", "stop", 3, 2)  # 11 and 5 characters
    assert "they are estimated" in capsys.readouterr().err


def test_cut_off_answers_half_characters_and_thoughts(capsys: pytest.CaptureFixture[str]) -> None:
    with fault_server(Reply(200, completion_body("abc", "length"))) as server:
        assert ask(server).ended == "length"
    with fault_server(Reply(200, completion_body(None, "length"))) as server:
        assert ask(server) == Completion("", "length", 3, 2)
    assert "whose 9 tokens were all used for its thoughts (raise max_tokens)" in capsys.readouterr().err
    for body, said in (
        (completion_body(None), 'an answer without a text (it ended with "stop")'),
        (completion_body(None, "content_filter"), '(it ended with "content_filter")'),
        (completion_body(None, reasoning_content="hm"), "an answer with only thoughts and no text"),
    ):
        with fault_server(Reply(200, body)) as server:
            assert ask(server) == Completion("", "stop", 3, 2)
            assert len(server.requests) == 1
        assert said in capsys.readouterr().err
    with fault_server(Reply(200, completion_body("a\ud83d"))) as server:
        assert ask(server).text == "a?"
        ask(server, replace(CALL, messages=(("user", "b\ud83d"),)))
        assert server.requests[-1]["messages"] == [{"role": "user", "content": "b?"}]


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    numbers = itertools.count()
    now, most = 0, 0

    def busy(request: dict[str, Any]) -> Reply:
        return Reply(answer=str(next(numbers)))

    async def run() -> None:
        nonlocal most
        model = open_model(server.url, concurrency=3)
        inner = model._try

        async def watched(call: ModelCall) -> Completion:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                return await inner(call)
            finally:
                now -= 1

        model._try = watched  # type: ignore[method-assign]
        answers = await asyncio.gather(*(model.complete(CALL) for _ in range(12)))
        assert sorted(int(answer.text) for answer in answers) == list(range(12))
        await model.close()

    with fault_server(after=busy) as server:
        asyncio.run(run())
    assert most == 3


def check(url: str, name: str = "m", **options: Any) -> None:
    async def run() -> None:
        model = open_model(url, name, **options)
        try:
            await model.check()
        finally:
            await model.close()

    asyncio.run(run())


def test_the_check_finds_a_wrong_address_a_wrong_key_and_a_wrong_name(capsys: pytest.CaptureFixture[str]) -> None:
    with fault_server() as server:
        check(server.url)
        assert not capsys.readouterr().err
        with pytest.raises(UserError, match="does not know the model 'othr'; did you mean 'other'"):
            check(server.url, "othr")
        with pytest.raises(UserError, match=f"try {server.url.removesuffix('/v1')}/v1"):
            check(server.url.removesuffix("/v1"))
        server.models = None
        check(server.url)
        assert "does not list its models" in " ".join(capsys.readouterr().err.split())
        server.models = "<html>a router's page</html>"
        with pytest.raises(UserError, match="not with a list of models"):
            check(server.url)
    assert not server.requests
    began = time.monotonic()
    with pytest.raises(ModelUnreachable, match="no server answers there: the connection failed"):
        check(server.url)
    assert time.monotonic() - began < 1


def test_an_address_holds_no_secret_and_neither_does_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert OpenAIModel("http://h:1/v1/", "a/b").identity == "http://h:1/v1#a/b"
    for url in ("http://u:sk-secret@h/v1", "https://h/v1?key=sk-secret", "h:80/v1", "ftp://h"):
        with pytest.raises(UserError) as error:
            OpenAIModel(url, "m")
        assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="copy it again") as error:
        OpenAIModel("http://h/v1", "m", api_key="sk-secret\n")
    assert "secret" not in str(error.value)
