"""Regular expressions of strangers: compiled, searched with limits, or refused with a sentence."""

from __future__ import annotations

import re

import pytest

from skillweave.delta.adapter_names import value_for
from skillweave.errors import UserError
from skillweave.patterns import LONGEST, TooSlow, bounded_finditer, bounded_fullmatch, bounded_search, compiled

NAME = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    ["q_proj", r".*\.layers\.0\..*", "(q|k)_proj$", "model", r"layers\.\d+", "^x", "", r"(?i)Q_PROJ", r"[^.]+$"],
)
def test_the_same_is_found_as_by_python(pattern: str) -> None:
    for mine, theirs in (
        (bounded_search(pattern, NAME), re.search(pattern, NAME)),
        (bounded_fullmatch(pattern, NAME), re.fullmatch(pattern, NAME)),
    ):
        assert (mine and mine.span()) == (theirs and theirs.span())
    assert [m.span() for m in bounded_finditer(pattern, NAME)] == [m.span() for m in re.finditer(pattern, NAME)]


@pytest.mark.parametrize("pattern", ["(ab{3}){20}", "a{0,99999999}", "[(){9}]{40000}", r"\({50000}", "(a{300}){300}"])
def test_repeats_that_cost_little_are_compiled(pattern: str) -> None:
    assert compiled(pattern).pattern == pattern


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){12}$", r"(a+)+\1b?$"])
def test_a_search_without_end_is_ended(pattern: str) -> None:
    text = "a" * 5000 + "!"
    for search in (bounded_search, bounded_fullmatch, lambda *a, **k: list(bounded_finditer(*a, **k))):
        with pytest.raises(TooSlow, match="takes longer than"):
            search(pattern, text, seconds=0.05)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "not a regular expression"),
        ("*", "not a regular expression"),
        ("a" * (LONGEST + 1), "more than 20,000"),
        ("(" * 9000 + ")" * 9000, "nested too deeply"),
        ("(?:(?R)|a)*b", "contains itself"),
        ("(a(?1)?b)", "contains itself"),
        ("(?P<x>a(?&x)?)", "contains itself"),
        ("((((a{90}){90}){90}){90}){90}", "repeats too often: .* 5,904,900,000 characters"),
        ("([a\\]]|x){60000}", "repeats too often: .* 120,000 characters"),
        ("x{99999999999999999999}", "repeats too often"),
        ("(((x{999999999}){999999999}){999999999}){9}", "more than 10\\^18"),
    ],
    ids=range(11),
)
def test_what_is_no_pattern_or_has_no_limit_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bounded_search(pattern, "a")


@pytest.mark.parametrize(
    "patterns",
    [
        ["q_proj"],
        ["k_proj", "q_proj"],
        [r"layers\.0\..*"],
        ["proj"],
        [],
        ["self_attn.q_proj", "q_proj"],
        [r"(.*)_proj"],
    ],
)
def test_the_key_for_a_module_is_the_one_that_peft_finds(patterns: list[str]) -> None:
    from peft.utils.other import get_pattern_key

    numbers = {pattern: at for at, pattern in enumerate(patterns)}
    assert value_for(NAME, numbers, None, "here") == numbers.get(get_pattern_key(patterns, NAME))


@pytest.mark.parametrize("pattern", ["(", "(.*a){12}"])
def test_a_key_that_cannot_be_used_is_named_with_its_place(pattern: str) -> None:
    with pytest.raises(UserError, match=r"^adapter_config.json, alpha_pattern: "):
        value_for("a" * 3000 + "b", {pattern: 1}, None, "adapter_config.json, alpha_pattern")
