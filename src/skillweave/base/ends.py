"""Where a turn ends. Training, figures, generation and the tool loop all ask here, so that they agree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from skillweave.base.template import apply_template
from skillweave.errors import UserError

ASKED, SAID = "the-user-asked-this", "the-assistant-wrote-this"
"""Texts whose places in a rendering show what the template writes around what somebody said."""

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a chat template may raise: jinja evaluates Python expressions."""

_found: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()


def turn_end(tokenizer: Any) -> str:
    """The token that ends a turn: the one that the chat template writes behind what the assistant said.

    It need not be the end of all text: Gemma writes ``<end_of_turn>``, while its ``eos_token`` is ``<eos>``. White
    space before the token does not count. ``eos_token`` ends a turn where there is no template, where the template
    writes no token behind the assistant's text, and where what it writes there is several tokens of this tokenizer.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return tokenizer.eos_token
    key = (template, tokenizer.eos_token, len(tokenizer))
    kept = _found.get(tokenizer)
    if kept is None or kept[0] != key:
        kept = _found[tokenizer] = key, _written_end(tokenizer) or tokenizer.eos_token
    return kept[1]


def turn_end_id(tokenizer: Any) -> int:
    """The id of :func:`turn_end`."""
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer.eos_token_id
    return tokenizer.convert_tokens_to_ids(turn_end(tokenizer))


def stop_tokens(model: Any, tokenizer: Any, generation: Any = None) -> list[int]:
    """The ids that end an answer: :func:`turn_end`, ``eos_token``, and all that the model's ``generation_config`` (or
    ``generation`` in its place) and ``config`` name as ``eos_token_id``."""
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
            f"eos_token_id of the model's generation_config.json or config.json: {strange[0]!r} is no token id"
        )
    return sorted(set(stops))


def up_to_end(ids: Sequence[int], stops: Sequence[int]) -> tuple[list[int], bool]:
    """The ids before the first of ``stops``, and whether there is one."""
    at = next((at for at, token in enumerate(ids) if token in stops), None)
    return list(ids[:at]), at is not None


def without_end(tokenizer: Any, text: str) -> tuple[str, str | None]:
    """A rendered turn without the token at its end and what stands behind that; and that token, if any.

    Behind it may be white space, and ``eos_token`` where the template ends a whole conversation with it.
    """
    trimmed, end, eos = text.rstrip(), turn_end(tokenizer), tokenizer.eos_token
    turn = trimmed.removesuffix(eos).rstrip() if eos != end else trimmed
    if turn.endswith(end):
        return turn.removesuffix(end), end
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = [token for token in special | set(tokenizer.all_special_tokens) if token and trimmed.endswith(token)]
    return (trimmed.removesuffix(max(ends, key=len)), max(ends, key=len)) if ends else (text, None)


def beside_the_answer(tokenizer: Any) -> str | None:
    """What a user should know of answers that are plain texts: where the template writes more than the text behind the
    prompt (an empty thought, a channel), or the prompt opens a thought. None where it does neither.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    asked, said = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
    prompt, whole = _render(tokenizer, [asked], to_answer=True), _render(tokenizer, [asked, said])
    before = whole.partition(SAID)[0]
    if not (prompt and SAID in whole):
        return None
    shared = next((at for at, pair in enumerate(zip(prompt, before, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(prompt), len(before)) if shared is None else shared
    if left := before[shared:].strip():
        return (
            f"the base's chat template writes {left!r} before what the assistant says. An answer that is a plain text "
            "is learnt without it: if the model should write it, begin each answer with it"
        )
    if opened := prompt[shared:].strip():
        return (
            f"the base's chat template ends a prompt with {opened!r}, and leaves it out before an answer. An answer is "
            "learnt right behind it: if it opens a thought, begin each answer with the thought and the mark that ends "
            "it"
        )
    return None


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds every text that is a control token; of two that begin alike the longer."""
    return _any_of({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, tokenizer)


def _written_end(tokenizer: Any) -> str | None:
    """The token that the template writes behind the assistant's text, None where it writes none."""
    asked, said = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
    last, middle = _render(tokenizer, [asked, said]), _render(tokenizer, [asked, said, asked])
    before_said, _, behind_last = last.partition(SAID)
    _, _, behind = middle.partition(SAID)
    of_last, of_middle = _first_token(tokenizer, behind_last), _first_token(tokenizer, behind)
    if of_last is not None and of_last == of_middle:
        return of_last
    # A template may always write what opens the assistant's next turn: that is no end of this one.
    header = before_said.rpartition(ASKED)[2]
    if of_last is not None and not header.rstrip().endswith(behind_last.strip()):
        return of_last
    # The end may stand between two turns only; without one, what opens the user's turn stands there.
    opening, between = middle.partition(ASKED)[0], behind.partition(ASKED)[0]
    return None if opening.endswith(between.lstrip()) else of_middle


def _render(tokenizer: Any, messages: list[dict[str, str]], *, to_answer: bool = False) -> str:
    try:
        return apply_template(tokenizer, messages, to_answer=to_answer)
    except TEMPLATE_ERRORS:  # whoever renders a real conversation is told
        return ""


def _first_token(tokenizer: Any, text: str) -> str | None:
    """The token of its own that a text begins with, white space aside. Not all tokenizers mark their ends special."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    found = _any_of(added, tokenizer).match(text.lstrip())
    return found[0] if found else None


def _any_of(texts: set[str], tokenizer: Any) -> re.Pattern[str]:
    whole = {text for text in texts | set(tokenizer.all_special_tokens) if text.strip()}
    return re.compile("|".join(map(re.escape, sorted(whole, key=len, reverse=True))))
