"""Each verifier against hand-made cases and, where there is one, a slow reference."""

from __future__ import annotations

import json
import random
import time
from decimal import Decimal

import pytest

from skillweave.errors import UserError
from skillweave.tasks.verifiers import (
    extract_code,
    first_json,
    gold_problem,
    last_number,
    options_for,
    same_json,
    verify,
)

HOSTILE = [
    *("", " ", "\x00", "\ud800", "nan", "NaN", "inf", "-", "\N{MINUS SIGN}", "\N{ARABIC-INDIC DIGIT THREE}", '"', "\\"),
    *("```", "```python\n", "1e999999999999999999999", '{"a":' * 3000, "[" * 100_000, "{" * 5000, "(" * 5000),
    *("9" * 100_000, "a" * 200_000),
]
GOLD = {"exact": "7", "numeric": "7", "json": "[7]", "regex": "7", "code": ["assert False"]}


def score(name: str, answer: str, gold, **options) -> float:
    return verify(name, answer, gold, options_for(name, options))


@pytest.mark.parametrize("name", GOLD)
def test_no_text_of_a_model_raises_or_scores_outside(name: str) -> None:
    options = {"pattern": "^{answer}$"} if name == "regex" else {}
    start = time.perf_counter()
    for text in HOSTILE:
        assert score(name, text, GOLD[name], **options) == 0.0
    assert time.perf_counter() - start < 120  # seconds on any machine; some of them would take years


@pytest.mark.parametrize(
    ("answer", "gold", "options", "expected"),
    [
        ("yes", "yes", {}, 1),
        ("  yes\n", "yes", {}, 1),
        ("  yes\n", "yes", {"strip": False}, 0),
        ("Yes", "yes", {}, 0),
        ("STRASSE", "straße", {"casefold": True}, 1),
        ("yes.", "yes", {}, 0),
        ("", "yes", {}, 0),
    ],
)
def test_exact(answer: str, gold: str, options: dict, expected: float) -> None:
    assert score("exact", answer, gold, **options) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 42.", "42"),
        ("3 + 4 = 7", "7"),
        ("-3", "-3"),
        ("it is -3", "-3"),
        ("10-3", "3"),
        ("(5)-2", "2"),
        ("\N{MINUS SIGN}8", "-8"),
        ("1,234,567.5 km", "1234567.5"),
        ("1,2,3", "3"),
        ("12,3456", "3456"),
        ("$.5", "0.5"),
        ("6.02e23", "6.02e23"),
        ("1e-3", "0.001"),
        ("+7", "7"),
        ("no number", None),
        ("nan", None),
        ("inf", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("answer", "gold", "tolerance", "expected"),
    [
        ("so 7", "7.0", 0, 1),
        ("1.50", "1.5", 0, 1),
        ("100000000000000001", "100000000000000000", 0, 0),
        ("3.14", "3.14159", 0, 0),
        ("3.14", "3.14159", 0.01, 1),
        ("3.2", "3.14159", 0.01, 0),
        ("1e999", "1e998", 1.0, 0),
        ("nan", "nan", 1.0, 0),
        ("inf", "inf", 1.0, 0),
        ("gold is #### 72", "step 3, #### 72", 0, 1),
    ],
)
def test_numeric(answer: str, gold: str, tolerance: float, expected: float) -> None:
    assert score("numeric", answer, gold, tolerance=tolerance) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ('{"a":1,"b":[1,2]}', '{"b": [1.0, 2], "a": 1}', 1),
        ('Sure, 3 calls:\n```json\n{"a": 1}\n```', '{"a": 1}', 1),
        ('{"a": 1} {"a": 2}', '{"a": 2}', 0),  # the first one counts
        ('{oops} {"a": 1}', '{"a": 1}', 1),
        ('{"a": "1"}', '{"a": 1}', 0),
        ('{"a": true}', '{"a": 1}', 0),
        ('{"a": null}', "{}", 0),
        ("[1, 2]", "[2, 1]", 0),
        ("[1, 2, 3]", "[1, 2]", 0),
        ("[NaN]", "[NaN]", 0),
        ("[1e999]", "[1e999]", 0),
        ("[0.30000000000000004]", "[0.3]", 1),
        ("[10000000000000000001]", "[10000000000000000000]", 0),
        ("the value is 5", "5", 1),
        ("true", "true", 1),
        ("no JSON here", '{"a": 1}', 0),
        ('{"a": 1', '{"a": 1}', 0),
    ],
)
def test_json(answer: str, gold: str, expected: float) -> None:
    assert score("json", answer, gold) == expected


def _random_json(rng: random.Random, depth: int = 0):
    kind = rng.randrange(4 if depth > 2 else 6)
    if kind < 4:
        return [rng.randint(-3, 3), rng.choice("abc"), None, rng.random() < 0.5][kind]
    values = [_random_json(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return values if kind == 4 else dict(zip("xyz", values, strict=False))


def _canonical(value) -> str:
    return json.dumps(value, sort_keys=True)


def test_json_equality_against_canonical_texts() -> None:
    rng = random.Random(0)
    values = [_random_json(rng) for _ in range(150)]
    equal = [(a, b) for a in values for b in values if same_json(a, b)]
    assert equal == [(a, b) for a in values for b in values if _canonical(a) == _canonical(b)]
    assert len(equal) > 150  # some pairs besides each value with itself
    for value in values:
        text = "so: " + json.dumps([value]) + " done"
        assert first_json(text, "{[") == [value]


@pytest.mark.parametrize(
    ("answer", "pattern", "expected"),
    [
        ("It is 4.2 here", r"\b{answer}\b", 1),
        ("It is 4x2 here", r"\b{answer}\b", 0),  # the dot of the gold text is a dot
        ("Answer: 4.2", "^Answer: {answer}$", 1),
        ("answer: 4.2", "^Answer: {answer}$", 0),
        ("answer: 4.2", "(?i)^Answer: {answer}$", 1),
        ("123", r"^\d{3}$", 1),
    ],
)
def test_regex(answer: str, pattern: str, expected: float) -> None:
    assert score("regex", answer, "4.2", pattern=pattern) == expected


def test_a_pattern_that_backtracks_without_end_is_stopped() -> None:
    start = time.process_time()
    assert score("regex", "a" * 40 + "b", "x", pattern=r"^(\w+\s?)+\1\1$|^(a|a)+$|^(a?){40}a{40}$", seconds=0.2) == 0
    assert time.process_time() - start < 60  # without a limit it takes years


CASES = [
    {"call": "solve(3)", "value": 4},
    {"call": "solve(-1)", "value": 0},
    "assert solve(10) == 11",
    "assert solve(0)",
]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("def solve(x):\n    return x + 1", 1.0),
        ("Here:\n```python\ndef solve(x):\n    return x + 1\n```\nIt adds 1.", 1.0),
        ("```\ndef solve(x):\n    return x + 1", 1.0),  # cut off before the closing fence
        ("def solve(x):\n    return 4", 0.5),
        ("def solve(x):\n    raise ValueError", 0.0),
        ("def solve(x):\n    while True: pass", 0.0),
        ("I do not know", 0.0),
    ],
)
def test_code(answer: str, expected: float) -> None:
    assert score("code", answer, CASES, seconds=0.1 if "while True" in answer else 60) == expected


def test_code_values_are_compared_outside_the_sandbox() -> None:
    cheat = "class Any:\n    def __eq__(self, other):\n        return True\ndef solve(x):\n    return Any()"
    assert score("code", cheat, [{"call": "solve(1)", "value": 2}]) == 0.0
    assert (
        score("code", "def solve(x):\n    return (1, [x / 10 + 0.2])", [{"call": "solve(1)", "value": [1, [0.3]]}])
        == 1.0
    )


def test_code_that_prints() -> None:
    cases = [{"inputs": {"n": 2}, "output": "4\n"}, {"inputs": {"n": 3}, "output": "9"}]
    assert score("code", "print(n * n)", cases) == 1.0
    assert score("code", "print(n + n)", cases) == 0.5


def test_extract_code_takes_the_first_block() -> None:
    assert extract_code("a\n```py\nx = 1\n```\n```\ny\n```") == "x = 1\n"
    assert extract_code("x = 1") == "x = 1"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exact", {"casfold": True}, "casefold"),
        ("numeric", {"tolerance": -1}, "tolerance"),
        ("numeric", {"tolerance": float("nan")}, "tolerance"),
        ("regex", {}, "pattern"),
        ("regex", {"pattern": "("}, "not a regular expression"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options_for(name, options)


@pytest.mark.parametrize(
    ("name", "gold", "message"),
    [
        ("numeric", "many", "no number"),
        ("json", "hello", "no JSON"),
        ("exact", None, "must be a text"),
        ("code", None, "cases"),
        ("code", [], "cases"),
        ("code", ["assert True", {"call": "f()"}], "case 2"),
    ],
)
def test_gold_that_nothing_can_match_is_named(name: str, gold, message: str) -> None:
    assert message in (gold_problem(name, gold) or "")


def test_good_gold_passes() -> None:
    for name, gold in {**GOLD, "code": CASES}.items():
        assert gold_problem(name, gold) is None
