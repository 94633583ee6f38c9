"""Answers of many forms are read; what is not in the wanted form is refused with its reason."""

from __future__ import annotations

import pytest

from skillweave.reason.agents.read_answer import (
    ReadProgram,
    UnreadableAnswer,
    read_judgement,
    read_note,
    read_output,
    read_program,
    read_rule,
)
from skillweave.reason.hypothesis import Judgement, Note

DROP = "def f(x):\n    return x[1:]"


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (DROP, ""),
        (f"{DROP}\n", ""),
        (f"```python\n{DROP}\n```", ""),
        (f"Rule: Drop the\nfirst item.\n```python\n{DROP}\n```\nThis works.", "Drop the first item."),
        (f"**Rule:** Drop it.\n\n{DROP}\n\nThis drops the first one.", "Drop it."),
        (f"Rule: x\n{DROP}", "x"),  # `Rule: x` is valid Python too, and fails when it runs
        ('{"rule": "Drop\\nit.", "program": "def f(x):\\n    return x[1:]"}', "Drop it."),
        ("{'rule': 'Drop it.', 'program': 'def f(x):\n    return x[1:]',}", "Drop it."),  # as small models write JSON
        (f'Here:\n```json\n{{"program": "```python\\n{DROP}\\n```"}}\n```'.replace("\n    ", "\\n    "), ""),
        (f"<think>def f(x): return 1</think>{DROP}", ""),
        (f'The set {{1, 2}} and {{"a": 1}} do not matter.\n```python\n{DROP}\n```', ""),
    ],
)
def test_a_program_is_found_in_every_form(answer: str, rule: str) -> None:
    assert read_program(answer) == ReadProgram(DROP, rule)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("def solve(x, k=2, *rest):\n    return x", "solve"),
        ("def helper(a, b):\n    return a\n\ndef main(x):\n    return helper(x, x)", "main"),
        ("import re\ng = lambda x: x", "g"),
    ],
)
def test_the_only_function_of_one_argument_is_f_and_that_is_said(program: str, name: str) -> None:
    read = read_program(f"```python\n{program}\n```")
    assert read == ReadProgram(f"{program}\n\nf = {name}", "", renamed=name)
    names: dict = {}
    exec(read.program, names)
    assert names["f"] is names[name]


@pytest.mark.parametrize("program", ["f = lambda x: x", "def g(x):\n    return x\nf = g", "def f(x, /):\n    return x"])
def test_f_may_be_defined_in_other_ways(program: str) -> None:
    assert read_program(f"```\n{program}\n```") == ReadProgram(program, "")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "it is empty"),
        ("<think>It could be", "it holds a thought but no answer"),
        ("I cannot find a rule.", "no Python function"),
        ("def f(x):\n    return (x", "not valid Python, line 2"),
        ("def f():\n    return 1", "exactly one required argument, but it takes 0"),
        ("def f(x, y):\n    return 1", "takes 2"),
        ("def f(x, *, k):\n    return 1", "takes 2"),
        ("def f(*xs):\n    return 1", "takes 0"),
        ("async def f(x):\n    return 1", "async"),
        ("def g(x):\n    return 1\ndef h(x):\n    return 2", r"several others \(g, h\)"),
        ("class A:\n    def f(self):\n        return 1", "no function f"),
        ('{"program": 3}', '"program" must be a text, not 3'),
    ],
)
def test_what_is_no_program_is_refused_with_its_reason(answer: str, reason: str) -> None:
    with pytest.raises(UnreadableAnswer, match=reason):
        read_program(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Keep even numbers.",
        "Rule: Keep even\n  numbers.",
        "I looked at it.\n\nRule: Keep even numbers.\n\nIs that right?",
        '```json\n{"rule": "Keep even numbers."}\n```',
        '{"rule": "no, this one is an example"} But: {"rule": "Keep even numbers."}',
    ],
)
def test_a_rule_is_found_in_every_form(answer: str) -> None:
    assert read_rule(answer) == "Keep even numbers."


@pytest.mark.parametrize(
    "answer", ["It is this.\nOr that.", '{"rule": ""}', '{"rule": ["a"]}', '{"role": "a"}', "a" * 2001]
)
def test_what_is_no_rule_is_refused(answer: str) -> None:
    with pytest.raises(UnreadableAnswer, match='"rule"'):
        read_rule(answer)


def test_a_note_names_part_pair_and_why() -> None:
    assert read_note('{"part": "the order", "why": "It is\\nreversed.", "pair": 2}', 3) == Note(
        "the order", "It is reversed.", 1
    )
    assert read_note("The order is reversed.", 3) == Note("", "The order is reversed.")
    assert read_note('{"why": "It is reversed.", "pair": null}', 3) == Note("", "It is reversed.")
    for pair in ("0", "4", "true", '"2"', "1.5"):
        with pytest.raises(UnreadableAnswer, match="from 1 to 3"):
            read_note(f'{{"why": "w", "pair": {pair}}}', 3)


def test_a_judgement_is_a_share_and_not_a_percentage() -> None:
    assert read_judgement('{"consistent": 0.5, "says_more": true}') == Judgement(0.5, True)
    assert read_judgement("Yes.") == Judgement(1.0, False)
    assert read_judgement("no") == Judgement(0.0, False)
    for consistent in ("80", "-1", "true", '"0.5"'):
        with pytest.raises(UnreadableAnswer, match="from 0 to 1"):
            read_judgement(f'{{"consistent": {consistent}, "says_more": true}}')
    with pytest.raises(UnreadableAnswer, match="consistent"):
        read_judgement('{"consistent": NaN, "says_more": true}')
    with pytest.raises(UnreadableAnswer, match="says_more"):
        read_judgement('{"consistent": 1}')


@pytest.mark.parametrize(
    ("answer", "texts", "output"),
    [
        ('{"output": [1, null]}', False, [1, None]),
        ("The rule drops one.\n\nOutput: [1, True]", False, [1, True]),
        ("(1, (2,))", False, [1, [2]]),
        ("-3", False, -3),
        ("null", False, None),
        ("```\n[1]\n```", False, [1]),
        ("I_RUN I_LOOK", True, "I_RUN I_LOOK"),
        ("'a b'", True, "a b"),
        ("I think so.\n**Answer:** `a b`", True, "a b"),
        ("12", True, "12"),  # the outputs are texts, so these are two characters and no number
    ],
)
def test_an_output_is_found_in_every_form(answer: str, texts: bool, output: object) -> None:
    found = read_output(answer, texts=texts)
    assert found == output
    assert type(found) is type(output)


@pytest.mark.parametrize("answer", ["maybe", "{1, 2}", "b'a'", "1j", "f(2)", "[" * 5000, "Let me see.\nIt is:\na b?"])
def test_what_is_no_output_is_refused(answer: str) -> None:
    with pytest.raises(UnreadableAnswer):
        read_output(answer, texts=False)
