"""How a model is told of its tools, writes calls and reads results: all of it as token ids, through its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from skillweave.base.chat import (
    Message,
    Prompt,
    PromptOrIds,
    as_messages,
    check_complete,
    is_token_ids,
    rendered,
    rendered_ids,
    text_of,
    tools_of,
)
from skillweave.base.ends import control_tokens, turn_end
from skillweave.base.thoughts import opened_thought
from skillweave.errors import UserError
from skillweave.tools.call import EXPERT, TOOL, Outcome
from skillweave.tools.toolbox import Toolbox
from skillweave.tools.trace import Step, read_trace
from skillweave.tools.turn import CLOSE, OPEN, Thoughts, Turn, read_turn

_CUT = "..."
_CHARACTERS = 100
"""Of a tool's text so many characters a token are looked at: what is cut away need not be tokenized."""
_CALLED, _RESULT = "the-assistant-wrote-this", "the-tool-wrote-this"


class CallFormat:
    """How one model uses the tools of one toolbox.

    A call is text, ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them a turn; other forms
    are read too (:func:`~skillweave.tools.turn.read_turn`, which takes ``thoughts``). A turn ends
    with the end token of the chat template (:func:`~skillweave.base.ends.turn_end`). A turn without a call is the
    answer.

    The tools are told by the chat template where it takes ``tools``, else by a short system message; ``instruction``
    is told in place of either, and with ``""`` nothing is told at all, for a model that was trained on the form.
    A result is a message of the role "tool", and of the role "user" in ``<tool_response>`` where the template does not
    write that role. It is cut at ``max_tool_tokens``, and a control token in its text is broken up, so that no tool can
    end a turn or speak in another role.

    Raises :class:`UserError` for a tokenizer without a chat template.
    """

    def __init__(
        self, tokenizer: Any, toolbox: Toolbox, *, max_tool_tokens: int = 512, instruction: str | None = None,
        thoughts: Thoughts = "strip",
    ) -> None:  # fmt: skip
        self.tokenizer = tokenizer
        self.max_tool_tokens = max_tool_tokens
        self._toolbox, self._thoughts = toolbox, thoughts
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("tools need a model with a chat template, and this tokenizer has none: set chat_template")
        if max_tool_tokens <= len(self._encode(_CUT)):
            raise UserError(f"max_tool_tokens is {max_tool_tokens}: a result needs more to say anything")
        self._tools: list[dict[str, Any]] | None = None
        if instruction is None and self._template_tells(toolbox):
            self._tools = toolbox.schemas
        self._instruction = _instruction(toolbox.schemas) if instruction is None else instruction
        self._control = control_tokens(tokenizer)
        self._end = turn_end(tokenizer)
        self._tool_role = self._writes_tool_role()

    def prompt_ids(self, prompt: PromptOrIds) -> list[int]:
        """Token ids of the prompt with the tools told, to where the model writes.

        Raises :class:`UserError` where the template refuses the prompt's roles, and for a prompt that brings tools of
        its own, which nobody here could run.
        """
        if is_token_ids(prompt):
            raise UserError("a prompt of token ids cannot be told of tools: give its text or its messages")
        prompt = cast(Prompt, prompt)
        if tools_of(prompt):
            raise UserError("the prompt brings tools of its own, which cannot be called here: ask it without tools")
        messages = as_messages(prompt)
        if self._tools is None and self._instruction:
            system = [message["content"] for message in messages[:1] if message["role"] == "system"]
            told = {"role": "system", "content": "\n\n".join([*system, self._instruction])}
            messages = [told, *messages[len(system) :]]
        text = self._render(messages, tools=self._tools)
        check_complete(self.tokenizer, messages, self._tools or (), text)
        return rendered_ids(self.tokenizer, text)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as the text that :meth:`read` takes; a mark of a call may be a special token: none is skipped."""
        return text_of(self.tokenizer, ids, special=True)

    def read(self, text: str, before: str = "") -> Turn:
        """What the model wrote in one turn, ``text`` being without its end token. Never raises.

        ``before`` is the end of what stands before it: the template itself may have opened a thought there.
        """
        turn = read_turn(opened_thought(before) + text, self._toolbox.schemas, thoughts=self._thoughts)
        return replace(turn, text=text)

    def result_ids(self, outcomes: Sequence[Outcome]) -> list[int]:
        """Token ids of a turn's results: from after the model's end token to where it writes again."""
        texts = [self._fitted(outcome.text) for outcome in outcomes]
        after = self._render(_asked_and_called(self._result_messages(texts))).split(_CALLED, 1)[1]
        # Template text between the answer and the end token, if any, is white space that the model did not write.
        before, end, rest = after.partition(self._end)
        if not end or before.strip():
            return self._encode(after)
        # Tokenized behind the end token, as it stands in the conversation.
        return self._encode(end + rest)[1:]

    def trace(self, messages: Sequence[Message]) -> tuple[list[int], list[int], list[int]]:
        """An expert's conversation as the model would have lived it: prompt ids, the ids after it, who wrote each.

        ``messages`` are in OpenAI's form: the prompt, then turns of the assistant with ``tool_calls``, each followed by
        the ``tool`` messages that answer them, and the assistant's answer. A writer is ``EXPERT`` for what the
        assistant wrote, end tokens included, and ``TOOL`` for the rest. Raises :class:`UserError` for other messages.
        """
        prompt, steps = read_trace(messages)
        ids: list[int] = []
        writers: list[int] = []
        for step in steps:
            for writer, piece in ((EXPERT, self._written(step)), (TOOL, self._results(step))):
                ids += piece
                writers += [writer] * len(piece)
        return self.prompt_ids(prompt), ids, writers

    def _written(self, step: Step) -> list[int]:
        return [*self._encode(step.text), self.tokenizer.convert_tokens_to_ids(self._end)]

    def _results(self, step: Step) -> list[int]:
        return self.result_ids([Outcome(text) for text in step.results]) if step.results else []

    def _result_messages(self, texts: Sequence[str]) -> list[dict[str, str]]:
        if self._tool_role:
            return [{"role": "tool", "content": text} for text in texts]
        wrapped = "\n".join(f"<tool_response>{text}</tool_response>" for text in texts)
        return [{"role": "user", "content": wrapped}]

    def _fitted(self, text: str) -> str:
        """A tool's text as the model may see it: valid, without control tokens, of at most ``max_tool_tokens``.

        A text that is cut says how much is left out, where that takes a small part of the room.
        """
        whole = text.encode("utf-8", "replace").decode()
        text = self._control.sub(
            lambda found: f"{found[0][0]} {found[0][1:]}", whole[: _CHARACTERS * self.max_tool_tokens]
        )
        # Not verbose: a text longer than the model's context is cut here, nobody needs to be warned of it.
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded.offset_mapping]
        if len(text) >= len(whole) and len(ends) <= self.max_tool_tokens:
            return text
        keep = min(len(ends), self.max_tool_tokens)
        # A cut can change how the last word is split: shorten until it fits.
        while True:
            kept = text[: ends[keep - 1] if keep else 0]
            cut = kept + self._cut_off(len(whole) - len(kept))
            if len(self._encode(cut)) <= self.max_tool_tokens:
                return cut
            keep -= 1

    def _cut_off(self, more: int) -> str:
        said = f"{_CUT} ({more:,} more characters were cut off)"
        return said if len(self._encode(said)) <= self.max_tool_tokens // 8 else _CUT

    def _template_tells(self, toolbox: Toolbox) -> bool:
        """Whether the template takes ``tools`` and writes their names."""
        if not toolbox.names:
            return False
        asked = [{"role": "user", "content": "?"}]
        told = self._render(asked, tools=toolbox.schemas)
        return told != self._render(asked) and all(name in told for name in toolbox.names)

    def _writes_tool_role(self) -> bool:
        try:
            return _RESULT in self._render(_asked_and_called([{"role": "tool", "content": _RESULT}]))
        except UserError:
            return False

    def _render(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> str:
        try:
            return rendered(self.tokenizer, messages, tools=tools)
        except UserError as error:
            refused = any(message.get("role") == "system" for message in messages)
            hint = "; where it takes no system message, pass instruction=''" if refused else ""
            raise UserError(f"{error}{hint}") from error

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _asked_and_called(results: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": _CALLED}, *results]


def _instruction(schemas: Sequence[Mapping[str, Any]]) -> str:
    """The tools and the form of a call, in few words; empty where there are no tools."""
    if not schemas:
        return ""
    form = f'{OPEN}{{"name": ..., "arguments": {{...}}}}{CLOSE}'
    return "\n".join([f"To call a tool write {form}", "Tools:", *(_told(schema["function"]) for schema in schemas)])


def _told(function: Mapping[str, Any]) -> str:
    """``search(query: string): Find ... query: words to look for``"""
    properties = function["parameters"]["properties"]
    required = function["parameters"].get("required", [])
    named = [f"{name}{'' if name in required else '?'}: {_kind(about)}" for name, about in properties.items()]
    about = [f"{name}: {about['description']}" for name, about in properties.items() if about.get("description")]
    text = " ".join([function["description"], "; ".join(about)])
    return f"{function['name']}({', '.join(named)}): {' '.join(text.split())}"


def _kind(about: Mapping[str, Any]) -> str:
    if "enum" in about:
        return " or ".join(map(repr, about["enum"]))
    kind = about.get("type", "any")
    return kind if isinstance(kind, str) else " or ".join(kind)
