"""The model's side of tools: what it is told, how calls are read, how results come, token for token."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from helpers.micro import micro_tokenizer
from skillweave.base import answer_ids, open_tokenizer, prompt_ids, turn_end
from skillweave.errors import UserError
from skillweave.tools import EXPERT, TOOL, Call, CallFormat, Outcome, Toolbox
from skillweave.tools.builtin import calculator
from skillweave.tools.turn import CLOSE, OPEN, call_text


def place(city: str, unit: str = "C", days: list[int] | None = None) -> str:
    """Tell the weather.

    Args:
        city: where
        unit: (choices: ["C", "F"])
        days: which
    """
    return city


BOX = Toolbox([calculator, place])
CALL = Call("calculator", {"expression": "2+2"})

# In the manner of Qwen and Hermes: tools in the system message, results in the user's.
HERMES = """{%- if tools %}<system>{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}
{%- for tool in tools %}{{ tool | tojson }}{% endfor %}<end>
{%- elif messages[0]['role'] == 'system' %}<system>{{ messages[0]['content'] }}<end>{% endif %}
{%- for m in messages %}
{%- if m['role'] == 'user' or m['role'] == 'assistant' %}<{{ m['role'] }}>{{ m['content'] }}<end>
{%- elif m['role'] == 'tool' %}
{%- if messages[loop.index0 - 1]['role'] != 'tool' %}<user>{% endif %}<tool_response>{{ m['content'] }}</tool_response>
{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}<end>{% endif %}
{%- endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""

TWO_ROLES = """{% for m in messages %}{% if m['role'] not in ['user', 'assistant', 'system'] %}
{{- raise_exception('no such role') }}{% endif %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

OTHERS_UNSAID = """{% for m in messages %}{% if m['role'] in ['user', 'assistant', 'system'] -%}
<{{ m['role'] }}>{{ m['content'] }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return open_tokenizer("bundled:smollm2")


@pytest.fixture(params=["micro", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return micro_tokenizer() if request.param == "micro" else request.getfixturevalue("smollm2")


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **given: Any) -> list[int]:
    return tokenizer(
        tokenizer.apply_chat_template(messages, tokenize=False, **given), add_special_tokens=False
    ).input_ids


@pytest.mark.parametrize("told", [None, ""])
def test_a_conversation_in_pieces_is_the_conversation_at_once(tokenizer: Any, told: str | None) -> None:
    call_format = CallFormat(tokenizer, BOX, instruction=told)
    turns = [f"I will see.\n{call_text(CALL)}", call_text(CALL) * 2]
    results = [["4"], ["line one\n  line two", "ZeroDivisionError: division by zero"]]
    system = [] if told == "" else [{"role": "system", "content": call_format._instruction}]
    conversation = [*system, {"role": "user", "content": "2+2?"}]
    ids = call_format.prompt_ids("2+2?")
    assert ids == rendered(tokenizer, conversation, add_generation_prompt=True)
    for turn, texts in zip(turns, results, strict=True):
        ids += answer_ids(tokenizer, turn) + call_format.result_ids([Outcome(text) for text in texts])
        conversation.append({"role": "assistant", "content": turn})
        conversation += [{"role": "tool", "content": text} for text in texts]
        assert ids == rendered(tokenizer, conversation, add_generation_prompt=True)
    ids += answer_ids(tokenizer, "It is 4.")
    conversation.append({"role": "assistant", "content": "It is 4."})
    whole = rendered(tokenizer, conversation)
    assert ids == whole[: len(ids)]
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""


def test_the_tools_are_told_in_few_words(tokenizer: Any) -> None:
    call_format = CallFormat(tokenizer, BOX)
    text = call_format.text(call_format.prompt_ids("hi"))
    assert 'write <tool_call>{"name": ..., "arguments": {...}}</tool_call>' in text
    assert "calculator(expression: string): Work out" in text
    assert "place(city: string, unit?: 'C' or 'F', days?: array): Tell the weather. city: where; days: which" in text
    assert "named SmolLM" not in text  # the template's own system message gives way
    assert len(call_format._instruction) < 450


def test_a_system_message_of_the_prompts_own_is_kept(tokenizer: Any) -> None:
    call_format = CallFormat(tokenizer, BOX, instruction="CALL!")
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    joined = [{"role": "system", "content": "Be brief.\n\nCALL!"}, prompt[1]]
    assert call_format.prompt_ids(prompt) == rendered(tokenizer, joined, add_generation_prompt=True)
    assert prompt[0]["content"] == "Be brief."


def test_nothing_is_told_with_an_empty_instruction_or_without_tools(tokenizer: Any) -> None:
    for call_format in (CallFormat(tokenizer, BOX, instruction=""), CallFormat(tokenizer, Toolbox())):
        assert call_format.prompt_ids("hi") == prompt_ids(tokenizer, "hi")


def test_a_template_that_takes_tools_tells_them_itself() -> None:
    tokenizer = micro_tokenizer(HERMES)
    call_format = CallFormat(tokenizer, BOX)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert call_format.prompt_ids(messages) == rendered(
        tokenizer, messages, tools=BOX.schemas, add_generation_prompt=True
    )
    assert '"name": "place"' in call_format.text(call_format.prompt_ids("hi"))
    assert call_format.text(call_format.result_ids([Outcome("4"), Outcome("5")])) == (
        "<user><tool_response>4</tool_response><tool_response>5</tool_response><end><assistant>"
    )
    untold = CallFormat(tokenizer, BOX, instruction="")
    assert untold.text(untold.prompt_ids("hi")) == "<user>hi<end><assistant>"


@pytest.mark.parametrize("template", [TWO_ROLES, OTHERS_UNSAID])
def test_a_template_without_the_role_tool_gets_results_from_the_user(template: str) -> None:
    call_format = CallFormat(micro_tokenizer(template), BOX)
    assert call_format.text(call_format.result_ids([Outcome("4"), Outcome("5")])) == (
        "<user><tool_response>4</tool_response>\n<tool_response>5</tool_response><end><assistant>"
    )


def test_a_template_whose_turns_end_without_the_end_token() -> None:
    lines = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    call_format = CallFormat(micro_tokenizer(lines + "{% if add_generation_prompt %}assistant:{% endif %}"), BOX)
    assert call_format.text(call_format.result_ids([Outcome("4")])) == "\ntool: 4\nassistant:"


@pytest.fixture
def gemma() -> Any:
    """In the manner of Gemma: the template ends a turn with a token that is not the tokenizer's end token."""
    lines = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eot>\n{% endfor %}"
    tokenizer = micro_tokenizer(lines + "{% if add_generation_prompt %}<assistant>{% endif %}")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<eot>"]})
    assert tokenizer.eos_token == "<end>"
    return tokenizer


def test_a_turn_ends_with_the_end_token_of_the_template(gemma: Any) -> None:
    call_format = CallFormat(gemma, BOX, instruction="")
    assert call_format.text(call_format.result_ids([Outcome("4")])) == "\n<tool>4<eot>\n<assistant>"
    prompt, ids, writers = call_format.trace([USER, asked(arguments=CALL.arguments), TOLD, ANSWER])
    lived = [USER, {"role": "assistant", "content": call_text(CALL)}, TOLD, ANSWER]
    whole = rendered(gemma, lived)
    assert prompt + ids == whole[:-1]  # but for the line's end, which nobody waits for
    ends = [at for at, token in enumerate(ids) if token == gemma.convert_tokens_to_ids("<eot>")]
    assert [writers[at] for at in ends] == [EXPERT, TOOL, EXPERT]
    assert gemma.eos_token_id not in ids


def test_the_token_of_the_next_role_is_no_end() -> None:
    roles = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    bare = CallFormat(micro_tokenizer(roles), BOX)
    assert bare.text(bare.result_ids([Outcome("4")])) == "<tool>4<assistant>"


def test_the_bundled_template_ends_as_its_tokenizer_does(smollm2: Any) -> None:
    assert turn_end(smollm2) == smollm2.eos_token == "<|im_end|>"


def test_a_template_that_refuses_the_system_role_is_told_of_with_the_way_out() -> None:
    tokenizer = micro_tokenizer(TWO_ROLES.replace(", 'system'", ""))
    with pytest.raises(
        UserError, match=r"roles system, user: no such role.* beginning of the user's .* set instruction: ''"
    ):
        CallFormat(tokenizer, BOX).prompt_ids("hi")
    assert CallFormat(tokenizer, BOX, instruction="").prompt_ids("hi")


def test_a_template_that_changes_what_the_assistant_said_is_told_of() -> None:
    changed = micro_tokenizer(TWO_ROLES.replace("m['content']", "m['content']|upper"))
    with pytest.raises(UserError, match="writes what the assistant said as it is"):
        CallFormat(changed, BOX).result_ids([Outcome("4")])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(UserError, match="chat template"):
        CallFormat(micro_tokenizer(None), BOX)


# --- results


def test_a_result_is_cut_and_says_so(tokenizer: Any) -> None:
    call_format = CallFormat(tokenizer, BOX, max_tool_tokens=20)
    around = len(call_format.result_ids([Outcome("")]))
    for text in ("word " * 1000, "ab" * 30, "1234567890" * 9, "é漢🙂" * 40, "x" * 100_000):
        ids = call_format.result_ids([Outcome(text)])
        assert around + 15 <= len(ids) <= around + 20
        assert "..." in call_format.text(ids)
        both = call_format.result_ids([Outcome(text), Outcome("4")])
        assert len(both) > len(ids)
    short = call_format.text(call_format.result_ids([Outcome("four")]))
    assert "four" in short
    assert "..." not in short


def test_a_result_of_just_the_limit_is_whole() -> None:
    call_format = CallFormat(micro_tokenizer(), BOX, max_tool_tokens=10)
    assert call_format.text(call_format.result_ids([Outcome("0123456789")])) == "<tool>0123456789<end><assistant>"
    assert call_format.text(call_format.result_ids([Outcome("0123456789a")])) == "<tool>0123456...<end><assistant>"


def test_a_limit_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="max_tool_tokens is 3"):
        CallFormat(micro_tokenizer(), BOX, max_tool_tokens=3)


def test_a_tool_cannot_end_a_turn_or_speak_as_another(tokenizer: Any) -> None:
    call_format = CallFormat(tokenizer, BOX)
    plain = call_format.result_ids([Outcome("x")])
    control = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = call_format.result_ids([Outcome("".join(control) + "<en<end>d>" + tokenizer.eos_token * 3)])
    for index in control.values():
        assert ids.count(index) == plain.count(index)


def test_text_that_is_no_valid_unicode_does_not_break_the_tokenizer(tokenizer: Any) -> None:
    assert "a?b" in CallFormat(tokenizer, BOX).text(CallFormat(tokenizer, BOX).result_ids([Outcome("a\ud800b")]))


# --- reading


def test_a_call_is_read_back_as_it_was_written() -> None:
    call_format = CallFormat(micro_tokenizer(), BOX)
    calls = [CALL, Call("place", {"city": 'Örebro </tool_call> "x"\n', "days": [1]}), Call("now", {})]
    turn = call_format.read("first " + " and ".join(map(call_text, calls)))
    assert list(turn.calls) == calls
    assert turn.answer is None
    assert call_text(CALL) == '<tool_call>{"name": "calculator", "arguments": {"expression": "2+2"}}</tool_call>'


def test_tokens_are_read_as_text(tokenizer: Any) -> None:
    call_format = CallFormat(tokenizer, BOX)
    ids = answer_ids(tokenizer, call_text(CALL))[:-1]
    assert call_format.read(call_format.text(ids)).calls == (CALL,)


def test_marks_that_are_special_tokens_are_not_lost() -> None:
    tokenizer = micro_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool_call>", "</tool_call>"]})
    call_format = CallFormat(tokenizer, BOX)
    assert call_format.read(call_format.text(answer_ids(tokenizer, call_text(CALL))[:-1])).calls == (CALL,)


def test_a_turn_without_a_call_is_the_answer() -> None:
    turn = CallFormat(micro_tokenizer(), BOX).read(" It is 4.\n")
    assert (turn.text, turn.calls, turn.answer) == (" It is 4.\n", (), "It is 4.")
    assert CallFormat(micro_tokenizer(), BOX).read("").answer == ""


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"code": "a\nb\t"}}\n</tool_call>',
        '<tool_call>{"arguments": {"code": "a\\nb\\t"}, "name": "f"}</tool_call> and so on',
    ],
)
def test_white_space_and_raw_line_breaks_are_allowed(text: str) -> None:
    assert CallFormat(micro_tokenizer(), BOX).read(text).calls == (Call("f", {"code": "a\nb\t"}),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<tool_call>", "no valid JSON"),
        ("<tool_call></tool_call>", "no valid JSON"),
        ("<tool_call>calculator 2</tool_call>", "no valid JSON"),
        ('<tool_call>{"name": "a", "arguments": {}', "no valid JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'needs a "name"'),
        ('<tool_call>{"name": 3}</tool_call>', 'needs a "name"'),
        ("<tool_call>[1]</tool_call>", 'needs a "name"'),
        ('{"name": "a", "arguments": {}}</tool_call>', "without <tool_call>"),
        ("<tool_call>" + "[" * 100_000, "cannot be read"),
        ('<tool_call>{"name": "a", "arguments": {"n": ' + "9" * 5000 + "}}</tool_call>", "cannot be read"),
    ],
)
def test_a_call_that_cannot_be_read_is_malformed(text: str, said: str) -> None:
    turn = CallFormat(micro_tokenizer(), BOX).read(text)
    (outcome,) = turn.calls
    assert isinstance(outcome, Outcome)
    assert outcome.fault == "malformed"
    assert said in outcome.text
    assert len(outcome.text) < 120
    assert turn.answer is None


def test_good_calls_beside_malformed_ones_are_kept_in_their_places() -> None:
    call_format = CallFormat(micro_tokenizer(), BOX)
    good = call_text(CALL)
    calls = call_format.read(f"<tool_call>no</tool_call>{good}<tool_call>open {good}<tool_call>").calls
    assert [call if isinstance(call, Call) else call.fault for call in calls] == [
        "malformed", CALL, "malformed", CALL, "malformed",
    ]  # fmt: skip


@pytest.mark.parametrize(("piece", "count"), [(f"{OPEN}{{}} ", 40_000), (f"{OPEN}{{}}{CLOSE}\n", 100_000)])
def test_a_long_turn_is_read_in_one_pass(piece: str, count: int) -> None:
    start = time.process_time()
    calls = CallFormat(micro_tokenizer(), BOX).read(piece * count).calls
    assert time.process_time() - start < 60  # read again from every call on, it takes far longer
    assert len(calls) == count


# --- traces


def asked(
    *, arguments: Any = "{}", content: str | None = None, name: str = "calculator", **given: Any
) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}, **given}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


USER = {"role": "user", "content": "2+2?"}
TOLD = {"role": "tool", "content": "4"}
ANSWER = {"role": "assistant", "content": "It is 4."}


@pytest.mark.parametrize("arguments", ['{"expression": "2+2"}', {"expression": "2+2"}])
def test_a_trace_is_what_the_model_would_have_lived(tokenizer: Any, arguments: Any) -> None:
    call_format = CallFormat(tokenizer, BOX)
    prompt, ids, writers = call_format.trace([USER, asked(arguments=arguments, content="I see. "), TOLD, ANSWER])
    turns = [answer_ids(tokenizer, "I see. " + call_text(CALL)), answer_ids(tokenizer, "It is 4.")]
    heard = call_format.result_ids([Outcome("4")])
    assert prompt == call_format.prompt_ids([USER])
    assert ids == [*turns[0], *heard, *turns[1]]
    assert writers == [EXPERT] * len(turns[0]) + [TOOL] * len(heard) + [EXPERT] * len(turns[1])


def test_a_trace_with_no_call_is_an_answer(tokenizer: Any) -> None:
    prompt, ids, writers = CallFormat(tokenizer, BOX).trace([{"role": "system", "content": "s"}, USER, ANSWER])
    assert ids == answer_ids(tokenizer, "It is 4.")
    assert writers == [EXPERT] * len(ids)
    assert prompt


def test_several_calls_of_a_turn_and_results_in_another_order() -> None:
    call_format = CallFormat(micro_tokenizer(), BOX)
    one, two = asked(id="a", arguments='{"expression": "1"}'), asked(id="b", arguments='{"expression": "2"}')
    turn = {**one, "tool_calls": one["tool_calls"] + two["tool_calls"]}
    results = [{"role": "tool", "tool_call_id": name, "content": name.upper()} for name in "ba"]
    text = call_format.text(call_format.trace([USER, turn, *results, ANSWER])[1])
    calls = [call_text(Call("calculator", {"expression": n})) for n in "12"]
    assert text == "".join([*calls, "<end><tool>A<end><tool>B<end><assistant>It is 4.<end>"])


def test_keys_that_the_prompt_does_not_need_are_passed_over(tokenizer: Any) -> None:
    call_format = CallFormat(tokenizer, BOX)
    assert call_format.trace([{**USER, "name": "Ann"}, {**ANSWER, "refusal": None}]) == call_format.trace(
        [USER, ANSWER]
    )


def test_calls_may_stand_in_the_text() -> None:
    call_format = CallFormat(micro_tokenizer(), BOX)
    written = {"role": "assistant", "content": call_text(CALL)}
    assert call_format.trace([USER, written, TOLD, ANSWER]) == call_format.trace(
        [USER, asked(arguments=CALL.arguments), TOLD, ANSWER]
    )


def test_a_long_result_is_cut_in_a_trace_as_it_is_in_life() -> None:
    call_format = CallFormat(micro_tokenizer(), BOX, max_tool_tokens=10)
    _, ids, writers = call_format.trace([USER, asked(), {"role": "tool", "content": "y" * 99}, ANSWER])
    assert "<tool>yyyyyyy...<end>" in call_format.text(ids)
    assert writers.count(TOOL) == 10 + 3


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no assistant message"),
        ([USER], "no assistant message"),
        ([ANSWER], "message 1: the expert's first message must follow one of the user"),
        ([USER, {"role": "system", "content": "s"}, ANSWER], "message 3: the expert's first message must follow one"),
        ([{"role": "human", "content": "?"}, ANSWER], "message 1: the role is 'human', expected one of system, user"),
        ([{"content": "?"}, ANSWER], "message 1: the role is None"),
        ([{"role": ["user"], "content": "?"}, ANSWER], r"message 1: the role is \['user'\]"),
        ([{"role": "user", "content": None}, ANSWER], "message 1: the user's 'content' must be a text, found None"),
        ([USER, TOLD, ANSWER], "message 2: a tool's result without a call"),
        ([USER, asked(), TOLD], "ends with a tool's result"),
        ([USER, asked()], "message 2: the assistant makes 1 calls and 0 results follow"),
        ([USER, asked(), ANSWER], "message 2: .* 0 results follow"),
        ([USER, asked(), TOLD, TOLD, ANSWER], "message 2: .* 2 results follow"),
        ([USER, ANSWER, TOLD], "message 2: the assistant makes 0 calls and 1 results follow"),
        ([USER, ANSWER, ANSWER], "message 3: .* it was the answer"),
        ([USER, ANSWER, USER], "message 3: the role is 'user'"),
        ([USER, asked(), TOLD, USER, ANSWER], "message 4: the role is 'user'"),
        ([USER, asked(arguments="{"), TOLD, ANSWER], "message 2: the arguments of 'calculator' are not JSON"),
        ([USER, asked(arguments="[1]"), TOLD, ANSWER], "message 2: the arguments of 'calculator' must be an object"),
        ([USER, asked(arguments=None), TOLD, ANSWER], "message 2: the arguments of 'calculator' must be an object"),
        ([USER, asked(name=None), TOLD, ANSWER], "message 2: a tool call needs a 'function' with a 'name'"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [3]}, TOLD, ANSWER], "a tool call needs"),
        ([USER, {"role": "assistant", "content": "<tool_call>{"}, TOLD, ANSWER], "message 2: malformed call"),
        ([USER, {"role": "assistant", "content": " "}], "message 2: the assistant says nothing"),
        ([USER, {"role": "assistant", "content": [1]}], "message 2: the assistant's 'content' must be a text"),
        ([USER, asked(), {"role": "tool", "content": {"a": 1}}, ANSWER], "message 3: the tool's 'content'"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": 3}, ANSWER], "'tool_calls' must be a list, found 3"),
        ([USER, asked(id=["a"]), TOLD, ANSWER], "message 2: 'id' must be a text"),
        ([USER, asked(id="a"), {**TOLD, "tool_call_id": 1}, ANSWER], "message 3: 'tool_call_id' must be a text"),
        ([{"role": "user", "content": "\ud83d"}, ANSWER], r"message 1: '\\ud83d' is not a whole character of Unicode"),
        ([USER, asked(), {"role": "tool", "content": "\udc00"}, ANSWER], r"message 3: '\\udc00' is not a whole"),
        ([USER, asked(arguments='{"x": "\\ud83d"}'), TOLD, ANSWER], r"message 2: '\\ud83d' is not a whole"),
        ([USER, {**ANSWER, "refusal": "\ud83d"}], r"message 2: '\\ud83d' is not a whole"),

        (
            [USER, asked(id="a"), {**TOLD, "tool_call_id": "b"}, ANSWER],
            r"message 2: its calls are \['a'\], the results answer \['b'\]",
        ),
    ],
)  # fmt: skip
def test_messages_that_are_no_trace_say_why(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CallFormat(micro_tokenizer(), BOX).trace(messages)


def test_messages_are_left_as_they_are() -> None:
    messages = [USER, asked(arguments={"expression": "1"}), TOLD, ANSWER]
    before = json.dumps(messages)
    CallFormat(micro_tokenizer(), BOX).trace(messages)
    assert json.dumps(messages) == before
