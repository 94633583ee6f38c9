"""Which tokens of a prompt the assistant said: what bears loss where all its turns do."""

from __future__ import annotations

from typing import Any, Literal

from skillweave.base.chat import Prompt, as_messages, prompt_ids, prompt_text, rendered, tools_of
from skillweave.base.ends import without_end
from skillweave.errors import UserError

Turns = Literal["last", "all"]
"""The assistant's turns that bear loss: the answer alone, or those in the prompt too."""


def turn_labels(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Labels of :func:`prompt_ids`, (T,): the assistant's turns with the token that ends each, -100 on the rest.

    A turn is what the template writes behind the conversation before it, where the model would have been asked. Raises
    :class:`UserError` where the template writes a turn otherwise once more messages follow (some leave out thoughts):
    the model would learn to write what it never should.
    """
    ids = prompt_ids(tokenizer, prompt)
    spans = _turn_spans(tokenizer, prompt)
    if not spans:
        return [-100] * len(ids)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("turns: all needs a fast tokenizer (tokenizer.json), which knows where its tokens stand")
    text = prompt_text(tokenizer, prompt)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if any(_within(offsets, span) for span in spans) else -100
        for token, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return labels[len(labels) - len(ids) :]  # a second beginning of text was left out


def _within(offsets: tuple[int, int], span: tuple[int, int]) -> bool:
    """Whether a token begins in a span. One that is white space alone may have no length, and stand at its own end."""
    (begin, end), (start, until) = offsets, span
    return start <= begin < until if end > begin else start < begin <= until


def _turn_spans(tokenizer: Any, prompt: Prompt) -> list[tuple[int, int]]:
    """Where the assistant's turns stand in :func:`prompt_text`: first character, and the one behind the end token."""
    messages, tools = as_messages(prompt), tools_of(prompt)
    said = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    if not said:
        return []
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("turns: all needs a chat template, which tells the assistant's turns apart: set turns: last")
    if said[0] == 0:
        raise UserError("turns: all: a conversation begins with the assistant's message, which answers nothing")
    text = prompt_text(tokenizer, prompt)
    spans = []
    for number in said:
        before = rendered(tokenizer, messages[:number], tools=tools)
        whole = rendered(tokenizer, messages[: number + 1], tools=tools, to_answer=False)
        turn, end = without_end(tokenizer, whole[len(before) :])
        until = before + (turn.rstrip() if end is None else turn + end)
        if not whole.startswith(before) or not text.startswith(until):
            raise UserError(
                f"turns: all: the base's chat template writes message {number + 1}, the assistant's, otherwise once "
                "more messages follow it (it may leave out thoughts), so it cannot be learnt there. Set turns: last, "
                "or write a row for each of the assistant's turns"
            )
        spans.append((len(before), len(until)))
    return spans
