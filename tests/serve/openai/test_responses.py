"""Responses through the official client: items in, items out, and the events of streams in their order."""

from __future__ import annotations

import json

import pytest

CALL = '<tool_call>{"name": "weather", "arguments": {"town": "Rome"}}</tool_call>'
TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "Weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        "strict": False,
    }
]


def test_a_text_is_answered(served) -> None:
    answer = served.client.responses.create(model="sort", input="Hi", instructions="Be brief", max_output_tokens=50)
    assert (answer.output_text, answer.status, answer.object) == ("Hello!", "completed", "response")
    (asked,) = served.engine.requests
    assert asked.text == "<system>Be brief<end><user>Hi<end><assistant>"
    assert (asked.sampling.max_new_tokens, asked.pack) == (50, "sort")
    assert (answer.usage.output_tokens, answer.usage.input_tokens) == (7, len(asked.prompt))
    assert answer.skillweave["pack"] == "sort"
    assert answer.store is False


def test_an_answer_that_was_cut_off_is_incomplete(served) -> None:
    answer = served.client.responses.create(model="base", input="Hi", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output_text == "Hel"


def test_calls_and_their_outputs_go_both_ways(served) -> None:
    served.engine.script = lambda asked: f"I look. {CALL}"
    first = served.client.responses.create(model="base", input="Weather?", tools=TOOLS)
    message, call = first.output
    assert (message.content[0].text, call.type, call.name) == ("I look.", "function_call", "weather")
    assert json.loads(call.arguments) == {"town": "Rome"}
    served.engine.script = lambda asked: "Sunny."
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        *[item.model_dump() for item in first.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    second = served.client.responses.create(model="base", input=items, tools=TOOLS)
    assert second.output_text == "Sunny."
    text = served.engine.requests[1].text
    assert f"<assistant>I look.\n{CALL}<end><tool>sunny<end><assistant>" in text


def test_the_events_of_a_text_come_in_order(served) -> None:
    events = list(served.client.responses.create(model="base", input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 6,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello!"
    assert events[-1].response.output_text == "Hello!"
    assert events[-1].response.usage.output_tokens == 7
    assert events[0].response.skillweave == events[-1].response.skillweave


def test_the_events_of_calls_come_in_order(served) -> None:
    served.engine.script = lambda asked: f"{CALL}{CALL}"
    events = list(served.client.responses.create(model="base", input="Hi", tools=TOOLS, stream=True))
    assert [event.type for event in events[2:-1]] == 2 * [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert [item.type for item in events[-1].response.output] == ["function_call"] * 2
    assert events[2].item.call_id == events[-1].response.output[0].call_id


@pytest.mark.parametrize("written", ["Hello!", CALL, f"I look. {CALL}", ""])
def test_the_clients_own_reader_of_streams_agrees_with_the_whole(served, written: str) -> None:
    served.engine.script = lambda asked: written
    with served.client.responses.stream(model="base", input="Hi", tools=TOOLS) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response()
    whole = served.client.responses.create(model="base", input="Hi", tools=TOOLS)
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
    assert streamed.output_text == whole.output_text


def test_log_probabilities_are_included_on_demand(served) -> None:
    asked = {"model": "base", "input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    part = served.client.responses.create(**asked).output[0].content[0]
    assert [one.token for one in part.logprobs] == list("Hello!")
    events = list(served.client.responses.create(stream=True, **asked))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [one.token for event in deltas for one in event.logprobs] == list("Hello!")


def test_a_form_is_followed(served) -> None:
    served.engine.script = lambda asked: None
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    text = {"format": {"type": "json_schema", "name": "it", "schema": schema, "strict": True}}
    answer = served.client.responses.create(model="base", input="Hi", text=text)
    assert json.loads(answer.output_text)["a"] in (1, 2)


def test_a_call_can_be_forced(served) -> None:
    served.engine.script = lambda asked: None
    tools = [{**TOOLS[0], "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}]
    choice = {"type": "function", "name": "weather"}
    answer = served.client.responses.create(model="base", input="Hi", tools=tools, tool_choice=choice)
    assert [item.type for item in answer.output] == ["function_call"]


def test_a_failure_in_a_stream_is_told(served) -> None:
    served.engine.breaks = RuntimeError("secret")
    events = list(served.client.responses.create(model="base", input="Hi", stream=True))
    assert events[-1].type == "response.failed"
    assert "secret" not in events[-1].response.error.message


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "objct"}}}}, "text.format"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input"),
        ({"input": []}, "input"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
    ],
)
def test_what_cannot_be_done_is_refused(served, more: dict, param: str) -> None:
    answer = served.post("responses", **{"model": "base", "input": "Hi", **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
