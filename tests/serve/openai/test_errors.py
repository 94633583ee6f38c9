"""Every error has OpenAI's shape, its status, and names the parameter."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from skillweave.errors import UserError
from skillweave.serve.service import RequestLimits

ASK = [{"role": "user", "content": "Hi"}]
CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
TOOL = {"type": "function", "function": {"name": "f"}}


def tool(**more) -> dict:
    return {"type": "function", "function": {"name": "f", **more}}


def schema(**more) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", **more}}


def content(part: dict) -> list[dict]:
    return [{"role": "user", "content": [part]}]


def refused(served, **more) -> tuple[int, str | None, str | None]:
    answer = served.post("chat/completions", **{"model": "base", "messages": ASK, **more})
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return answer.status_code, error["param"], error["code"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(served, more: dict, param: str) -> None:
    assert refused(served, **more) == (400, param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": True}, "n"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": 1.5}, "n"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages.0.colour"),
        ({"messages": content({"type": "image_url", "image_url": {"url": "x"}})}, "messages.0.content.0"),
        ({"messages": content({"type": "input_audio"})}, "messages.0.content.0"),
        ({"messages": [*ASK, {"role": "tool", "content": "x", "tool_call_id": "no"}]}, "messages"),
        ({"messages": [*ASK, CALLED, {"role": "tool", "content": "x"}]}, "messages.2.tool_call_id"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools.0.function.parameters"),
        (
            {"tools": [tool(parameters={"properties": {"a": 1}})]},
            "tools.0.function.parameters.properties.a",
        ),
        ({"tools": [{**TOOL, "function": {"name": f"f{at}"}} for at in range(129)]}, "tools"),
        ({"tools": [tool(description="x" * 300_000)]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": schema()}, "response_format.json_schema.schema"),
        ({"response_format": schema(schema={"type": "objct"})}, "response_format"),
        ({"response_format": schema(schema={"not": {}})}, "response_format"),
        ({"model": 5}, "model"),
    ],
)
def test_values_that_cannot_be_used_are_refused_with_their_place(served, more: dict, param: str) -> None:
    status, where, _ = refused(served, **more)
    assert (status, where) == (400, param)


def test_the_reason_why_a_schema_cannot_be_followed_is_told(served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    answer = served.post("chat/completions", model="base", messages=ASK, response_format=form)
    assert 'Unimplemented keys: ["not"]' in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "invalid_schema"


def test_missing_and_unknown_parameters_are_named(served) -> None:
    answer = served.post("chat/completions", model="base")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert answer.json()["error"]["code"] == "missing_required_parameter"
    answer = served.post("chat/completions", model="base", messages=ASK, temprature=1)
    assert answer.json()["error"]["message"] == "temprature: this parameter is unknown; did you mean 'temperature'?"
    assert answer.json()["error"]["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '"x"', '{"model": NaN}', '{"model": "a", "model": "b"}', "\ud800", "[" * 200]
)
def test_a_body_that_is_no_object_is_refused(served, body: str) -> None:
    answer = served.raw.post("/v1/chat/completions", content=body.encode("utf-8", "surrogatepass"))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


def test_an_unknown_model_is_a_404_with_a_hint(served) -> None:
    with pytest.raises(openai.NotFoundError, match=r"the model 'srt' does not exist; did you mean 'sort'\?") as error:
        served.client.chat.completions.create(model="srt", messages=ASK)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("srt")


def test_a_prompt_that_is_too_long_is_told_in_openais_words(served) -> None:
    served.engine.context = 20
    with pytest.raises(
        openai.BadRequestError, match="the prompt has 53 tokens, and the model's context is 20"
    ) as error:
        served.client.chat.completions.create(model="base", messages=[{"role": "user", "content": "x" * 50}])
    assert error.value.code == "context_length_exceeded"


def test_a_busy_engine_says_when_to_come_again(served) -> None:
    served.engine.busy = 2.5
    with pytest.raises(openai.RateLimitError) as error:
        served.client.chat.completions.create(model="base", messages=ASK)
    assert error.value.response.headers["retry-after"] == "3"
    assert served.service.held == []


def test_nothing_is_left_in_the_engine_if_it_takes_only_some_of_the_answers(served) -> None:
    served.engine.room, served.engine.delay = 2, 0.05
    assert refused(served, n=3) == (429, None, "engine_busy")
    assert [one.cancelled for one in served.engine.generations] == [True, True]
    assert len(served.service.observer.failed_) == 2


def test_users_mistakes_are_told_and_bugs_are_not(served, caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: Exception):
        def script(asked):
            raise error

        return script

    served.engine.script = fail(UserError("the template refuses this"))
    assert refused(served) == (400, None, "invalid_request")
    served.engine.script = fail(KeyError("secret words of a prompt"))
    with caplog.at_level(logging.ERROR, "skillweave.serve"):
        answer = served.post("chat/completions", model="base", messages=ASK)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "secret" not in caplog.text
    assert "KeyError" in caplog.text
    assert "fake_engine.py" in caplog.text


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_in_the_middle_of_a_stream_is_an_event(served, n: int) -> None:
    served.engine.breaks = RuntimeError("secret")
    text = served.post("chat/completions", model="base", messages=ASK, stream=True, n=n).text
    last = json.loads(text.strip().rpartition("data: ")[2])
    assert last["error"]["type"] == "server_error"
    assert "secret" not in text
    with pytest.raises(openai.APIError):
        list(served.client.chat.completions.create(model="base", messages=ASK, stream=True))


def test_other_paths_and_methods_have_the_same_shape(served) -> None:
    answer = served.raw.get("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = served.raw.get("/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "use POST" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/chat/completions", "the API is below /v1"),
        ("/ui/", "start it with --ui"),
        ("/v1/packs", "--allow-pack-management"),
        ("/v1/packs/sort/pin", "--allow-pack-management"),
    ],
)
def test_a_wrong_path_is_told_what_was_probably_meant(served, path: str, told: str) -> None:
    assert told in served.raw.get(path).json()["error"]["message"]


def test_the_limits_are_those_of_the_service(served) -> None:
    served.service.limits = RequestLimits(max_tokens=5, default_max_tokens=3, max_n=2, max_tools=1)
    assert refused(served, max_tokens=6)[1] == "max_tokens"
    assert refused(served, n=3)[1] == "n"
    served.client.chat.completions.create(model="base", messages=ASK)
    assert served.engine.requests[0].sampling.max_new_tokens == 3


def test_errors_of_a_template_do_not_tell_where_its_file_is(served, tmp_path: Path) -> None:
    tokenizer = served.engine.the_tokenizer
    (tmp_path / "chat_template.jinja").write_text("x")
    tokenizer.name_or_path, tokenizer.travels_with = str(tmp_path), f"the pack 'p' of the weave in {tmp_path}"
    for template in ("{{ raise_exception('no') }}", "{{ messages[0].role }}", "{% for"):
        tokenizer.chat_template = template
        answer = served.post("chat/completions", model="sort", messages=ASK)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("the chat template")
        assert str(tmp_path) not in answer.text


def test_a_template_that_refuses_many_messages_is_told_in_few_words(served) -> None:
    served.engine.the_tokenizer.chat_template = "{{ raise_exception('no' * 5000) }}"
    answer = served.post("chat/completions", model="sort", messages=ASK * 100)
    assert "and 80 more" in answer.json()["error"]["message"]
    assert len(answer.text) < 2000


@pytest.mark.parametrize("model", ["sort", "auto"])
def test_more_messages_than_tokens_are_refused_before_they_are_written(served, model: str) -> None:
    served.engine.the_tokenizer.chat_template = "{{ raise_exception('it was asked') }}"
    most = served.engine.context_length
    answer = served.post("chat/completions", model=model, messages=ASK * (most + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(("prompt", "param"), [("", "prompt"), ([""], "prompt"), (["a", ""], "prompt.1")])
def test_a_completion_of_nothing_is_refused(served, prompt: Any, param: str) -> None:
    answer = served.post("completions", model="sort", prompt=prompt)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "it is empty" in answer.json()["error"]["message"]


def test_a_name_of_megabytes_is_refused_at_once(served) -> None:
    began = time.monotonic()
    assert served.post("chat/completions", model="sort" * 10**6, messages=ASK).status_code == 404
    assert time.monotonic() - began < 0.3
