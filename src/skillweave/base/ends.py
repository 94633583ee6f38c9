"""Determine where a turn ends. Training, scores, generation and the tool loop all use this file, so they agree."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from skillweave.base.template import apply_template, has_template
from skillweave.errors import UserError

_QUESTION, _ANSWER = "the-user-asked-this", "the-assistant-wrote-this"
"""Probe texts: their places in a rendering show what the template writes around a message."""
_USER, _ASSISTANT = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""The errors that a chat template may raise: jinja evaluates Python expressions."""

_cache: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()
"""For each tokenizer: the values that its turn end depends on, and the turn end."""


def turn_end(tokenizer: Any) -> str:
    """Return the token that ends a turn: the one that the chat template writes after the assistant's text.

    It may differ from the token that ends all text: Gemma writes ``<end_of_turn>``, while its ``eos_token`` is
    ``<eos>``. White space before the token is ignored. The result is ``eos_token`` if there is no template, if the
    template writes no token after the assistant's text, and if what it writes there is several tokens of this
    tokenizer.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return tokenizer.eos_token
    key = (template, tokenizer.eos_token, len(tokenizer))
    cached = _cache.get(tokenizer)
    if cached is None or cached[0] != key:
        cached = _cache[tokenizer] = key, _written_end(tokenizer) or tokenizer.eos_token
    return cached[1]


def turn_end_id(tokenizer: Any) -> int:
    """Return the id of :func:`turn_end`."""
    if not has_template(tokenizer):
        return tokenizer.eos_token_id
    return tokenizer.convert_tokens_to_ids(turn_end(tokenizer))


def stop_tokens(model: Any, tokenizer: Any, generation: Any = None) -> list[int]:
    """Return the sorted ids that end an answer.

    These are :func:`turn_end`, ``eos_token``, and every ``eos_token_id`` of the model's ``generation_config`` (or of
    ``generation``, which replaces it) and ``config``. Raises :class:`UserError` if one of them is not a token id.
    """
    config = getattr(model, "config", None)
    texts = None if config is None else config.get_text_config()
    stops = [turn_end_id(tokenizer), tokenizer.eos_token_id]
    for settings in (generation or getattr(model, "generation_config", None), config, texts):
        named = getattr(settings, "eos_token_id", None)
        stops += named if isinstance(named, list | tuple) else [named]
    stops = [stop for stop in stops if stop is not None]
    strange = [stop for stop in stops if isinstance(stop, bool) or not isinstance(stop, int)]
    if strange:
        raise UserError(
            f"eos_token_id of the model's generation_config.json or config.json: {strange[0]!r} is not a token id"
        )
    return sorted(set(stops))


def up_to_end(ids: Sequence[int], stops: Sequence[int]) -> tuple[list[int], bool]:
    """Return the ids before the first of ``stops``, and whether there is one."""
    at = next((at for at, token in enumerate(ids) if token in stops), None)
    return list(ids[:at]), at is not None


def without_end(tokenizer: Any, text: str) -> tuple[str, str | None]:
    """Return a rendered turn without the token at its end and what follows it, and that token (None: there is none).

    White space may follow, and ``eos_token`` if the template ends whole conversations with it.
    """
    trimmed, end, eos = text.rstrip(), turn_end(tokenizer), tokenizer.eos_token
    turn = trimmed.removesuffix(eos).rstrip() if eos != end else trimmed
    if turn.endswith(end):
        return turn.removesuffix(end), end
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = [token for token in special | set(tokenizer.all_special_tokens) if token and trimmed.endswith(token)]
    return (trimmed.removesuffix(max(ends, key=len)), max(ends, key=len)) if ends else (text, None)


def plain_answer_warning(tokenizer: Any) -> str | None:
    """Return a warning about answers that are plain texts, or None if the template gives no reason for one.

    There are two reasons: the template writes something between the prompt and the answer (an empty thought, a
    channel), or the prompt ends with something that is not written before an answer (it opens a thought).
    """
    if not has_template(tokenizer):
        return None
    prompt, whole = _render(tokenizer, [_USER], to_answer=True), _render(tokenizer, [_USER, _ASSISTANT])
    before = whole.partition(_ANSWER)[0]
    if not (prompt and _ANSWER in whole):
        return None
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, before, strict=False))
    shared = len(list(same))
    if opening := before[shared:].strip():
        return (
            f"the base's chat template writes {opening!r} before what the assistant says. An answer that is a plain "
            "text is learnt without it: if the model should write it, begin each answer with it"
        )
    if ending := prompt[shared:].strip():
        return (
            f"the base's chat template ends a prompt with {ending!r}, and leaves it out before an answer. The model "
            "learns an answer directly after it: if it opens a thought, begin each answer with the thought and its "
            "closing mark"
        )
    return None


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern that matches every control token; if one token begins with another, it matches the longer."""
    return _any_of({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, tokenizer)


def _written_end(tokenizer: Any) -> str | None:
    """Return the token that the template writes after the assistant's text, or None if it writes none."""
    as_last, in_middle = _render(tokenizer, [_USER, _ASSISTANT]), _render(tokenizer, [_USER, _ASSISTANT, _USER])
    before_answer, _, after_last = as_last.partition(_ANSWER)
    _, _, after_middle = in_middle.partition(_ANSWER)
    token_of_last, token_of_middle = _first_token(tokenizer, after_last), _first_token(tokenizer, after_middle)
    if token_of_last is not None and token_of_last == token_of_middle:
        return token_of_last
    # Some templates always end with what opens the assistant's next turn: that does not end this one.
    header = before_answer.rpartition(_QUESTION)[2]
    if token_of_last is not None and not header.rstrip().endswith(after_last.strip()):
        return token_of_last
    # Some templates write the end only between two turns. If there is none, what opens the user's turn is there.
    opening, between = in_middle.partition(_QUESTION)[0], after_middle.partition(_QUESTION)[0]
    return None if opening.endswith(between.lstrip()) else token_of_middle


def _render(tokenizer: Any, messages: list[dict[str, str]], *, to_answer: bool = False) -> str:
    """Return the rendering of probe messages, or an empty text if the template refuses them."""
    try:
        return apply_template(tokenizer, list(map(dict, messages)), to_answer=to_answer)
    except TEMPLATE_ERRORS:  # rendering a real conversation reports the error
        return ""


def _first_token(tokenizer: Any, text: str) -> str | None:
    """Return the added token that a text begins with, after white space, or None.

    All added tokens count, because not every tokenizer marks its end tokens as special.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    match = _any_of(added, tokenizer).match(text.lstrip())
    return match[0] if match else None


def _any_of(texts: set[str], tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern for these texts and the tokenizer's special tokens, the longest first."""
    whole = {text for text in texts | set(tokenizer.all_special_tokens) if text.strip()}
    return re.compile("|".join(map(re.escape, sorted(whole, key=len, reverse=True))))
