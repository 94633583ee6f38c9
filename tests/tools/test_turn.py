"""Calls as models write them: each form against the one call that it stands for, and what must stay an answer."""

# ruff: noqa: E501  (a call stands on one line)

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest

from skillweave.tools.call import Call, Outcome
from skillweave.tools.turn import CLOSE, OPEN, call_text, read_turn

SUM = Call("calculator", {"expression": "2+2"})
BODY = '{"name": "calculator", "arguments": {"expression": "2+2"}}'
LLAMA = '{"name": "calculator", "parameters": {"expression": "2+2"}}'
PLACE = Call("place", {"city": "Örebro", "days": 3, "near": ["a", "b"], "exact": True, "code": "007"})


def schema(name: str, **types: object) -> dict:
    properties = {key: {"type": kind} if isinstance(kind, str) else kind for key, kind in types.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


TOOLS = [
    schema("calculator", expression="string"),
    schema(
        "place", city="string", days="integer", near={"anyOf": [{"type": "array"}, {"type": "null"}]},
        exact="boolean", code="string",
    ),
    schema("now"),
]  # fmt: skip

ONE_CALL = {
    "hermes": f"<tool_call>\n{BODY}\n</tool_call>",
    "text around": f"I will compute.\n<tool_call>{BODY}</tool_call> That is it.",
    "arguments as a JSON text": f'<tool_call>{json.dumps({"name": "calculator", "arguments": json.dumps(dict(SUM.arguments))})}</tool_call>',
    "arguments as a text in single quotes": """<tool_call>{"name": "calculator", "arguments": "{'expression': '2+2'}"}</tool_call>""",
    "parameters": f"<tool_call>{LLAMA}</tool_call>",
    "the schema's parameters beside the arguments": '<tool_call>{"name": "calculator", "parameters": {"type": "object"}, "arguments": {"expression": "2+2"}}</tool_call>',
    "empty arguments beside the parameters": '<tool_call>{"name": "calculator", "arguments": {}, "parameters": {"expression": "2+2"}}</tool_call>',
    "the same under both keys": '<tool_call>{"name": "calculator", "parameters": {"expression": "2+2"}, "arguments": {"expression": "2+2"}}</tool_call>',
    "the tool's whole description": '<tool_call>{"name": "calculator", "description": "It computes.", "strict": true, "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}}, "arguments": {"expression": "2+2"}}</tool_call>',
    "a list of the parameters": '<tool_call>{"name": "calculator", "arguments": {"expression": "2+2"}, "parameters": ["expression"]}</tool_call>',
    "no parameters": '<tool_call>{"name": "calculator", "arguments": {"expression": "2+2"}, "parameters": "none"}</tool_call>',
    "OpenAI Responses": '<tool_call>{"type": "function_call", "id": "fc_1", "call_id": "c1", "status": "completed", "name": "calculator", "arguments": "{\\"expression\\": \\"2+2\\"}"}</tool_call>',
    "function object with its name and status beside it": f'<tool_call>{{"type": "function", "name": "calculator", "status": "completed", "function": {BODY}}}</tool_call>',
    "another key without a value": f'<tool_call>{{"thought": null, {BODY[1:]}</tool_call>',
    "an id and a type": f'<tool_call>{{"id": "c1", "type": "function", {BODY[1:]}</tool_call>',
    "function object": f'<tool_call>{{"id": "c1", "type": "function", "function": {BODY}}}</tool_call>',
    "function object with a JSON text": '<tool_call>{"type": "function", "function": {"name": "calculator", "arguments": "{\\"expression\\": \\"2+2\\"}"}}</tool_call>',
    "function as the name": '<tool_call>{"type": "function", "function": "calculator", "parameters": {"expression": "2+2"}}</tool_call>',
    "tool_name": '<tool_call>{"tool_name": "calculator", "parameters": {"expression": "2+2"}}</tool_call>',
    "fence": f"<tool_call>\n```json\n{BODY}\n```\n</tool_call>",
    "fence without a language, no end mark": f"<tool_call>```\n{BODY}\n```",
    "fence around the mark": f"```\n<tool_call>{BODY}</tool_call>\n```",
    "a fence with a tag around the mark": f"```tool_call\n<tool_call>{BODY}</tool_call>\n```",
    "end mark cut off": f"<tool_call>{BODY}</tool_c",
    "the mark of the beginning for that of the end": f"<tool_call>{BODY}\n<tool_call>",
    "a turn's end token": f"<tool_call>{BODY}<|im_end|>\n",
    "a bare call with its end tokens": f"{LLAMA}<|eom_id|></s>",
    "a bare call with a semicolon": f"{LLAMA};",
    "a bare function object with an id": f'{{"id": "c1", "type": "function", "function": {BODY}}}',
    "a bare function as the name": '{"function": "calculator", "parameters": {"expression": "2+2"}}',
    "JSON in a fence": f"```json\n{LLAMA}\n```",
    "Gemma's fence around JSON": f"```tool_call\n{BODY}\n```",
    "Python": "[calculator(expression='2+2')]",
    "Python without brackets": 'calculator(expression = "2+2")',
    "Python without the name of the value": '[calculator("2+2")]',
    "Python in a fence": "```python\n[calculator(expression='2+2')]\n```",
    "Gemma's tool_code": '```tool_code\nprint(calculator(expression="2+2"))\n```',
    "Llama 3.2": '<|python_tag|>[calculator(expression="2+2")]<|eom_id|>',
    "LFM2": 'So: <|tool_call_start|>[calculator(expression="2+2")]<|tool_call_end|> I wait.',
    "Python in Hermes' marks": '<tool_call>\ncalculator(expression="2+2")\n</tool_call>',
    "tool_calls": f'<tool_call>{{"tool_calls": [{{"type": "function", "function": {BODY}}}]}}</tool_call>',
    "tool_calls, bare": f'{{"tool_calls": [{{"type": "function", "function": {BODY}}}]}}',
    "function_call": f'<tool_call>{{"function_call": {BODY}}}</tool_call>',
    "a JSON text in a JSON text": f'<tool_call>{json.dumps({"name": "calculator", "arguments": json.dumps(json.dumps(dict(SUM.arguments)))})}</tool_call>',
    "Llama 3.1, own tag behind its mark": '<|python_tag|><function=calculator>{"expression": "2+2"}</function>',
    "list": f"<tool_call>[{BODY}]</tool_call>",
    "trailing comma": '<tool_call>{"name": "calculator", "arguments": {"expression": "2+2",},}</tool_call>',
    "single quotes": "<tool_call>{'name': 'calculator', 'arguments': {'expression': '2+2'}}</tool_call>",
    "keys without quotes": '<tool_call>{name: "calculator", arguments: {expression: "2+2"}}</tool_call>',
    "brace too many": f"<tool_call>{BODY}}}\n</tool_call>",
    "three braces and a bracket too many": f"<tool_call>{BODY}}} }}]}}</tool_call>",
    "brace too many, no end mark": f"<tool_call>{BODY}}}",
    "brace too few": f"<tool_call>\n{BODY[:-1]}\n</tool_call>",
    "no end mark": f"<tool_call>{BODY}\n",
    "no mark at the beginning": f"{BODY}\n</tool_call>",
    "Jamba": f"<tool_calls>[{BODY}]</tool_calls>",
    "Phi-4 mini": f"<|tool_call|>[{BODY}]<|/tool_call|>",
    "Granite": f"<|tool_call|>[{BODY}]",
    "Mistral": f"[TOOL_CALLS] [{BODY}]",
    "Mistral with an id": f'[TOOL_CALLS][{BODY[:-1]}, "id": "abcdefghi"}}]',
    "Mistral, one object": f"[TOOL_CALLS]{BODY}",
    "newer Mistral": '[TOOL_CALLS]calculator[ARGS]{"expression": "2+2"}',
    "newer Mistral with an id": '[TOOL_CALLS]calculator[CALL_ID]a1B2[ARGS]{"expression": "2+2"}',
    "newer Mistral without [ARGS]": '[TOOL_CALLS]calculator{"expression": "2+2"}',
    "Llama 3.1": f"<|python_tag|>{LLAMA}",
    "Llama 3.1, bare": f"\n{LLAMA}\n",
    "Llama 3.1, bare, with a type": f'{{"type": "function", {LLAMA[1:]}',
    "Llama 3.1, own tag": '<function=calculator>{"expression": "2+2"}</function>',
    "Qwen3-Coder": "<tool_call>\n<function=calculator>\n<parameter=expression>\n2+2\n</parameter>\n</function>\n</tool_call>",
    "Qwen3-Coder without its first mark": "I see.\n<function=calculator>\n<parameter=expression>\n2+2\n</parameter>\n</function>\n</tool_call>",
    "Qwen3-Coder without its last marks": "<tool_call>\n<function=calculator>\n<parameter=expression>\n2+2\n</parameter>",
    "GLM": "<tool_call>calculator\n<arg_key>expression</arg_key>\n<arg_value>2+2</arg_value>\n</tool_call>",
}  # fmt: skip


@pytest.mark.parametrize("form", ONE_CALL)
def test_one_call_in_every_form(form: str) -> None:
    turn = read_turn(ONE_CALL[form], TOOLS)
    assert turn.calls == (SUM,)
    assert turn.answer is None
    assert turn.other_forms == (
        form not in ("hermes", "text around", "fence around the mark", "a fence with a tag around the mark")
    )


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>[{BODY}, {LLAMA}]</tool_call>",
        f"<tool_call>{BODY}\n{LLAMA}</tool_call>",
        f"<tool_call>{BODY}, {BODY}</tool_call>",
        f"<tool_call>{BODY}</tool_call>\n<tool_call>{BODY}</tool_call>",
        f"<tool_call>{BODY}\n<tool_call>{BODY}",
        f"[TOOL_CALLS][{BODY}, {BODY}]",
        '[TOOL_CALLS]calculator[ARGS]{"expression": "2+2"}[TOOL_CALLS]calculator[ARGS]{"expression": "2+2"}',
        f"<|python_tag|>{LLAMA}; {LLAMA}",
        f"{LLAMA}; {LLAMA}",
        f"[{LLAMA}, {LLAMA}]",
    ],
)
def test_several_calls_of_one_turn(text: str) -> None:
    assert read_turn(text, TOOLS).calls == (SUM, SUM)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call><function=place><parameter=city>\nÖrebro\n</parameter><parameter=days>3</parameter>"
        '<parameter=near>["a", "b"]</parameter><parameter=exact>True</parameter><parameter=code>007</parameter>'
        "</function></tool_call>",
        "<tool_call>place<arg_key>city</arg_key><arg_value>Örebro</arg_value><arg_key>days</arg_key>"
        "<arg_value>3</arg_value><arg_key>near</arg_key><arg_value>['a', 'b']</arg_value><arg_key>exact</arg_key>"
        "<arg_value>true</arg_value><arg_key>code</arg_key><arg_value>007</arg_value></tool_call>",
    ],
)
def test_values_without_types_get_those_of_the_tool(text: str) -> None:
    assert read_turn(text, TOOLS).calls == (PLACE,)
    (untyped,) = read_turn(text).calls
    assert isinstance(untyped, Call)
    assert untyped.arguments["days"] == "3"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"""{'a': 'it\'s', 'b': "it\'s", 'c': 'say "x"', 'd': "say 'x'"}""",
         {"a": "it's", "b": "it's", "c": 'say "x"', "d": "say 'x'"}),
        ("{'a': True, 'b': False, 'c': None, 'd': [1, -2.5e3,], 'e': {},}",
         {"a": True, "b": False, "c": None, "d": [1, -2500.0], "e": {}}),
        (r"""{'a': 'x\ny', 'b': '\x41\u0042', 'c': "\d+\w", 'd': 'C:\\x', 'e': '\\\'',}""",
         {"a": "x\ny", "b": "AB", "c": r"\d+\w", "d": "C:\\x", "e": "\\'"}),
        ("{'a': 'two\nlines, }', 'b': '</tool_call>', 'c': ',}'}", {"a": "two\nlines, }", "b": "</tool_call>", "c": ",}"}),
        ("{'a': '\\ud83d\\ude00', 'b': 'True, None'}", {"a": "😀", "b": "True, None"}),
    ],
)  # fmt: skip
def test_nearly_json_means_what_it_says(written: str, meant: dict) -> None:
    assert read_turn(f"<tool_call>{{'name': 'f', 'arguments': {written}}}</tool_call>").calls == (Call("f", meant),)


def test_python_writes_what_is_read() -> None:
    rng = random.Random(0)

    def value(depth: int) -> object:
        kind = rng.randrange(8 if depth else 6)
        if kind < 6:
            text = "".join(rng.choice("ab'\"\\\n\t{}[],: é😀") for _ in range(rng.randrange(6)))
            return [text, rng.randrange(-99, 99), rng.random(), True, None, text][kind]
        items = [value(depth - 1) for _ in range(rng.randrange(3))]
        return items if kind == 6 else {f"k{n}'": item for n, item in enumerate(items)}

    for _ in range(300):
        call = Call("f", {"x": value(3)})
        body = repr({"name": call.name, "arguments": call.arguments})
        assert read_turn(f"<tool_call>{body}</tool_call>").calls == (call,)


@pytest.mark.parametrize("body", [
    '{"name": "now"}', '{"name": "now", "arguments": %s}', '{"name": "now", "id": "x"}',
    '{"name": "now", "arguments": %s, "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}',
])  # fmt: skip
@pytest.mark.parametrize("nothing", ["null", '""', '"{}"', "{}"])
def test_no_arguments(body: str, nothing: str) -> None:
    assert read_turn(f"<tool_call>{body.replace('%s', nothing)}</tool_call>").calls == (Call("now", {}),)


@pytest.mark.parametrize("text", ["<tool_call>now</tool_call>", "<tool_call><function=now></function></tool_call>"])
def test_no_arguments_without_json(text: str) -> None:
    assert read_turn(text, TOOLS).calls == (Call("now", {}),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<tool_call>{"name": "f", "args": {"x": 1}}</tool_call>', "'args' is no key of a call"),
        ('<tool_call>{"name": "f", "x": 1}</tool_call>', "'x' is no key of a call"),
        ('<tool_call>{"name": "f", "arguments": {}, "input": {"x": 1}}</tool_call>', "'input' is no key of a call"),
        ('<tool_call>{"name": "f", "arguments": {}, "x": 0}</tool_call>', "'x' is no key of a call"),
        ('<tool_call>{"name": "f", "x": 1, "arguments": {"y": 2}}</tool_call>', "'x' is no key of a call"),
        ('<tool_call>{"name": "f", "parameters": "{\\"y\\": 2}", "x": 1}</tool_call>', "'x' is no key of a call"),
        (
            '<tool_call>{"function": {"name": "f"}, "arguments": {"x": 1}}</tool_call>',
            "'arguments' is no key of a call",
        ),
        (
            '<tool_call>{"function": {"name": "f", "arguments": {"y": 2}}, "x": 1}</tool_call>',
            "'x' is no key of a call",
        ),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}, "parameters": {"y": 2}}</tool_call>', "stand both under"),
        ('<tool_call>{"name": "f", "function": "g", "arguments": {}}</tool_call>', "it has the names 'f' and 'g'"),
        (
            '<tool_call>{"name": "g", "function": {"name": "f", "arguments": {}}}</tool_call>',
            "it has the names 'f' and 'g'",
        ),
        ('<tool_call>{"name": "f", "description": "milk"}</tool_call>', "'description' is no key of a call"),
        ('<tool_call>{"name": "f", "arguments": {}, "status": {"x": 1}}</tool_call>', "'status' is no key of a call"),
        ('<tool_call>{"name": "f", "parameters": [1]}</tool_call>', '"parameters" must be an object'),
        (
            '<tool_call>{"name": "f", "arguments": {}, "parameters": "2+2"}</tool_call>',
            '"parameters" must be an object',
        ),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '"arguments" must be an object'),
        ('<tool_call>{"name": "f", "arguments": "2+2"}</tool_call>', "must be an object"),
        ('<tool_call>{"name": "f", "arguments": "{} {}"}</tool_call>', "must be an object"),
        ("<tool_call>[]</tool_call>", "the list holds no call"),
        ("<tool_call>unknown</tool_call>", "no valid JSON"),
        (f"<tool_call>{BODY} as I said </tool_call>", "must follow the JSON"),
        (f"<tool_call>{BODY} as I said", "must follow the JSON"),
        (f"<tool_call>{BODY[:-1]}", "no valid JSON"),  # cut off or not: nobody can know what was to come
        (f"<tool_call>{BODY[:-1]}, </tool_call>", "no valid JSON"),
        ("<tool_call>{'name': 'f', 'arguments': {'x': unknown}}</tool_call>", "no valid JSON"),
        ("<tool_call>{'name': 'f' 'arguments': {}}</tool_call>", "no valid JSON"),
        ("<tool_call>{'name': 'f', 'arguments': {]}</tool_call>", "no valid JSON"),
        ("[TOOL_CALLS]calculator(2)", "no valid JSON"),
        ("[TOOL_CALLS]f[ARGS][1]", "no valid JSON"),
        ("<|python_tag|>print(2)", "without a name"),
        ("<tool_call>[f(x=g(1))]</tool_call>", "not a call in Python"),
        ("<tool_call>[f(x=1, x=2)]</tool_call>", "appears twice"),
        ("<tool_call>[f(x=1e999)]</tool_call>", "JSON cannot hold"),
        ("<tool_call>f(x={1: 2})</tool_call>", "the keys of an object"),
        ("<tool_call>x = f(x=1)</tool_call>", "no valid JSON"),
        ("<tool_call><function=f><parameter=x>1</function></tool_call>", "</parameter> is missing"),
        ("<tool_call><function=f><parameter=x>1</parameter> and", "</function> is missing"),
        ("<tool_call>f<arg_key>x</arg_key>1</tool_call>", "</arg_value> is missing"),
        # Which of the two is meant would be a guess.
        ('<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>', "the key 'name' appears twice"),
        ("<tool_call>{'name': 'f', 'arguments': {'x': 1, 'x': 2}}</tool_call>", "no valid JSON"),
        (
            "<tool_call><function=f><parameter=x>1</parameter><parameter=x>2</parameter></function></tool_call>",
            "'x' appears twice",
        ),
        (f"<tool_call>f{2 * '<arg_key>x</arg_key><arg_value>1</arg_value>'}</tool_call>", "'x' appears twice"),
        # A server could not pass these on as JSON.
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "NaN is not a number"),
        ('<tool_call>{"name": "f", "arguments": {"x": [-1e999]}}</tool_call>', "-1e999 is not a number"),
        ('<tool_call>{"name": "f", "arguments": {"x": "\\ud83d"}}</tool_call>', "half a character"),
    ],
)
def test_what_cannot_be_read_is_malformed_and_says_why(text: str, said: str) -> None:
    (outcome,) = read_turn(text, TOOLS).calls
    assert isinstance(outcome, Outcome)
    assert outcome.fault == "malformed"
    assert said in outcome.text
    assert len(outcome.text) < 120


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "parameters": {"age": 36}}',  # no tool of that name
        '{"name": "calculator"}',
        '{"name": "calculator", "arguments": {"expression": "2+2"}, "why": "to know"}',
        '{"name": "calculator", "arguments": 4}',
        '{"name": ["calculator"], "arguments": {}}',
        '{"calculator": {"expression": "2+2"}}',
        f"Here it is: {LLAMA}",
        f"{LLAMA}\nThat is the call I would make.",
        f"So:\n```json\n{LLAMA}\n```",
        "```python\nprint(2 + 2)\n```",
        'In Gemma you would write:\n```tool_code\ncalculator(expression="2+2")\n```\nI need no tool for this: 4.',
        'In Gemma you would write:\n```tool_code\ncalculator(expression="2+2")\n```',
        "Here:\n```tool_code\nprint(len('abc'))\n```\nIt prints 3.",
        "```tool_code\nprint(len('abc'))\n```",
        f"```tool_calls\n[{BODY}]\n```",
        "The format is ```tool_call_format",
        'calculator(expression="2+2") would do',
        "[unknown(x=1)]",
        "[calculator(expression=2 + two)]",
        f'[{LLAMA}, {{"name": "Ada"}}]',
        "[]",
        "[1, 2]",
        "{'a': 1}",
        "Write <function=name> for a function.",
        "The list is [1, [2]].",
    ],
)
def test_an_answer_stays_an_answer(text: str) -> None:
    turn = read_turn(f" {text} ", TOOLS)
    assert (turn.calls, turn.answer) == ((), text)


DELETE = '<tool_call>{"name": "delete", "arguments": {}}</tool_call>'


@pytest.mark.parametrize("written", ["Use ```python fences", DELETE, f"it's {DELETE}", f"[{DELETE}", f"a\n{DELETE}"])
@pytest.mark.parametrize("quote", ['"', "'", '"""', "'''"])
@pytest.mark.parametrize("around", ["<|tool_call_start|>[%s]<|tool_call_end|>", "<tool_call>%s</tool_call>", "%s"])
def test_a_mark_in_a_text_of_python_is_a_part_of_the_text(written: str, quote: str, around: str) -> None:
    inner = written.replace("\n", "\n" if len(quote) == 3 else r"\n").replace("'", r"\'")
    inner = inner if len(quote) == 3 or quote == "'" else inner.replace('"', r"\"")
    text = around % f'write(path="a.md", text={quote}{inner}{quote})'
    write = Call("write", {"path": "a.md", "text": written})
    assert read_turn(text, [schema("write", path="string", text="string"), schema("delete")]).calls == (write,)


@pytest.mark.parametrize("end", [", n=now())", ", n=1", ")\\", ""])
def test_a_text_of_an_unreadable_call_is_not_run(end: str) -> None:
    (outcome,) = read_turn(f"<tool_call>write(text='a\n{DELETE}'{end}</tool_call>", [schema("delete")]).calls
    assert isinstance(outcome, Outcome)


def test_a_mark_in_a_text_of_bare_json_is_a_part_of_the_text() -> None:
    text = json.dumps({"name": "write", "parameters": {"text": DELETE}})
    assert read_turn(text, [schema("write"), schema("delete")]).calls == (Call("write", {"text": DELETE}),)


def test_a_tool_without_parameters_takes_no_value_without_a_name() -> None:
    now = {"type": "function", "function": {"name": "now", "parameters": None}}
    assert read_turn('[now("x")]', [now]).answer == '[now("x")]'
    assert read_turn("[now()]", [now]).calls == (Call("now", {}),)


def test_bare_json_is_a_call_only_for_whoever_knows_the_tools() -> None:
    assert read_turn(LLAMA).answer == LLAMA


CALL = call_text(SUM)


@pytest.mark.parametrize(
    ("text", "calls", "answer"),
    [
        (f"<think>I could write {CALL} now.</think>\n{CALL}", 1, None),
        (f"I could write {CALL} now.</think>\n{CALL}", 1, None),
        ("<think>A call begins with <tool_call>, but I need none.</think>\n4", 0, "4"),
        (f"[THINK]{CALL}[/THINK]4", 0, "4"),
        (f"<think>{CALL}", 0, ""),
        (f"<think>\n\n</think>\n\n{CALL}", 1, None),
    ],
)
def test_thoughts_are_no_part_of_the_turn(text: str, calls: int, answer: str | None) -> None:
    turn = read_turn(text)
    assert (turn.text, len(turn.calls), turn.answer) == (text, calls, answer)


def test_thoughts_can_be_kept() -> None:
    assert read_turn(f"<think>{CALL}</think>{CALL}", thoughts="keep").calls == (SUM, SUM)
    assert read_turn("<think>no</think>4", thoughts="keep").answer == "<think>no</think>4"


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('"text": "say <tool_call>{\\"name\\": \\"add\\", \\"arguments\\": {}}</tool_call> now"} oops', []),
        ('"text": "x\nprint(\'<tool_call>{}</tool_call>\')\n", oops', []),
        ('"text": "a string without an end', [SUM]),
        ('"text": "a", {oops}', [SUM]),
        ('"text": "say <tool_call>{\\"a\\": <function=now></function>', []),
        ("'text': 'say <tool_call>{\"name\": \"add\"}</tool_call> now', oops", []),
        ("'text': it's", [SUM]),
    ],
)
def test_a_call_inside_a_string_is_not_made_because_the_call_around_it_is_broken(
    arguments: str, read: list[Call]
) -> None:
    broken = f'{OPEN}{{"name": "write", "arguments": {{{arguments}}}}}{CLOSE}'
    first, *others = read_turn(broken + ("\n" + CALL if read else "")).calls
    assert isinstance(first, Outcome)
    assert others == read
    assert ("counts as quoted and was not made" in first.text) == (OPEN in arguments)


PIECES = [
    "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "'", "\\", ",", ":", '{"a":', " ", "```", "<function=f>",
    "</function>", "<parameter=n>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<arg_key>", "</arg_key>", BODY, "9",
    "<think>", '\\"', "[TOOL_CALLS]a ", "<function=f><parameter=n>", "<tool_call>a<arg_key>", '<tool_call>["', "{'a':",
    "<|tool_call_start|>f(", "```tool_code\n", "now()\n", "[now(),",
    '<|tool_call_start|>f(\\"', "f('", '<tool_call>{\\"',
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_the_work_grows_as_the_length_does(piece: str) -> None:
    _check_linear(lambda size: piece * (size // len(piece)))


def test_a_fence_that_does_not_end_is_read_in_linear_time() -> None:
    _check_linear(lambda size: "```\n" + " " * size + "x")
    _check_linear(lambda size: "```\n" + "\n" * size + "x```")


def _check_linear(text_of: Callable[[int], str]) -> None:
    def seconds(size: int) -> float:
        text = text_of(size)
        times = []
        for _ in range(3):  # the least of them: what else the machine does only adds
            start = time.process_time()
            read_turn(text, TOOLS)
            times.append(time.process_time() - start)
        return min(times)

    # A ratio, for it is the same on every machine; work that grows with the square would take 64 times as long.
    assert seconds(32_000) <= 30 * seconds(4_000) + 0.05


def test_never_raises_on_anything() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        turn = read_turn("".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 12))), TOOLS)
        assert (turn.answer is None) == bool(turn.calls)
        assert turn.other_forms <= sum(isinstance(call, Call) for call in turn.calls)
