"""Finds the tokens of a prompt that are the assistant's turns, to train on them too."""

from __future__ import annotations

from typing import Any, Literal

from skillweave.base.chat import Prompt, as_messages, prompt_ids, prompt_text, rendered, tools_of
from skillweave.base.ends import without_end
from skillweave.base.template import has_template
from skillweave.base.tokens import tokenized
from skillweave.errors import UserError

Turns = Literal["last", "all"]
"""Which of the assistant's turns are trained on: the answer alone, or those in the prompt too."""


def turn_labels(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The labels for :func:`prompt_ids`, (T,): the assistant's turns with their end tokens, -100 elsewhere.

    A turn is the text that the chat template writes after the conversation before it, where the model would have
    generated. Raises :class:`UserError` in two cases:

    - The base has no chat template or no fast tokenizer, so the turns cannot be located.
    - The template writes a turn differently when more messages follow (some leave out thoughts). The model would learn
      to write what it should never write.
    """
    ids = prompt_ids(tokenizer, prompt)
    spans = _turn_spans(tokenizer, prompt)
    if not spans:
        return [-100] * len(ids)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "turns: all needs a fast tokenizer (tokenizer.json), which knows where each token begins in the text: set "
            "turns: last"
        )
    text = prompt_text(tokenizer, prompt)
    found = tokenized(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if any(_within(offsets, span) for span in spans) else -100
        for token, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]
    return labels[len(labels) - len(ids) :]  # prompt_ids leaves out a second beginning-of-text token


def _within(offsets: tuple[int, int], span: tuple[int, int]) -> bool:
    """Whether a token begins in a span. A token of white space may have length 0 and is then located at its end."""
    (begin, end), (start, until) = offsets, span
    return start <= begin < until if end > begin else start < begin <= until


def _turn_spans(tokenizer: Any, prompt: Prompt) -> list[tuple[int, int]]:
    """The assistant's turns in :func:`prompt_text`: (index of the first character, index after the end token)."""
    messages, tools = as_messages(prompt), tools_of(prompt)
    assistant = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    if not assistant:
        return []
    if not has_template(tokenizer):
        raise UserError("turns: all needs a chat template, which tells the assistant's turns apart: set turns: last")
    if assistant[0] == 0:
        raise UserError(
            "turns: all: a conversation begins with the assistant's message, which answers nothing: begin it with a "
            "user's message, or set turns: last"
        )
    text = prompt_text(tokenizer, prompt)
    spans = []
    for number in assistant:
        before = rendered(tokenizer, messages[:number], tools=tools)
        whole = rendered(tokenizer, messages[: number + 1], tools=tools, to_answer=False)
        turn, end = without_end(tokenizer, whole[len(before) :])
        until = before + (turn.rstrip() if end is None else turn + end)
        if not whole.startswith(before) or not text.startswith(until):
            raise UserError(
                f"turns: all: the base's chat template writes message {number + 1}, the assistant's, differently "
                "when more messages follow it (it may leave out thoughts), so it cannot be learnt there. Set turns: "
                "last, or write a row for each of the assistant's turns"
            )
        spans.append((len(before), len(until)))
    return spans
