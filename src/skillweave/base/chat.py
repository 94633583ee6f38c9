"""Prompts and answers as the model sees them: through its chat template, or plain where it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeGuard, cast

from skillweave.base.ends import TEMPLATE_ERRORS, turn_end_id, without_end
from skillweave.base.template import apply_template, called, place_of
from skillweave.errors import UserError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Mapping[str, Any]
"""A user's text; messages ``{"role": ..., "content": ...}`` ending with the one to answer; or a mapping
``{"messages": [...], "tools": [...]}`` of such messages and what the model may call, in OpenAI's form."""
Answer = str | Message
"""What the assistant says: a text as the model should write it, or a message, whose ``tool_calls`` or
``reasoning_content`` the chat template writes."""

_OTHER = "another-text-stands-here"


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as chat messages; a text becomes one message of the user."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in (prompt["messages"] if isinstance(prompt, Mapping) else prompt)]


def tools_of(prompt: Prompt) -> list[Mapping[str, Any]]:
    """The tools that a prompt brings, in OpenAI's form; most bring none."""
    return list(prompt.get("tools") or []) if isinstance(prompt, Mapping) else []


def as_json(prompt: Prompt) -> str | list[dict[str, Any]] | dict[str, Any]:
    """The prompt as JSON holds it."""
    if isinstance(prompt, str):
        return prompt
    tools = tools_of(prompt)
    return {"messages": as_messages(prompt), "tools": tools} if tools else as_messages(prompt)


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """The text to be continued: chat template with the generation prompt; contents joined where there is none.

    Raises :class:`UserError` where the template refuses the messages, or would leave some of what they say out.
    """
    messages, tools = as_messages(prompt), tools_of(prompt)
    if getattr(tokenizer, "chat_template", None):
        text = rendered(tokenizer, messages, tools=tools)
        check_told(tokenizer, messages, tools, text)
        return text
    if tools or any(message.get("tool_calls") for message in messages):
        raise UserError("the prompt has tools or tool calls, and this base has no chat template to write them with")
    return "\n".join(str(message.get("content") or "") for message in messages)


def is_token_ids(prompt: Prompt | Sequence[int]) -> TypeGuard[Sequence[int]]:
    """Whether a prompt is given as token ids, and not as text or messages."""
    return not isinstance(prompt, str | Mapping) and len(prompt) > 0 and isinstance(prompt[0], int)


def prompt_ids(tokenizer: Any, prompt: Prompt | Sequence[int]) -> list[int]:
    """Token ids of :func:`prompt_text`; special tokens are added only where no template wrote them.

    A prompt that is given as token ids is returned as it is.

    There is one token of the text's beginning at most, and none of its end: the model is to go on. Raises
    :class:`UserError` for a text with half a character, as a command's argument has that is not UTF-8.
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
    return rendered_ids(tokenizer, text) if getattr(tokenizer, "chat_template", None) else plain_ids(tokenizer, text)


def answer_ids(tokenizer: Any, answer: Answer, prompt: Prompt | None = None) -> list[int]:
    """Token ids of an answer as the model should write it after :func:`prompt_ids`, the token that ends a turn
    included (:func:`~skillweave.base.ends.turn_end`).

    A message with more than a text is written by the chat template, which needs the ``prompt`` before it.
    """
    text, end = _answer(tokenizer, answer, prompt)
    last = turn_end_id(tokenizer) if end is None else tokenizer.convert_tokens_to_ids(end)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids and ids[-1] == last else [*ids, last]


def answer_text(tokenizer: Any, answer: Answer, prompt: Prompt | None = None) -> str:
    """The text of :func:`answer_ids`, without the end."""
    return _answer(tokenizer, answer, prompt)[0]


def text_of(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    """Token ids as the very text they stand for: spaces are never "cleaned up". ``special``: with special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)


def rendered(
    tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
    to_answer: bool = True,
) -> str:  # fmt: skip
    """What the chat template makes of a conversation; ``to_answer``: to where the assistant writes.

    A content of None is an empty text. Arguments of calls are handed over as objects, or as JSON texts to a template
    that takes only those. Raises :class:`UserError` where the template refuses the messages.
    """
    forms = [[_in_form(message, as_text) for message in messages] for as_text in (False, True)]
    try:
        try:
            return apply_template(tokenizer, forms[0], tools=tools, to_answer=to_answer)
        except TypeError:
            if forms[0] == forms[1]:
                raise
            return apply_template(tokenizer, forms[1], tools=tools, to_answer=to_answer)
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(f"{place_of(tokenizer, error)} refuses messages of the roles {roles}: {error}") from error


def rendered_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of what a template wrote, which holds its special tokens; a second beginning of text is left out."""
    return _one_beginning(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that goes on: with what the tokenizer puts before a text, without what it puts behind."""
    whole = tokenizer(text)["input_ids"]
    bare = tokenizer(text or "x", add_special_tokens=False)["input_ids"]
    around = whole if text else tokenizer("x")["input_ids"]
    size = len(bare)
    behind = next(
        (len(around) - at - size for at in range(len(around) - size + 1) if around[at : at + size] == bare),
        int(bool(whole) and whole[-1] == tokenizer.eos_token_id),
    )
    return _one_beginning(tokenizer, whole[: len(whole) - behind])


def _one_beginning(tokenizer: Any, ids: list[int]) -> list[int]:
    begin = getattr(tokenizer, "bos_token_id", None)
    while begin is not None and ids[:2] == [begin, begin]:
        ids = ids[1:]
    return ids


def _answer(tokenizer: Any, answer: Answer, prompt: Prompt | None) -> tuple[str, str | None]:
    """The text that the model should write, and the token behind it where that is not the usual one."""
    if isinstance(answer, str):
        return answer, None
    more = [key for key, value in answer.items() if value and key not in ("role", "content")]
    if not more:
        return str(answer.get("content") or ""), None
    shown = " and ".join(map(repr, more))
    if prompt is None or not getattr(tokenizer, "chat_template", None):
        raise UserError(f"an answer with {shown} is written by a chat template, and this base has none")
    messages, tools = as_messages(prompt), tools_of(prompt)
    before = prompt_text(tokenizer, prompt)
    whole = rendered(tokenizer, [*messages, answer], tools=tools, to_answer=False)
    for key in more:
        less = {name: value for name, value in answer.items() if name != key}
        if _is_rendered(tokenizer, [*messages, less], tools, whole, to_answer=False):
            raise UserError(f"{called(tokenizer)} does not write the '{key}' of an answer: nothing would be learnt")
    if not whole.startswith(before):
        raise UserError(
            f"{called(tokenizer)} writes an answer with {shown} otherwise than behind the prompt that it is asked "
            f"with, which ends {before[-40:]!r}: give the answer as the text that the model should write"
        )
    text, end = without_end(tokenizer, whole[len(before) :])
    return (text if end is not None else text.rstrip()), end


def check_told(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], text: str) -> None:
    """Raise :class:`UserError` where the template passes over tools, calls, or what was said in another role than the
    assistant's: ``text``, the rendering, is the same without it."""
    uncalled = [{key: value for key, value in one.items() if key != "tool_calls"} for one in messages]
    asked: list[tuple[str, Sequence[Message], Sequence[Any]]] = [("tool calls", uncalled, tools)]
    # A template that leaves out thoughts or what stands beside a call is heeded in what the assistant says.
    for role in dict.fromkeys(str(one.get("role")) for one in messages):
        if role != "assistant":
            unsaid = [{**one, "content": _OTHER} if one.get("role") == role else one for one in messages]
            asked.append((f"messages of the role '{role}'", unsaid, tools))
    if tools:
        asked.append(("the tools of the prompt", messages, ()))
    for what, others, given in asked:
        changed = given != tools or others != list(messages)
        if changed and _is_rendered(tokenizer, others, given, text, to_answer=True):
            raise UserError(
                f"{called(tokenizer)} does not write {what}: the model would not see them. Take a base whose "
                "template does, or give the model such a template"
            )


def _is_rendered(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], text: str, *, to_answer: bool
) -> bool:
    """Whether the template makes that text of these messages, which it may also refuse."""
    try:
        return rendered(tokenizer, messages, tools=tools, to_answer=to_answer) == text
    except UserError:
        return False


def _in_form(message: Message, arguments_as_text: bool) -> dict[str, Any]:
    formed = {"content": "", **{key: value for key, value in message.items() if value is not None}}
    if message.get("tool_calls"):
        formed["tool_calls"] = [_call_in_form(call, arguments_as_text) for call in message["tool_calls"]]
    return formed


def _call_in_form(call: Any, as_text: bool) -> Any:
    """A tool call with its arguments as an object, or as a JSON text; what is no call is left to the template."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        return {**call, "function": _call_in_form(call["function"], as_text)}
    if not isinstance(call, Mapping) or "arguments" not in call:
        return call
    arguments = call["arguments"]
    if isinstance(arguments, str) and not as_text:
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    elif not isinstance(arguments, str) and as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "arguments": arguments}
