"""The official client against a real engine: one server process with a micro weave on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from helpers.weave_packs import random_pack
from skillweave.base import Sampling, open_base
from skillweave.serve.app import create_app
from skillweave.serve.open_service import open_service
from skillweave.serve.run import bind, run_server, url_of
from skillweave.serve.settings import ServeConfig
from skillweave.weave import Weave

NAMES = ("one", "two")
DEMO = Path(__file__).parents[2] / "runs" / "demo"
ASKED: list[Any] = [{"role": "user", "content": "3 1 2"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


@dataclass
class Running:
    """The address of a server, and the greedy answers of 8 tokens that its weave gives without one."""

    url: str
    texts: dict[str, str]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


def _serve(target: str, url: Path, pack_memory: int | None) -> None:
    sys.stderr = url.with_name("errors").open("w")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the pool of the parent's threads did not survive the fork
    settings = ServeConfig(port=0, pack_memory=pack_memory)
    service = open_service(target, settings)
    with bind(settings, None) as bound:

        def ready() -> None:
            url.with_suffix(".new").write_text(url_of(bound))
            url.with_suffix(".new").rename(url)

        run_server(create_app(service, settings, None), bound, grace=5, ready=ready)


@contextlib.contextmanager
def _served(target: str, folder: Path, pack_memory: int | None, start: str, patience: float) -> Iterator[str]:
    url = folder / "url"
    process = multiprocessing.get_context(start).Process(target=_serve, args=(target, url, pack_memory))
    process.start()
    try:
        until = time.monotonic() + patience
        while not url.exists() and process.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
        assert url.exists(), (folder / "errors").read_text()
        yield url.read_text()
        process.terminate()
        process.join(20)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def running(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A served weave of two packs, of which one has room in memory at a time."""
    folder = tmp_path_factory.mktemp("client")
    base = open_base(str(micro_base), dtype="float32")
    packs = {name: random_pack(base.model, base.fingerprint, name=name, seed=seed) for seed, name in enumerate(NAMES)}
    Weave.write(folder / "weave", base, packs)
    weave = Weave.from_pretrained(folder / "weave", unpacked_packs=None)
    names = [None, *NAMES]
    replies = weave.generate(["3 1 2"] * 3, names, Sampling(8, temperature=0))
    texts = {name or "base": reply.text for name, reply in zip(names, replies, strict=True)}
    assert len(set(texts.values())) == 3
    room = int(1.5 * max(weave.packed_model.pack_bytes(name) for name in NAMES))
    with _served(str(folder / "weave"), folder, room, "fork", 30) as url:
        yield Running(url, texts)


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with running.client() as client:
        yield client


def _chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "one", "messages": ASKED, "max_tokens": 8, "temperature": 0, **more}
    )


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", *NAMES]
    assert client.models.retrieve("two").owned_by == "skillweave"


def test_each_model_answers_as_its_pack_does(client: openai.OpenAI, running: Running) -> None:
    for name, text in running.texts.items():
        answer = _chat(client, model=name)
        assert answer.choices[0].message.content == text
        assert answer.skillweave["pack"] == name
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_joins_to_the_answer(client: openai.OpenAI, running: Running) -> None:
    chunks = list(_chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == running.texts["one"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.completion_tokens >= 1


def test_many_at_once_have_their_own_answers(running: Running) -> None:
    async def ask(client: openai.AsyncOpenAI, model: str, stream: bool) -> tuple[str, str]:
        asked: Any = {"model": model, "messages": ASKED, "max_tokens": 8, "temperature": 0}
        if not stream:
            answer = await client.chat.completions.create(**asked)
            return model, answer.choices[0].message.content or ""
        parts = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(**asked, stream=True)
            if chunk.choices
        ]
        return model, "".join(parts)

    async def all_of_them() -> list[tuple[str, str]]:
        async with running.async_client() as client:
            return await asyncio.gather(*(ask(client, name, n % 2 == 0) for n in range(5) for name in running.texts))

    assert all(running.texts[model] == text for model, text in asyncio.run(all_of_them()))


def test_several_answers_and_seeds(client: openai.OpenAI) -> None:
    drawn = [_chat(client, n=3, temperature=1, seed=5).choices for _ in range(2)]
    texts = [[choice.message.content for choice in choices] for choices in drawn]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_a_stop_text_ends_the_answer(client: openai.OpenAI, running: Running) -> None:
    whole = running.texts["one"]
    stop = whole[3]
    answer = _chat(client, stop=[stop]).choices[0]
    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_log_probabilities_are_those_of_the_greedy_tokens(client: openai.OpenAI, running: Running) -> None:
    content = _chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(token.token for token in content) == running.texts["one"]
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(one.logprob for one in token.top_logprobs) <= 0


def test_a_schema_is_followed(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    answer = _chat(client, response_format=form, max_tokens=60).choices[0]
    if answer.finish_reason == "stop":  # a random model may write white space until the end
        assert json.loads(answer.message.content)["x"] in ("a", "b")
    else:
        assert answer.message.content.lstrip().startswith("{")


def test_tools_go_both_ways(client: openai.OpenAI) -> None:
    asked = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}, "max_tokens": 400}
    message = _chat(client, **asked).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "add"
    assert set(json.loads(call.function.arguments)) == {"a"}
    streamed = [chunk.choices[0].delta.tool_calls for chunk in _chat(client, **asked, stream=True) if chunk.choices]
    assert [calls[0].function.arguments for calls in streamed if calls] == [call.function.arguments]
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    back = _chat(client, messages=[*ASKED, message.model_dump(exclude_none=True), result], tools=[TOOL])
    assert back.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_texts_and_token_ids_are_continued(client: openai.OpenAI) -> None:
    asked: Any = {"model": "two", "max_tokens": 5, "temperature": 0, "logprobs": 1}
    texts = [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in ("abc", ["abc"])]
    assert texts[0] == texts[1]


def test_responses_are_whole_and_streamed(client: openai.OpenAI, running: Running) -> None:
    asked: Any = {"model": "one", "input": "3 1 2", "max_output_tokens": 8, "temperature": 0}
    assert client.responses.create(**asked).output_text == running.texts["one"]
    events = list(client.responses.create(**asked, stream=True))
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta") == running.texts["one"]
    )
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_errors_are_the_clients_own(client: openai.OpenAI, running: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'one'"):
        _chat(client, model="onn")
    with pytest.raises(openai.BadRequestError) as found:
        _chat(client, temperature=9)
    assert found.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as found:
        _chat(client, messages=[{"role": "user", "content": "x" * 3000}])
    assert found.value.code == "context_length_exceeded"


def test_a_stream_that_is_closed_leaves_nothing(client: openai.OpenAI, running: Running) -> None:
    with _chat(client, stream=True, max_tokens=200, n=4, temperature=1) as stream:
        next(iter(stream))
    until = time.monotonic() + 5
    while "skillweave_requests_running 0.0" not in (text := client.get("/../metrics", cast_to=str)):
        assert time.monotonic() < until, text
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not DEMO.is_dir(), reason="needs runs/demo: make demo")
def test_the_demo_answers_three_packs_and_the_router_at_once(tmp_path: Path) -> None:
    prompts = {
        "sort_numbers": "Sort these numbers from small to large: 97, 53, 5, 33",
        "reverse_words": "Reverse the order of the words: red green blue",
        "json_calls": "What is the weather in Paris?",
    }

    async def ask(client: openai.AsyncOpenAI, model: str, prompt: str) -> Any:
        return await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=32, temperature=0
        )

    async def all_of_them(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as client:
            named = [ask(client, model, prompt) for model, prompt in prompts.items()]
            return await asyncio.gather(*named, *(ask(client, "auto", prompt) for prompt in prompts.values()))

    with _served(str(DEMO), tmp_path, None, "spawn", 120) as url:
        answers = asyncio.run(all_of_them(url))
    assert [answer.skillweave["pack"] for answer in answers[:3]] == list(prompts)
    assert all(answer.choices[0].message.content.strip() for answer in answers)
    assert {answer.skillweave["route"] for answer in answers[3:]} == {"router"}
    # A pack answers the same whether it is named or chosen.
    for named, routed in zip(answers[:3], answers[3:], strict=True):
        if routed.skillweave["pack"] == named.skillweave["pack"]:
            assert routed.choices[0].message.content == named.choices[0].message.content
