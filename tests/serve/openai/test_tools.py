"""Tools in both directions: described to the model, called by it, their results rendered, whole and streamed."""

from __future__ import annotations

import json

import pytest

from helpers.chat_families import TOOLS, shipped
from helpers.fake_engine import FakeEngine
from skillweave.micro import micro_tokenizer

ASK = [{"role": "user", "content": "Weather in Rome?"}]
CALL = '<tool_call>{"name": "weather", "arguments": {"town": "Rome"}}</tool_call>'
ADD = {
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
QWEN = """{%- if tools %}{{ '<system>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<end>' }}{% endif %}
{%- for m in messages %}{{ '<' + m.role + '>' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name + (call.function.arguments | tojson) }}
{%- endfor %}{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""


def create(served, **more):
    return served.client.chat.completions.create(
        model="base", messages=more.pop("messages", ASK), **{"tools": TOOLS, **more}
    )


def streamed(served, **more) -> tuple[str, dict[int, list], str]:
    """The text, the calls by index, and the finish reason of a stream."""
    text, calls, reason = "", {}, None
    for chunk in create(served, stream=True, **more):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            known = calls.setdefault(call.index, [call.id, call.function.name, ""])
            known[2] += call.function.arguments
        reason = choice.finish_reason or reason
    return text, calls, reason


def test_tools_are_described_by_a_system_message_if_the_template_takes_none(served) -> None:
    create(served, messages=[{"role": "system", "content": "Be brief"}, *ASK])
    text = served.engine.requests[0].text
    assert text.startswith("<system>Be brief\n\nTo call a tool write <tool_call>")
    assert "weather(town: string): Weather of a town." in text
    assert text.endswith("<end><user>Weather in Rome?<end><assistant>")


def test_tools_are_described_by_the_template_if_it_takes_them(served) -> None:
    served.engine.the_tokenizer.chat_template = QWEN
    create(served, tools=[*TOOLS, ADD])
    described = served.engine.requests[0].text
    assert described.startswith('<system>{"type": "function", "function": {"name": "weather"')
    assert "strict" not in described
    assert '"add"' in described


def test_no_tool_is_described_or_read_with_the_choice_none(served) -> None:
    served.engine.script = lambda asked: CALL
    answer = create(served, tool_choice="none")
    assert "weather(" not in served.engine.requests[0].text
    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (CALL, None),
        (f"Let me look. {CALL}", "Let me look."),
        (f"a < b\n\n{CALL}", "a < b"),
        ('{"name": "weather", "arguments": {"town": "Rome"}}', None),
        (f"<think>I could write {CALL} here</think>{CALL}", f"<think>I could write {CALL} here</think>"),
        ("[TOOL_CALLS][" + '{"name": "weather", "arguments": {"town": "Rome"}}]', None),
        ('<function=weather>{"town": "Rome"}</function>', None),
        ('weather(town="Rome")', None),
        ('```tool_code\nprint(weather(town="Rome"))\n```', None),
    ],
)
def test_a_call_is_read_in_its_forms_and_its_markup_is_no_text(served, written: str, text: str | None) -> None:
    served.engine.script = lambda asked: written
    (choice,) = create(served).choices
    assert choice.message.content == text
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        {"town": "Rome"},
    )
    assert call.id.startswith("call_")
    assert choice.finish_reason == "tool_calls"
    said, calls, reason = streamed(served)
    assert (said or None, reason) == (text, "tool_calls")
    assert [(name, json.loads(arguments)) for _, name, arguments in calls.values()] == [("weather", {"town": "Rome"})]


def test_two_calls_have_two_ids(served) -> None:
    served.engine.script = lambda asked: f"{CALL}\n{CALL}"
    calls = create(served).choices[0].message.tool_calls
    assert len({call.id for call in calls}) == 2
    assert list(streamed(served)[1]) == [0, 1]


@pytest.mark.parametrize(
    "written",
    [
        "No call < here",
        "A <tool_cal is no mark",
        "<tool_call>this is no JSON</tool_call>",
        f"{CALL} and <tool_call>broken</tool_call>",
        '{"name": "other"}',
        "pr",
        "weather",
        "weather(town=unknown)",
        'So:\n```tool_code\nweather(town="Rome")\n```',
        "```",
        "[1, 2]",
        "ends with <tool",
        "<think>only thoughts " + CALL,
        "  spaces  ",
    ],
)
def test_what_is_no_call_is_text_and_nothing_is_lost(served, written: str) -> None:
    served.engine.script = lambda asked: written
    (choice,) = create(served).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (written, None, "stop")
    assert streamed(served) == (written, {}, "stop")


def test_text_before_a_call_streams_before_the_call_is_complete(served) -> None:
    served.engine.script = lambda asked: f"Let me look. {CALL}"
    pieces = [chunk.choices[0].delta.content for chunk in create(served, stream=True) if chunk.choices[0].delta.content]
    assert pieces[0] == "L"
    assert "".join(pieces) == "Let me look."


@pytest.mark.parametrize(
    "written", ["we say: sun", "print it", "weather is nice", "`x` is code", "```text\nabc\n```\nis text"]
)
def test_an_answer_that_begins_nearly_as_a_call_streams(served, written: str) -> None:
    served.engine.script = lambda asked: written
    pieces = [chunk.choices[0].delta.content for chunk in create(served, stream=True) if chunk.choices[0].delta.content]
    assert len(pieces) > 2
    assert "".join(pieces) == written


def test_marks_that_are_special_tokens_are_seen(served) -> None:
    tokenizer = micro_tokenizer(words=["<tool_call>", "</tool_call>"])
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<tool_call>", "</tool_call>"]}, replace_extra_special_tokens=False
    )
    served.engine.the_tokenizer = tokenizer
    served.engine.script = lambda asked: f"Well {CALL}"
    assert tokenizer.decode(tokenizer(CALL)["input_ids"], skip_special_tokens=True)[0] == "{"
    for stop in ([], ["##"]):
        (choice,) = create(served, stop=stop).choices
        assert (choice.message.content, choice.finish_reason) == ("Well", "tool_calls")
        assert streamed(served, stop=stop)[0] == "Well"
    served.engine.script = lambda asked: None
    # Without a seed, a call may hold a key twice or a number that is too large, and is then not read.
    (choice,) = create(served, tool_choice="required", parallel_tool_calls=False, seed=1).choices
    assert choice.finish_reason in ("tool_calls", "length")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_can_be_forced_from_random_scores(served, choice, stream: bool) -> None:
    served.engine.script = lambda asked: None
    more = {"tools": [ADD, {**ADD, "function": {**ADD["function"], "name": "sub"}}], "tool_choice": choice, "seed": 1}
    if stream:
        _, calls, reason = streamed(served, **more)
        names, arguments = [call[1] for call in calls.values()], [call[2] for call in calls.values()]
    else:
        (answer,) = create(served, **more).choices
        assert answer.message.content is None
        names = [call.function.name for call in answer.message.tool_calls]
        arguments, reason = [call.function.arguments for call in answer.message.tool_calls], answer.finish_reason
    assert reason == "tool_calls"
    assert all(json.loads(one)["a"] in (1, 2) for one in arguments)
    assert set(names) <= ({"add", "sub"} if choice == "required" else {"add"})
    if choice != "required":
        assert len(names) == 1


def test_a_strict_tool_has_fitting_arguments_when_the_model_may_also_answer(served) -> None:
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    create(served, tools=[strict])
    assert served.engine.requests[0].grammar is not None
    create(served, tools=[ADD])
    assert served.engine.requests[1].grammar is None


def test_calls_and_results_of_the_conversation_are_rendered(served) -> None:
    served.engine.script = lambda asked: CALL
    first = create(served).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
    served.engine.script = lambda asked: "It is sunny."
    answer = create(served, messages=[*ASK, first, result])
    assert answer.choices[0].message.content == "It is sunny."
    assert f"<assistant>{CALL}<end>" in served.engine.requests[1].text
    assert served.engine.requests[1].text.endswith("<end><tool>sunny<end><assistant>")


def test_results_are_a_message_of_the_user_if_the_template_has_no_role_for_them(served) -> None:
    served.engine.the_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}<end>{% endfor %}<assistant>"
    )
    calls = [{"id": id_, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for id_ in "ab"]
    results = [{"role": "tool", "tool_call_id": id_, "content": f"result {id_}"} for id_ in "ab"]
    create(served, messages=[*ASK, {"role": "assistant", "tool_calls": calls}, *results])
    assert served.engine.requests[0].text.endswith(
        "<user><tool_response>result a</tool_response>\n<tool_response>result b</tool_response><end><assistant>"
    )


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "qwen3"])
def test_real_templates_write_tools_calls_and_results(served, name: str) -> None:
    try:
        template = shipped(name)
    except FileNotFoundError:
        pytest.skip("this template is not among those that TRL brings")
    served.service.engine = FakeEngine(micro_tokenizer(template))
    calls = [{"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Oslo"}'}}]
    result = {"role": "tool", "tool_call_id": "call00001", "content": "seven degrees"}
    create(served, messages=[*ASK, {"role": "assistant", "content": None, "tool_calls": calls}, result])
    text = served.engine.requests[0].text
    assert "Weather of a town." in text
    assert "Oslo" in text
    assert "seven degrees" in text


def test_a_call_that_was_cut_off_is_text(served) -> None:
    served.engine.script = lambda asked: CALL
    (choice,) = create(served, max_tokens=20).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content == CALL[:20]
