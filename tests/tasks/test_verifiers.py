"""Each verifier against hand-made cases and, if there is one, a slow reference."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from skillweave.errors import UserError
from skillweave.tasks.verifiers import (
    extract_code,
    find_number,
    gold_problem,
    options_for,
    same_json,
    verify,
)

HOSTILE = [
    *("", " ", "\x00", "\ud800", "nan", "NaN", "inf", "-", "\N{MINUS SIGN}", "\N{ARABIC-INDIC DIGIT THREE}", '"', "\\"),
    *("```", "```python\n", "1e999999999999999999999", '{"a":' * 3000, "[" * 100_000, "{" * 5000, "(" * 5000),
    *("9" * 100_000, "a" * 200_000, "1 m\\sqrt{2}"),
]
GOLD = {"exact": "7", "numeric": "7", "math": "7", "json": "[7]", "regex": "7", "code": ["assert False"]}


def score(name: str, answer: str, gold, **options) -> float:
    return verify(name, answer, gold, options_for(name, options))


@pytest.mark.parametrize("name", GOLD)
def test_no_text_of_a_model_raises_or_scores_outside(name: str) -> None:
    options = {"pattern": "^{answer}$"} if name == "regex" else {}
    for text in HOSTILE:
        assert score(name, text, GOLD[name], **options) == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 42.", "42"),
        ("-3", "-3"),
        ("1,234,567.5 km", "1234567.5"),
        ("$.5", "0.5"),
        ("6.02e23", "6.02e23"),
        ("1e-3", "0.001"),
        ("2 1/2", "5/2"),
        ("10^{-3}", "1/1000"),
        ("-2^4", "-16"),
        *((text, None) for text in ("10-3", "1,2,3", "12,3456", "7:30", "0^0", "0^-1", "1/0", "no number", "nan", "")),
        *((text, None) for text in ("1e99999", "9^99999", "1" * 2000, "2^3^4", "2^{2^{2}}", "\\sqrt{9}")),
    ],
)
def test_find_number(text: str, number: str | None) -> None:
    found = find_number(text, options_for("numeric", {}))
    assert (found and found.value) == (None if number is None else Fraction(number))


def test_numbers_against_fractions_that_are_written_in_many_ways() -> None:
    rng = random.Random(0)
    for _ in range(200):
        whole, above, below = rng.randint(-999999, 999999), rng.randint(1, 98), 99
        written = {f"{whole:,}": whole, f"{whole:_}": whole, f"{whole}.0": whole, f"\\boxed{{{whole}}}": whole}
        written[f"{whole:,}".replace(",", " ")] = whole
        written[f"${abs(whole)}"] = abs(whole)
        written[f"\\frac{{{whole}}}{{{below}}}"] = Fraction(whole, below)
        written[f"{abs(whole)} {above}/{below}"] = abs(whole) + Fraction(above, below)
        written[f"{whole / 1000} x 10^3"] = whole
        for text, value in written.items():
            found = find_number(f"So it is {text}.", options_for("numeric", {}))
            assert found is not None, text
            assert found.value == value, text


CONSTANTS = {
    "3.14": [r"\boxed{\pi}", "π", "The answer is pi.", r"so it is $\pi$"],
    "3.14159": [r"\boxed{\pi}", "pi"],
    "3.141": [r"\pi"],  # digits cut off
    "-3.1416": [r"\boxed{-\pi}"],
    "6.28": [r"$2\pi$", "The answer is 2pi."],
    "1.5708": [r"\boxed{\frac{\pi}{2}}", r"\boxed{\pi/2}"],
    "1.414": [r"\boxed{\sqrt{2}}", "sqrt(2)", "√2"],
    "2.718": ["e", r"\boxed{e}"],
}
OTHER_CONSTANTS = {
    "3": [r"\boxed{\pi}"],
    "3.1": [r"\boxed{\pi}"],
    "3.15": [r"\boxed{\pi}"],
    "3.140": [r"\boxed{\pi}"],
    "-3.14": [r"\boxed{\pi}"],
    "0.05": [r"\boxed{\frac{\pi}{60}}"],  # one digit says too little
    "3.14": [
        "pie",
        "I ate pie",
        r"\boxed{x\pi}",
        r"\boxed{\pi} or \boxed{e}",
        r"\boxed{" + r"\sqrt{" * 200 + "}" * 201,
    ],
    "2.71": ["Let e be the number of eggs.", r"\boxed{\pi^{\pi^{\pi^{\pi}}}}", r"\boxed{1000000!^{e}}", "e eggs"],
    "131.95": [r"\boxed{6 \times 7\pi}"],
    "2": ["2pi", "2 pi", "2π"],
}


@pytest.mark.parametrize("name", ["numeric", "math"])
def test_a_constant_is_what_a_decimal_gold_is_rounded_from(name: str) -> None:
    for gold, answers in CONSTANTS.items():
        assert [score(name, answer, gold) for answer in answers] == [1.0] * len(answers), gold
        assert score(name, answers[0], gold, plain=True) == 0.0
    for gold, answers in OTHER_CONSTANTS.items():
        assert [score(name, answer, gold) for answer in answers] == [0.0] * len(answers), gold
    assert score(name, r"\pi", "3,14", decimal="comma") == 1.0


@pytest.mark.parametrize(
    "piece", ["1 ", "1,111", "\\boxed{", "<answer>", "(1 a) ", "1:", "½", "\\(1", '{"a":1} ', "answer is 1. "]
)
@pytest.mark.parametrize("name", ["numeric", "math", "json"])
def test_long_answers_end(name: str, piece: str) -> None:
    text = piece * (30_000 // len(piece))
    assert score(name, text, '{"a": 2}' if name == "json" else "4") == 0.0


def test_json_equality_is_exact_for_whole_numbers() -> None:
    assert not same_json([10**19 + 1], [10**19])
    assert not same_json([float("nan")], [float("nan")])
    assert same_json({"a": (1, 2.0)}, {"a": [1.0, 2]})


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
        assert score("json", f"so: {json.dumps([value])} done", json.dumps([value])) == 1.0


def test_a_pattern_that_backtracks_without_end_is_stopped() -> None:
    assert score("regex", "a" * 40 + "b", "x", pattern=r"^(\w+\s?)+\1\1$|^(a|a)+$|^(a?){40}a{40}$", seconds=0.2) == 0


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
    ("answer", "program"),
    [
        ("```python\ndef f():\n    return 1```\nIt returns 1.", "def f():\n    return 1\n"),
        ("```python\nf = 1 ```\n```\n5\n```", "f = 1 \n"),
        # What is not the end of a program does not close its block.
        ('```python\nf = """\na```\n"""\n```', 'f = """\na```\n"""\n'),
        ("```python\n# ends with ```\nf = 1\n```", "# ends with ```\nf = 1\n"),
        ("```python\nf = 1\n```\nUse it:\n```python\nfrom solution import f\nprint(f)\n```", "f = 1\n"),
        ("```python\nx = 1\n```\n```python\nfrom math import gcd as f\n```", "from math import gcd as f\n"),
    ],
)
def test_where_a_program_ends_and_which_block_is_it(answer: str, program: str) -> None:
    assert extract_code(answer, frozenset({"f"})) == program


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exact", {"casfold": True}, "casefold"),
        ("numeric", {"tolerance": -1}, "tolerance"),
        ("numeric", {"tolerance": float("nan")}, "tolerance"),
        ("regex", {}, "pattern"),
        ("regex", {"pattern": "("}, "not a regular expression"),
        ("numeric", {"answer_at": "middle"}, "answer_at"),
        ("numeric", {"after": " "}, "Answer:"),
        ("numeric", {"after": "Answer:", "answer_pattern": "(.)"}, "keep one"),
        ("numeric", {"after": "Answer:", "answer_at": "boxed"}, "does not go with"),
        ("math", {"answer_pattern": "("}, "not a regular expression"),
        ("exact", {"answer_pattern": "(a)(b)"}, "2 groups"),
        ("exact", {"answer_pattern": "a"}, "0 groups"),
        ("json", {"answer_at": "boxed"}, "answer_at"),
        ("mix", {}, "parts"),
        ("mix", {"parts": [{"verifier": "exact"}]}, "parts"),
        ("mix", {"parts": [{"verifier": "exact"}, {"verifier": "exakt"}]}, "did you mean 'exact'"),
        ("mix", {"parts": [{"verifier": "exact"}, {"verifier": "json", "weight": 0}]}, "weight"),
        (
            "mix",
            {"parts": [{"verifier": "exact"}, {"verifier": "regex"}]},
            "part 2: verifier 'regex': the key 'pattern' is missing",
        ),
        ("mix", {"parts": [{"verifier": "exact"}, {"verifier": "mix"}]}, "itself a mix"),
        ("no_such_module:f", {}, "could not import"),
        ("nowhere/checks.py:f", {}, "does not exist"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options_for(name, options)


@pytest.mark.parametrize(
    ("name", "gold", "message"),
    [
        ("numeric", "many", "no number"),
        ("numeric", "7:30", "a time"),
        ("numeric", "3,5", "decimal comma"),
        ("numeric", "3 or 5", "a list"),
        ("numeric", ["3", "many"], "no number"),
        ("numeric", [], "empty"),
        ("math", "7:30", "a time"),
        ("math", "\\frac{", "cannot read"),
        ("json", "hello", "JSON as a whole"),
        ("json", "{'a': 1}", "Python dict"),
        ("json", "[1e400]", "JSON as a whole"),
        ("exact", None, "must be a text"),
        ("code", None, "cases"),
        ("code", [], "cases"),
        ("code", ["assert f()", {"call": "f()"}], "case 2"),
        ("code", ["f(1) == 2"], "compares without an assert"),
        ("code", ["assert (f(1) == 2, 'two')"], "assert on a tuple"),
        ("code", ["assert f(1) == 2", "import math\nassert math.sqrt(4) == 2"], "case 2 uses nothing of the program"),
        ("code", [{"call": "1 + 1", "value": 2}], "uses nothing of the program"),
    ],
)
def test_gold_that_nothing_can_match_is_named(name: str, gold, message: str) -> None:
    assert message in (gold_problem(name, gold) or "")


def test_good_gold_passes() -> None:
    for name, gold in {**GOLD, "code": CASES}.items():
        assert gold_problem(name, gold) is None


def test_gold_of_a_mix_is_checked_for_every_part() -> None:
    options = options_for("mix", {"parts": [{"verifier": "exact"}, {"verifier": "numeric"}]})
    assert gold_problem("mix", "7", options) is None
    assert "no number" in (gold_problem("mix", "seven", options) or "")
    options = options_for(
        "mix", {"parts": [{"verifier": "code"}, {"verifier": "regex", "options": {"pattern": "^```"}}]}
    )
    assert "cases" in (gold_problem("mix", "x", options) or "")
    assert gold_problem("mix", "x", options, cases=CASES) is None
    answer = "```python\ndef solve(x):\n    return x + 1\n```"
    assert verify("mix", answer, "x", options, cases=CASES) == 1.0
    assert verify("mix", answer.replace("+", "-"), "x", options, cases=CASES[:3]) == 0.5


OWN = """
def long(text, gold, options):
    return min(len(text) / options["letters"], 1)

def yes(text, gold, options):
    return text == gold

def bad(text, gold, options):
    return {"nan": float("nan"), "two": 2, "none": None, "text": "1"}.get(text) if text != "raise" else 1 / 0

def leaves(text, gold, options):
    raise SystemExit
"""


def test_a_verifier_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text(OWN)
    named = f"{tmp_path}/checks.py"
    assert score(f"{named}:long", "abc", "x", letters=4) == 0.75
    assert score(f"{named}:yes", "<think>no</think>yes", ["no", "yes"]) == 1.0
    parts = [{"verifier": f"{named}:long", "options": {"letters": 6}}, {"verifier": "exact"}]
    assert score("mix", "abc", "abc", parts=parts) == 0.75
    for text in ("nan", "two", "none", "text"):
        with pytest.raises(UserError, match=r"bad' gave .* a number from 0 to 1"):
            score(f"{named}:bad", text, "x")
    with pytest.raises(UserError, match="bad' raised ZeroDivisionError"):
        score(f"{named}:bad", "raise", "x")
    with pytest.raises(UserError, match="leaves' raised SystemExit"):
        score(f"{named}:leaves", "abc", "x")
    with pytest.raises(UserError, match="did you mean 'long'"):
        score(f"{named}:lomg", "abc", "x")


def test_thoughts_can_be_kept() -> None:
    options = options_for("regex", {"pattern": "<think>"})
    assert verify("regex", "<think>a</think>b", "x", options) == 0.0
    assert verify("regex", "<think>a</think>b", "x", options, thoughts="keep") == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "\\prod_{k=1}^{9999} k^{k}",
        "\\sum_{k=1}^{10^{9}} \\frac{1}{k^{3}+k+1}",
        "((((9!)!)!)!)!",
        "\\sqrt{" * 200,
    ],
)
def test_hostile_mathematics_ends_and_the_next_answer_is_judged(answer: str) -> None:
    assert score("math", f"\\boxed{{{answer}}}", "\\sqrt{3}", seconds=0.3) == 0.0
    assert score("math", "\\boxed{\\frac{3}{\\sqrt{3}}}", "\\sqrt{3}", seconds=30) == 1.0


def test_mathematics_is_judged_in_any_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = [f"\\boxed{{\\sqrt{{{number}}}}}" for number in (12, 13, 12, 14)]
        scores = list(pool.map(lambda answer: score("math", answer, "2\\sqrt{3}", seconds=30), answers))
    assert scores == [1.0, 0.0, 1.0, 0.0]


# -- answers of any length ---------------------------------------------------------------------------------------------

LONG = {
    "lines": "a" + "\n" * 10**5 + "b", "lines with spaces": "a" + " \n" * 10**5 + "b", "boxes": "\\boxed{" * 20_000,
    "brackets": "[" * 10**5, "objects": '{"a":' * 20_000, "digits": "9" * 5000, "a power": "1e" + "9" * 100,
    "half characters": "\ud800" * 10**5, "fences": "```json\n" * 12_000, "thoughts": "<think>" * 14_000,
    "ten million": "4 " * 5_000_000, "spaces": "y" + " " * 10**5 + "x",
}  # fmt: skip


LONGEST = 200_000
REPEATED = ["\\{", "1", "1.", "٤", "⁰", "\n"]
ENDS = ["", "}", '"', " 1.1(", "! <", "2! <", "_{", " 1\u0305", "/", " \\pi"]


@pytest.mark.parametrize("piece", REPEATED)
def test_the_longest_answers_are_judged_at_once(piece: str) -> None:
    began = time.process_time()
    for at, end in enumerate(ENDS):
        answer = piece * ((LONGEST - len(end)) // len(piece)) + end
        assert score("json", answer, ["true", '"a"', '{"a": 1}', "[1]"][at % 4]) == 0.0
        assert score("numeric", answer, "4") == 0.0
    assert time.process_time() - began < 2 * len(ENDS)  # work that grows with the square would take minutes


@pytest.mark.parametrize("answer", LONG.values(), ids=LONG)
@pytest.mark.parametrize(
    ("name", "gold", "settings"),
    [
        ("exact", "4", {}), ("exact", "4", {"answer_pattern": "(a+)+b"}), ("numeric", "4", {}), ("math", "4", {}),
        ("json", '{"a": 1}', {}), ("regex", "x", {"pattern": r"(\s|.)*{answer}y", "seconds": 0.05}),
        ("code", ["assert solve() == 4"], {}),
    ],
)  # fmt: skip
def test_an_answer_of_any_length_scores_nothing_and_raises_nothing(name, gold, settings, answer) -> None:
    assert verify(name, answer, gold, options_for(name, settings)) == 0.0


def test_why_an_answer_is_not_judged_is_told_once(capsys, monkeypatch) -> None:
    from skillweave.tasks.verifiers import warn

    monkeypatch.setattr(warn, "_warned", set())
    for _ in range(3):
        assert verify("exact", "x" * 300_000, "x" * 300_000, options_for("exact", {})) == 0.0
        slow = options_for("regex", {"pattern": "(a+)+$", "seconds": 0.02})
        assert verify("regex", "a" * 5000 + "!", "4", slow) == 0.0
    said = " ".join((found := capsys.readouterr()).out.split() + found.err.split())
    assert said.count("an answer of 300,000 characters scores 0: more than 200,000 are not judged") == 1
    assert said.count("takes longer than 0.02 s") == 1


def test_a_long_thought_before_a_short_answer_is_no_hindrance() -> None:
    assert verify("numeric", "<think>" + "so " * 200_000 + "</think>4", "4", options_for("numeric", {})) == 1.0


def test_a_further_question_ends_the_answer_only_on_a_line_of_its_own() -> None:
    from skillweave.tasks.verifiers.place import own_words

    assert own_words("4  \n\n  Question: 5") == "4"
    assert own_words("the Question: 5 \n Q: 6") == "the Question: 5"
    assert own_words("Question: 5\n6") == "Question: 5\n6"


def test_a_gold_text_that_makes_no_pattern_is_told_when_the_task_is_read() -> None:
    options = options_for("regex", {"pattern": "^{answer}$"})
    assert "more than 20,000" in (gold_problem("regex", "x" * 30_000, options) or "")
    assert gold_problem("regex", "x(", options) is None
