"""Answers of random scores have the form that a grammar asks for."""

from __future__ import annotations

import json

import pytest
import torch
from llguidance import LLMatcher

from skillweave.engine import grammar
from skillweave.engine.grammar import CallForm, JsonForm, _check_multiples
from skillweave.engine.interface import Grammar
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer
from skillweave.tools.call import Call
from skillweave.tools.turn import read_turn

SCHEMA = {
    "type": "object",
    "properties": {"town": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["town", "days"],
    "additionalProperties": False,
}
END = 1


def written(form: Grammar, tokenizer, seed: int, most: int = 400, begin: str = "", stops=(END,)) -> tuple[str, bool]:
    """A random answer of a form, and whether it ended by itself; it begins with the text ``begin``."""
    matcher = form.matcher(tokenizer, stops)
    generator = torch.Generator().manual_seed(seed)
    forced = tokenizer(begin, add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    for at in range(most):
        scores = torch.randn(len(tokenizer) + 3, generator=generator)
        matcher.restrict(scores)
        token = forced[at] if at < len(forced) else int(scores.argmax())
        assert scores[token] > -torch.inf, tokenizer.decode([*ids, token])
        matcher.accept(token)
        if token in stops:
            return tokenizer.decode(ids), True
        ids.append(token)
    return tokenizer.decode(ids), False


@pytest.mark.parametrize("seed", range(5))
def test_random_answers_follow_a_schema(seed: int) -> None:
    text, ended = written(JsonForm(SCHEMA), micro_tokenizer(), seed)
    value = json.loads(text)
    assert ended
    assert value.keys() == {"town", "days"}
    assert value["town"] in ("Rome", "Oslo")
    assert 1 <= value["days"] <= 9


def test_every_end_token_may_end_an_answer_but_not_before_it_is_complete() -> None:
    text, ended = written(JsonForm({"const": 7}), micro_tokenizer(), 0, stops=(3, 2))
    assert (text.strip(), ended) == ("7", True)


@pytest.mark.parametrize("words", [(), ("<tool_call>", "</tool_call>")])
@pytest.mark.parametrize("special", [False, True])
def test_forced_calls_are_calls_with_fitting_arguments(words: tuple[str, ...], special: bool) -> None:
    tokenizer = micro_tokenizer(words=words)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(words)}, replace_extra_special_tokens=False)
    form = CallForm(
        (("weather", SCHEMA), ("time", {"type": "object", "additionalProperties": False})), forced=True, most=1
    )
    matcher = form.matcher(tokenizer, [END])
    ids, generator = [], torch.Generator().manual_seed(3)
    while True:
        scores = torch.randn(len(tokenizer), generator=generator)
        matcher.restrict(scores)
        token = int(scores.argmax())
        matcher.accept(token)
        if token == END:
            break
        ids.append(token)
    (call,) = read_turn(tokenizer.decode(ids)).calls
    assert isinstance(call, Call)
    assert call.name in ("weather", "time")


def test_a_call_in_free_text_must_be_one_of_the_tools() -> None:
    form = CallForm((("weather", SCHEMA),), forced=False)
    plain, _ = written(form, micro_tokenizer(), 1, most=30)
    assert len(plain) == 30
    for seed in range(4):
        text, _ = written(form, micro_tokenizer(), seed, begin="Let me see: <tool_call>", most=120)
        (first, *_) = read_turn(text).calls
        assert isinstance(first, Call)
        assert first.name == "weather"


def test_a_second_call_is_not_written_where_one_is_allowed() -> None:
    form = CallForm((("f", {"const": 1}),), forced=True, most=1)
    assert written(form, micro_tokenizer(), 0)[0] == '<tool_call>{"name": "f", "arguments": 1}</tool_call>'


def test_an_answer_may_be_a_call_or_json() -> None:
    form = CallForm((("f", {"const": 1}),), forced=False, answer={"const": 5}, most=1)
    assert {written(form, micro_tokenizer(), seed)[0].strip() for seed in range(12)} == {
        "5",
        '<tool_call>{"name": "f", "arguments": 1}</tool_call>',
    }


@pytest.mark.parametrize("schema", [{"type": "objct"}, {"properties": {"a": {"not": {"type": "string"}}}}])
def test_a_schema_that_cannot_be_followed_is_named(schema: dict) -> None:
    with pytest.raises(UserError, match="the schema cannot be followed: "):
        JsonForm(schema)
    with pytest.raises(UserError, match="the schema cannot be followed: "):
        CallForm((("f", schema),), forced=True)


def test_references_inside_a_tools_schema_are_found() -> None:
    schema = {"$defs": {"town": {"const": "Rome"}}, "type": "object", "properties": {"t": {"$ref": "#/$defs/town"}}}
    CallForm((("f", schema),), forced=True)


@pytest.mark.parametrize(
    ("schema", "holds"),
    [
        ({"type": "integer", "multipleOf": 99_991}, True),
        ({"type": "integer", "multipleOf": 999_983}, False),
        ({"type": "number", "multipleOf": 1e-300}, True),
        ({"type": "number", "multipleOf": 0.0001}, True),
        ({"type": "number", "multipleOf": 0.99991}, True),
        ({"type": "number", "multipleOf": 1.00003}, False),
        ({"type": "integer", "multipleOf": 10**15}, True),
        ({"type": "integer", "allOf": [{"multipleOf": 307}, {"multipleOf": 499}]}, False),
        ({"properties": {"multipleOf": {"type": "integer"}}}, True),
        ({"properties": {"a": {"items": [{"multipleOf": 999_983}]}}}, False),
    ],
)
def test_multiples_that_would_take_minutes_are_refused(schema: dict, holds: bool) -> None:
    if holds:
        _check_multiples(schema)
        return
    for form in (JsonForm, lambda one: CallForm((("f", one),), forced=True), lambda one: CallForm((), False, 1, one)):
        with pytest.raises(UserError, match="multipleOf"):
            form(schema)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}])
def test_a_schema_without_an_answer_is_told_before_the_first_token(schema: dict) -> None:
    with pytest.raises(UserError, match=r"no answer has this form") as told:
        JsonForm(schema).prepare(micro_tokenizer())
    assert "state" not in str(told.value)


def test_a_reason_shows_nothing_of_the_grammar_around_the_schema() -> None:
    with pytest.raises(UserError) as told:
        JsonForm({"type": "string", "pattern": "(a"})
    assert "unclosed group" in str(told.value)
    assert "x-guidance" not in str(told.value)


def test_what_is_slow_is_done_once_for_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    form, tokenizer, made = JsonForm(SCHEMA), micro_tokenizer(), []
    monkeypatch.setattr(grammar, "LLMatcher", lambda *given, **options: made.append(1) or LLMatcher(*given, **options))
    form.prepare(tokenizer)
    first, second = form.matcher(tokenizer, [END]), form.matcher(tokenizer, [END])
    assert len(made) == 1
    first.accept(tokenizer("{", add_special_tokens=False)["input_ids"][0])
    scores, fresh = torch.zeros(2, len(tokenizer))
    first.restrict(scores)
    second.restrict(fresh)
    assert not torch.equal(scores, fresh)  # each answer has a state of its own
