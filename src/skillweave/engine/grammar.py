"""Forms that an answer must have: JSON of a schema, and calls of tools. llguidance finds the tokens that may come.

A form is a grammar in llguidance's own notation, a dialect of Lark in which ``%json`` holds a JSON schema. Its mask of
allowed tokens is exact, so every answer that ends by itself has the form; one that is cut off has its beginning.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.hf import from_tokenizer
from torch import Tensor

from skillweave.engine.interface import TokenMatcher
from skillweave.errors import UserError
from skillweave.tools.turn import CLOSE, OPEN

MOST_CALLS = 16
"""Most calls in one turn that a grammar allows, so that a model which repeats itself comes to an end."""
_SPACE = {"x-guidance": {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]{0,16}"}}
"""White space between the parts of JSON is short: a model without a better idea would write it until it is cut off."""

MOST_MULTIPLE = 100_000
"""The largest number whose multiples a grammar counts: llguidance makes a state for each remainder, without a limit of
its own. So many take about a second and 30 MB."""
_LIMITS = LLParserLimits(verbose_errors=False)

_tokenizers: WeakKeyDictionary[Any, tuple[int, LLTokenizer]] = WeakKeyDictionary()
"""For each tokenizer its number of tokens, and what llguidance compiled from it."""
_compiling = threading.Lock()


@dataclass(frozen=True)
class JsonForm:
    """An answer that is JSON of a schema and nothing else. Raises :class:`UserError` for a schema it cannot follow."""

    schema: Mapping[str, Any]
    _made: _Made = field(default_factory=WeakKeyDictionary, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_multiples(self.schema)
        _check(_json_rule("start", self.schema))

    def prepare(self, tokenizer: Any) -> None:
        """Compile tokenizer and grammar, which may take seconds: call it in a thread. Raises :class:`UserError`."""
        self._made[tokenizer] = _made(tokenizer, _json_rule("start", self.schema))

    def matcher(self, tokenizer: Any, stops: Collection[int]) -> TokenMatcher:
        """Return a matcher for one answer in tokens of this tokenizer. It is quick after :meth:`prepare`."""
        if tokenizer not in self._made:
            self.prepare(tokenizer)
        return _Matcher(self._made[tokenizer], stops)


@dataclass(frozen=True)
class CallForm:
    """An answer with calls of tools, each as :func:`~skillweave.tools.turn.call_text` writes it.

    - ``tools``: the name of each tool, and the schema of its arguments
    - ``forced``: the answer is one call or more, and nothing else; otherwise it is any text, in which calls may stand
    - ``most``: calls in one answer
    - ``answer``: the schema of an answer without calls, in place of any text

    Raises :class:`UserError` for a schema that it cannot follow.
    """

    tools: tuple[tuple[str, Mapping[str, Any]], ...]
    forced: bool
    most: int = MOST_CALLS
    answer: Mapping[str, Any] | None = None
    _made: _Made = field(default_factory=WeakKeyDictionary, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for schema in (*(schema for _, schema in self.tools), self.answer):
            _check_multiples(schema)
        _check(self._rules(json.dumps(OPEN), json.dumps(CLOSE)))

    def prepare(self, tokenizer: Any) -> None:
        """Compile tokenizer and grammar, which may take seconds: call it in a thread. Raises :class:`UserError`."""
        self._made[tokenizer] = _made(tokenizer, self._rules(_mark(tokenizer, OPEN), _mark(tokenizer, CLOSE)))

    def matcher(self, tokenizer: Any, stops: Collection[int]) -> TokenMatcher:
        """Return a matcher for one answer in tokens of this tokenizer. It is quick after :meth:`prepare`."""
        if tokenizer not in self._made:
            self.prepare(tokenizer)
        return _Matcher(self._made[tokenizer], stops)

    def _rules(self, opening: str, closing: str) -> str:
        """Return the grammar, for the marks of a call as terminals."""
        more = self.most - 1
        calls = "call" + (f' ("\\n"? call){{0,{more}}}' if more else "")
        rules = [
            f"call_{at}: {json.dumps(_head(name))} arguments_{at} {json.dumps('}')} {closing}\n"
            + _json_rule(f"arguments_{at}", schema)
            for at, (name, schema) in enumerate(self.tools)
        ]
        choice = " | ".join(f"call_{at}" for at in range(len(self.tools)))
        if self.forced:
            begin = [f"start: {calls}", f"call: {opening} ({choice})"]
        elif self.answer is not None:
            begin = [f"start: {calls} | answer", f"call: {opening} ({choice})", _json_rule("answer", self.answer)]
        else:
            # A lazy rule ends as soon as it can: what follows the first opening mark is a call.
            text = "TEXT: /(.|\\n)*/"
            if opening.startswith('"'):
                begin = [f"start: call{{0,{self.most}}} TEXT", f"before[lazy]: TEXT {opening}", text]
            else:  # the mark is a token that no text can hold
                begin = [f"start: call{{0,{self.most}}} TEXT", f"before: TEXT {opening}", text]
            begin.append(f"call: before ({choice})")
        return "\n".join([*begin, *rules])


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": '


def _json_rule(name: str, schema: Mapping[str, Any]) -> str:
    return f"{name}: %json {json.dumps({**_SPACE, **schema})}"


def _check(grammar: str) -> None:
    """Raise :class:`UserError` with llguidance's reason if it cannot follow a grammar."""
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=_LIMITS)
    if failed:
        raise UserError(f"the schema cannot be followed: {_reason(messages[0])}")


def _reason(message: str) -> str:
    """Return what llguidance says about a schema, without the lines of the grammar around it."""
    own = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", message)
    lines = [line for line in own.splitlines() if not re.match(r"\s*\d+ \| |\s*\| |<non-verbose/>", line)]
    return " ".join(" ".join(lines).split())[:300]


def _check_multiples(schema: Any) -> None:
    """Raise :class:`UserError` if the numbers under ``multipleOf`` are too large together.

    All are taken together, because ``allOf`` and ``$ref`` may ask one number to be a multiple of several.
    """
    together = math.lcm(*_multiples(schema))
    if together > MOST_MULTIPLE:
        raise UserError(
            f"the schema cannot be followed: the multiples of all numbers under multipleOf, {together:,}, are more "
            f"than {MOST_MULTIPLE:,}: give smaller ones, or check the answer yourself"
        )


def _multiples(schema: Any) -> Iterator[int]:
    """The digits of each number under ``multipleOf``: 25 for 0.25 and for 2500, because a shift costs nothing."""
    for inner in schema if isinstance(schema, list) else schema.values() if isinstance(schema, dict) else ():
        yield from _multiples(inner)
    number = schema.get("multipleOf") if isinstance(schema, dict) else None
    if isinstance(number, int | float) and not isinstance(number, bool) and number > 0:
        digits = "".join(map(str, Decimal(str(number)).as_tuple().digits))
        yield int(digits.strip("0"))


def _mark(tokenizer: Any, mark: str) -> str:
    """Return a mark as a terminal: the text, or the token if the tokenizer has it as a special one."""
    token = tokenizer.get_vocab().get(mark)
    return json.dumps(mark) if token is None or token not in _special(tokenizer) else f"<[{token}]>"


def _special(tokenizer: Any) -> set[int]:
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _compiled(tokenizer: Any) -> LLTokenizer:
    """Return what llguidance makes of a tokenizer; it is made once. Raises :class:`UserError` if it reads none."""
    with _compiling:
        known = _tokenizers.get(tokenizer)
        if known is None or known[0] != len(tokenizer):
            known = _tokenizers[tokenizer] = len(tokenizer), _compile(tokenizer)
        return known[1]


def _compile(tokenizer: Any) -> LLTokenizer:
    try:
        return from_tokenizer(tokenizer, eos_token=tokenizer.eos_token_id)
    except ValueError as error:
        words = _words(tokenizer)
        if words is None:
            raise UserError(
                f"answers in a fixed form (response_format, tool_choice) are not possible with this tokenizer: {error}"
            ) from error
        return LLTokenizer(TokenizerWrapper(words), n_vocab=len(tokenizer), eos_token=tokenizer.eos_token_id)


class _Words:
    """A tokenizer in which each token has a text of its own, as llguidance takes it."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], special: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        self.special_token_ids = sorted(special)
        # The byte 255, which no text holds, tells a special token from a text that is written like it.
        self.tokens = [
            b"\xff" + str(tokenizer.convert_ids_to_tokens(id_)).encode() if id_ in special else text.encode()
            for id_, text in enumerate(texts)
        ]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def _words(tokenizer: Any) -> _Words | None:
    """Return the tokenizer as words, or None if the text of a token depends on the tokens around it."""
    ids, special = range(len(tokenizer)), _special(tokenizer)
    texts = [tokenizer.decode([id_], clean_up_tokenization_spaces=False) for id_ in ids]
    whole = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return _Words(tokenizer, texts, special) if whole == "".join(texts) else None


def _made(tokenizer: Any, grammar: str) -> tuple[LLMatcher, int]:
    """Return the state in which every answer of a grammar begins, and the end token that llguidance knows.

    Raises :class:`UserError` if no answer in tokens of this tokenizer has the form, or finding one takes too much.
    """
    compiled = _compiled(tokenizer)
    begin = LLMatcher(compiled, grammar, log_level=0, limits=_LIMITS)
    if not begin.is_error():
        trial = begin.deep_copy()
        trial.compute_bitmask()  # llguidance may find out only now that nothing can be written
        _check_state(trial)
    _check_state(begin)
    return begin, compiled.eos_token


_Made = WeakKeyDictionary[Any, tuple[LLMatcher, int]]


class _Matcher:
    """The state of one answer in its grammar.

    llguidance knows one end token. Where it allows that one, all ``stops`` are allowed.
    """

    def __init__(self, begin: tuple[LLMatcher, int], stops: Collection[int]) -> None:
        self._matcher, self._end = begin[0].deep_copy(), begin[1]
        self._stops = sorted(stops)
        self._ended = False

    def restrict(self, scores: Tensor) -> None:
        """Set the scores (V,), float32, of tokens that may not come next to minus infinity, in place."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        _check_state(self._matcher)
        size = scores.shape[0]
        allowed = np.zeros(size, dtype=bool)
        allowed[: min(size, len(bits))] = bits[:size]
        may_end = self._ended or bool(bits[self._end]) or not allowed.any()
        if self._ended:
            allowed[:] = False
        allowed[[stop for stop in self._stops if stop < size]] = may_end
        scores.masked_fill_(torch.from_numpy(~allowed).to(scores.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Note that the token was written."""
        if token in self._stops:
            self._ended = True
        else:
            self._matcher.consume_token(token)
            _check_state(self._matcher)


def _check_state(matcher: LLMatcher) -> None:
    if not matcher.is_error():
        return
    reason = _reason(matcher.get_error())
    if reason.startswith("NoExtension"):
        reason = "no answer has this form (a schema that refers only to itself, for example)"
    raise UserError(f"the form of the answer cannot be followed: {reason}")
