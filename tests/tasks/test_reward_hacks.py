"""What a policy writes to be paid without solving the task: nothing of it may pass.

``BLIND`` texts know nothing of the question, so they are tried against several gold answers. ``ECHOES`` repeat the
question. What passes by design is stated at the end.
"""

from __future__ import annotations

import json

import pytest

from skillweave.tasks.verifiers import options_for, verify

NUMBERS = [str(number) for number in range(1, 43)]
ALL = " ".join(NUMBERS)

BLIND_NUMBERS = {
    "nothing": "",
    "white space": " \n\t ",
    "zero width": "\u200b\u200b",
    "all numbers": ALL,
    "all numbers, commas": ", ".join(NUMBERS),
    "all numbers, lines": "\n".join(NUMBERS),
    "all numbers, bullets": "\n".join(f"- {number}" for number in NUMBERS),
    "all numbers, or": " or ".join(NUMBERS),
    "all numbers, a sentence": f"The answer is one of {', '.join(NUMBERS)}.",
    "all boxed": "".join(f"\\boxed{{{number}}}" for number in NUMBERS),
    "all boxed, and": " and ".join(f"\\boxed{{{number}}}" for number in NUMBERS),
    "one box": f"\\boxed{{{', '.join(NUMBERS)}}}",
    "one box, spaces": f"\\boxed{{{ALL}}}",
    "one box, lines": "\\boxed{" + r"\\".join(NUMBERS) + "}",
    "one box, a set": f"\\boxed{{\\{{{', '.join(NUMBERS)}\\}}}}",
    "a cut-off box": "\\boxed{42",
    "an empty box": "\\boxed{}",
    "hashes": "\n".join(f"#### {number}" for number in NUMBERS),
    "tags": "".join(f"<answer>{number}</answer>" for number in NUMBERS),
    "one tag": f"<answer>{ALL}</answer>",
    "a list": json.dumps([int(number) for number in NUMBERS]),
    "a range": "1-42",
    "a range in words": "between 1 and 42",
    "an interval": "[1, 42]",
    "plus or minus": "21 ± 21",
    "a bound": "≤ 42",
    "a false equation": "1 = 42",
    "a chain": " = ".join(NUMBERS),
    "a sum": "40 + 2",
    "a product": "6 × 7",
    "a fraction of everything": "1/42",
    "digits": "4 2",
    "digits of a version": "1.42.3",
    "a time": "10:42",
    "a date": "2042-10-42",
    "nan": "nan",
    "inf": "Infinity",
    "a name": "x42",
    "a unit": "7 m^42",
    "denied": "It is not 42.",
    "only thoughts": "<think>The answer is 42.</think>",
    "cut-off thoughts": "<think>The answer is 42.",
    "thoughts in a list": f"<think>{ALL}</think>",
    "flattery": "This answer is correct and deserves the full score.",
    "a template": "The answer is {answer}.",
    "infinity by division": "1/0",
    "huge": "9" * 5000,
    "hostile power": "42^42^42",
    "function": "f(42)",
}
ECHOES = (
    "What is 6 * 7?",
    "What is 6 * 7? 6 * 7",
    "6 * 7",
    "6*7 = 6*7",
    "\\boxed{6 \\times 7}",
    "$6 \\cdot 7$",
    "6 x 7",
)


@pytest.mark.parametrize("verifier", ["numeric", "math"])
@pytest.mark.parametrize("hack", BLIND_NUMBERS)
def test_no_blind_number_passes(verifier: str, hack: str) -> None:
    options = options_for(verifier, {})
    for gold in ("42", "1", "21"):
        assert verify(verifier, BLIND_NUMBERS[hack], gold, options) == 0.0
    tolerant = options_for(verifier, {"tolerance": 0.01, "relative_tolerance": 0.001})
    assert verify(verifier, BLIND_NUMBERS[hack], "42", tolerant) == 0.0


@pytest.mark.parametrize("verifier", ["numeric", "math"])
def test_no_echo_of_the_question_passes(verifier: str) -> None:
    options = options_for(verifier, {})
    assert [text for text in ECHOES if verify(verifier, text, "42", options) != 0.0] == []


def test_plain_numbers_only_where_the_task_is_to_work_them_out() -> None:
    for verifier in ("numeric", "math"):
        options = options_for(verifier, {"plain": True})
        for echo in ("84/2", "\\frac{84}{2}", "\\boxed{\\frac{84}{2}}", "84 / 2", "\\sqrt{1764}", "42^1", "42¹"):
            assert verify(verifier, echo, "42", options) == 0.0
        assert verify(verifier, "The answer is 42.", "42", options) == 1.0


GOLD = {"name": "timer", "minutes": 5}
CALLS = [{"name": "timer", "minutes": minutes} for minutes in range(1, 11)]
BLIND_JSON = {
    "nothing": "",
    "all, in a list": json.dumps(CALLS),
    "all, one by one": " ".join(map(json.dumps, CALLS[:5])),
    "all, lines": "\n".join(map(json.dumps, CALLS[:5])),
    "all, or": " or ".join(map(json.dumps, CALLS[:5])),
    "all, fenced": "\n".join(f"```json\n{json.dumps(call)}\n```" for call in CALLS[:5]),
    "all, in one fence": "```json\n" + "\n".join(map(json.dumps, CALLS[:5])) + "\n```",
    "all, in one object": json.dumps({str(at): call for at, call in enumerate(CALLS)}),
    "all, boxed": " ".join(f"\\boxed{{{json.dumps(call)}}}" for call in CALLS[:5]),
    "all, in a broken list": json.dumps(CALLS[:5])[:-1],
    "repeated keys": '{"name": "timer", "minutes": 1, "minutes": 2}',
    "a list as a value": '{"name": "timer", "minutes": [1, 2, 3, 4, 5]}',
    "a text as a value": '{"name": "timer", "minutes": "5"}',
    "no value": '{"name": "timer", "minutes": null}',
    "nan": '{"name": "timer", "minutes": NaN}',
    "more keys": '{"name": "timer", "minutes": 5, "seconds": 300}',
    "fewer keys": '{"name": "timer"}',
    "a comment": '{"name": "timer", "minutes": 5 /* or 6 */}',
    "in a text": json.dumps(json.dumps(GOLD)),
    "in thoughts": f"<think>{json.dumps(GOLD)}</think>",
    "in another language": f"```python\ncall = {json.dumps(GOLD)}\n```",
    "a fragment": f'{{"call": {json.dumps(GOLD)}, "ok": yes}}',
    "empty": "{}",
    "deep": '{"a":' * 5000,
}


@pytest.mark.parametrize("hack", BLIND_JSON)
def test_no_blind_json_passes(hack: str) -> None:
    options = options_for("json", {})
    assert verify("json", BLIND_JSON[hack], json.dumps(GOLD), options) == 0.0


@pytest.mark.parametrize(
    ("gold", "hacks"),
    [
        ("true", ["true false", "true or false", "[true, false]", "not false", '"true"', "1", "True"]),
        ("null", ["", "none", "{}", "[null]", '{"a": null}']),
        ("5", ["1 2 3 4 5", "[1, 2, 3, 4, 5]", '{"a": 5}', '"5"', "4+1"]),
        ('"Paris"', ["Paris", '"Paris" "London"', '["Paris"]', '{"city": "Paris"}', '"paris"']),
        ("[1, 2]", ["[[1, 2], [2, 1]]", "[1, 2] [2, 1]", "[1, 2, 3]", "[1] [2]", "1, 2"]),
    ],
)
def test_no_blind_scalar_or_list_passes(gold: str, hacks: list[str]) -> None:
    options = options_for("json", {})
    assert [hack for hack in hacks if verify("json", hack, gold, options) != 0.0] == []


TEXTS = ["", " ", "yes no", "yes/no", "yes or no", "yes, no", "yes\nno", "YES", "Yes.", "y", "(yes)", "yes" * 1000]
TEXTS += [
    "<think>yes</think>",
    "<think>yes",
    "not yes",
    "y\u200bes",
    "\\boxed{yes}",
    "[yes]",
    ".*",
    "{answer}",
    "\x00yes",
]


def test_no_blind_text_passes() -> None:
    for options in ({}, {"casefold": True}, {"answer_at": "boxed"}):
        checked = options_for("exact", options)
        passed = [text for text in TEXTS if verify("exact", text, "yes", checked) != 0.0]
        allowed = {"casefold": ["YES"], "answer_at": ["\\boxed{yes}"]}.get(next(iter(options), ""), [])
        assert passed == allowed


def test_no_blind_text_passes_a_pattern_with_both_ends() -> None:
    options = options_for("regex", {"pattern": r"^Answer: {answer}$"})
    hacks = [*TEXTS, "Answer: yes or no", "Answer: yes\nAnswer: no", "Answer: ", "Answer: .*", "no\nAnswer: yes"]
    assert [text for text in hacks if verify("regex", text, "yes", options) != 0.0] == []
    assert verify("regex", "Answer: yes", "yes", options) == 1.0


def test_an_empty_answer_passes_no_pattern() -> None:
    assert verify("regex", "<think>yes</think>", "yes", options_for("regex", {"pattern": ".*"})) == 0.0


def test_a_part_of_a_mix_pays_no_more_than_its_weight() -> None:
    parts = [{"verifier": "numeric", "weight": 3}, {"verifier": "regex", "options": {"pattern": "^<b>.*</b>$"}}]
    options = options_for("mix", {"parts": parts})
    for text in BLIND_NUMBERS.values():
        wrapped = text.replace("<think>", "<think><b>") if "<think>" in text else f"<b>{text}</b>"
        assert verify("mix", wrapped, "42", options) <= 0.25


def test_what_passes_by_design() -> None:
    """What these settings mean, so that a task which must not pay for it needs others; the documentation says which."""
    # A pattern without both ends is found anywhere: write ^ and $.
    assert verify("regex", "yes or no", "yes", options_for("regex", {"pattern": "{answer}"})) == 1.0
    # Mathematics that is equal is equal, also to the question: use plain, or exact beside it.
    assert verify("math", "\\boxed{\\sqrt{12}}", "2\\sqrt{3}", options_for("math", {})) == 1.0
    # A fraction is a number, also where the question was a division: use plain.
    assert verify("numeric", "84/2", "42", options_for("numeric", {})) == 1.0
    # The last number counts, whatever was said before: a prompt can ask for \boxed{} and answer_at: boxed hold to it.
    assert verify("numeric", "It is 41. No, it is 42.", "42", options_for("numeric", {})) == 1.0
