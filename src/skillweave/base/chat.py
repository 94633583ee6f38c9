"""Write prompts and answers as the model reads them: through its chat template, or as plain text if it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeGuard, cast

from skillweave.base.ends import TEMPLATE_ERRORS, turn_end_id, without_end
from skillweave.base.template import TemplateError, apply_template, has_template, template_name
from skillweave.base.tokens import tokenized
from skillweave.errors import UserError
from skillweave.terminal import one_line

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Mapping[str, Any]
"""A text of the user; or messages ``{"role": ..., "content": ...}``, the last of which is to be answered; or a mapping
``{"messages": [...], "tools": [...]}`` of such messages and the tools that the model may call, in OpenAI's format."""
PromptOrIds = Prompt | Sequence[int]
"""A prompt, or its token ids, which are then used as they are."""
Answer = str | Message
"""What the assistant says: a text exactly as the model should write it, or a message, whose ``tool_calls`` or
``reasoning_content`` the chat template writes."""

_SHOWN, _LONGEST_REASON = 20, 1000
"""Messages whose roles an error names, and characters of a template's own words in it."""
_OTHER = "another-text-stands-here"


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the prompt as chat messages; a text becomes one message of the user."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in (prompt["messages"] if isinstance(prompt, Mapping) else prompt)]


def tools_of(prompt: Prompt) -> list[Mapping[str, Any]]:
    """Return the tools that a prompt brings, in OpenAI's format; most prompts bring none."""
    return list(prompt.get("tools") or []) if isinstance(prompt, Mapping) else []


def as_json(prompt: Prompt) -> str | list[dict[str, Any]] | dict[str, Any]:
    """Return the prompt as a JSON value."""
    if isinstance(prompt, str):
        return prompt
    tools = tools_of(prompt)
    return {"messages": as_messages(prompt), "tools": tools} if tools else as_messages(prompt)


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """Return the text that the model continues: the rendered chat template with the generation prompt.

    Without a template, it is the contents of the messages, joined by line feeds. Raises :class:`UserError` if the
    template refuses the messages or would leave out part of them, and for tools or tool calls without a template.
    """
    messages, tools = as_messages(prompt), tools_of(prompt)
    if has_template(tokenizer):
        text = rendered(tokenizer, messages, tools=tools)
        check_complete(tokenizer, messages, tools, text)
        return text
    if tools or any(message.get("tool_calls") for message in messages):
        raise UserError("the prompt has tools or tool calls, but this base has no chat template that could write them")
    return "\n".join(str(message.get("content") or "") for message in messages)


def is_token_ids(prompt: PromptOrIds) -> TypeGuard[Sequence[int]]:
    """Return whether a prompt is given as token ids, and not as a text or messages."""
    return not isinstance(prompt, str | Mapping) and len(prompt) > 0 and isinstance(prompt[0], int)


def prompt_ids(tokenizer: Any, prompt: PromptOrIds) -> list[int]:
    """Return the token ids of :func:`prompt_text`. Special tokens are added only if no template wrote them.

    A prompt of token ids is returned as it is.

    There is at most one beginning-of-text token, and no end-of-text token, because the model continues the text. Raises
    :class:`UserError` for a text with half a character (a command-line argument that is not UTF-8 becomes one).
    """
    if is_token_ids(prompt):
        return list(prompt)
    text = prompt_text(tokenizer, cast(Prompt, prompt))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a prompt holds {text[error.start]!a}, half a character or a byte that is not UTF-8, as character "
            f"{error.start + 1:,}: write the prompt in UTF-8"
        ) from error
    return rendered_ids(tokenizer, text) if has_template(tokenizer) else plain_ids(tokenizer, text)


def answer_ids(tokenizer: Any, answer: Answer, prompt: Prompt | None = None) -> list[int]:
    """Return the token ids of an answer as the model should write it after :func:`prompt_ids`.

    They include the token that ends a turn (:func:`~skillweave.base.ends.turn_end`). If the answer is a message with
    more than a text, the chat template writes it, which needs the ``prompt`` before it.
    """
    text, end = _answer(tokenizer, answer, prompt)
    last = turn_end_id(tokenizer) if end is None else tokenizer.convert_tokens_to_ids(end)
    ids = tokenized(tokenizer, text, add_special_tokens=False)["input_ids"]
    return ids if ids and ids[-1] == last else [*ids, last]


def answer_text(tokenizer: Any, answer: Answer, prompt: Prompt | None = None) -> str:
    """Return the text of :func:`answer_ids`, without the token that ends the turn."""
    return _answer(tokenizer, answer, prompt)[0]


def text_of(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    """Return the exact text of token ids; spaces are never "cleaned up". With ``special``, special tokens stay."""
    return tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)


def rendered(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    to_answer: bool = True,
) -> str:
    """Return the text that the chat template writes for a conversation.

    With ``to_answer``, the text ends where the assistant's answer begins. A content of None counts as an empty text.
    The arguments of tool calls are passed as objects, or as JSON text to a template that accepts only that. Raises
    :class:`UserError` if the template refuses the messages.
    """
    as_objects = [_for_template(message, arguments_as_text=False) for message in messages]
    as_texts = [_for_template(message, arguments_as_text=True) for message in messages]
    try:
        try:
            return apply_template(tokenizer, as_objects, tools=tools, to_answer=to_answer)
        except TypeError:
            if as_objects == as_texts:
                raise
            return apply_template(tokenizer, as_texts, tools=tools, to_answer=to_answer)
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(str(message.get("role")) for message in messages[:_SHOWN])
        more = f" and {len(messages) - _SHOWN:,} more" if len(messages) > _SHOWN else ""
        what = f"refuses messages of the roles {roles}{more}: {one_line(error, _LONGEST_REASON)}"
        others = [message for message in messages if message.get("role") != "system"]
        if len(others) < len(messages) and _written(tokenizer, others, tools, to_answer=to_answer) is not None:
            what += ". It takes no system message: write that text at the beginning of the user's message"
        raise TemplateError(tokenizer, what, error) from error


def rendered_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that a template wrote, with its special tokens.

    A second beginning-of-text token is left out.
    """
    return _one_beginning(tokenizer, tokenized(tokenizer, text, add_special_tokens=False)["input_ids"])


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that continues.

    Tokens that the tokenizer adds before a text are included; those that it adds after a text are not.
    """
    whole = tokenized(tokenizer, text)["input_ids"]
    bare = tokenized(tokenizer, text or "x", add_special_tokens=False)["input_ids"]
    around = whole if text else tokenized(tokenizer, "x")["input_ids"]
    size = len(bare)
    after = next(
        (len(around) - at - size for at in range(len(around) - size + 1) if around[at : at + size] == bare),
        int(bool(whole) and whole[-1] == tokenizer.eos_token_id),
    )
    return _one_beginning(tokenizer, whole[: len(whole) - after])


def _one_beginning(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return the ids with at most one beginning-of-text token at the start."""
    begin = getattr(tokenizer, "bos_token_id", None)
    while begin is not None and ids[:2] == [begin, begin]:
        ids = ids[1:]
    return ids


def _answer(tokenizer: Any, answer: Answer, prompt: Prompt | None) -> tuple[str, str | None]:
    """Return the text that the model should write, and the token after it, or None if that is the usual one."""
    if isinstance(answer, str):
        return answer, None
    more = [key for key, value in answer.items() if value and key not in ("role", "content")]
    if not more:
        return str(answer.get("content") or ""), None
    shown = " and ".join(map(repr, more))
    if prompt is None or not has_template(tokenizer):
        raise UserError(f"an answer with {shown} needs a chat template to write it, and this base has none")
    messages, tools = as_messages(prompt), tools_of(prompt)
    before = prompt_text(tokenizer, prompt)
    whole = rendered(tokenizer, [*messages, answer], tools=tools, to_answer=False)
    for key in more:
        # Services write the same thoughts under two keys, of which a template reads one.
        less = {name: value for name, value in answer.items() if name in ("role", "content") or value != answer[key]}
        if _written(tokenizer, [*messages, less], tools, to_answer=False) == whole:
            raise UserError(
                f"{template_name(tokenizer)} does not write the '{key}' of an answer: the model would not learn it"
            )
    if not whole.startswith(before):
        raise UserError(
            f"{template_name(tokenizer)} does not write an answer with {shown} directly after the prompt, which ends "
            f"with {before[-40:]!r}: give the answer as the text that the model should write"
        )
    text, end = without_end(tokenizer, whole[len(before) :])
    return (text if end is not None else text.rstrip()), end


def check_complete(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], text: str) -> None:
    """Raise :class:`UserError` if the template ignores tools, tool calls, or the messages of a role.

    The template ignores a part if ``text``, the rendering, is the same without it, or with another text in its place.
    """
    without_calls = [{key: value for key, value in one.items() if key != "tool_calls"} for one in messages]
    variants: list[tuple[str, Sequence[Message], Sequence[Any]]] = [("tool calls", without_calls, tools)]
    # The assistant's role is not checked: a template may leave out its thoughts, or its text beside a tool call.
    for role in dict.fromkeys(str(one.get("role")) for one in messages):
        if role != "assistant":
            replaced = [{**one, "content": _OTHER} if one.get("role") == role else one for one in messages]
            variants.append((f"messages of the role '{role}'", replaced, tools))
    if tools:
        variants.append(("the tools of the prompt", messages, ()))
    for part, variant, variant_tools in variants:
        changed = variant_tools != tools or variant != list(messages)
        if changed and _written(tokenizer, variant, variant_tools, to_answer=True) == text:
            raise TemplateError(
                tokenizer,
                f"does not write {part}: the model would not see them. Use a base whose template does, or give the "
                "model such a template",
            )


def _written(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] | None, *, to_answer: bool
) -> str | None:
    """Return what the template writes for the messages, or None if it refuses them."""
    try:
        return rendered(tokenizer, messages, tools=tools, to_answer=to_answer)
    except UserError:
        return None


def _for_template(message: Message, *, arguments_as_text: bool) -> dict[str, Any]:
    """Return a message without values of None, and with the arguments of its tool calls in one format."""
    result = {"content": "", **{key: value for key, value in message.items() if value is not None}}
    if message.get("tool_calls"):
        result["tool_calls"] = [_with_arguments(call, arguments_as_text) for call in message["tool_calls"]]
    return result


def _with_arguments(call: Any, as_text: bool) -> Any:
    """Return a tool call with its arguments as JSON text or as an object; anything else is left to the template."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_arguments(call["function"], as_text)}
    if not isinstance(call, Mapping) or "arguments" not in call:
        return call
    arguments = call["arguments"]
    if isinstance(arguments, str) and not as_text:
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    elif not isinstance(arguments, str) and as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "arguments": arguments}
