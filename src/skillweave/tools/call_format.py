"""How a model is told about its tools, writes calls and reads results: all as token ids, through its chat template."""

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
from skillweave.base.template import has_template
from skillweave.base.thoughts import opened_thought
from skillweave.base.tokens import tokenized
from skillweave.errors import UserError
from skillweave.tools.call import EXPERT, TOOL, Outcome
from skillweave.tools.toolbox import Toolbox
from skillweave.tools.trace import Step, read_trace
from skillweave.tools.turn import CLOSE, OPEN, Thoughts, Turn, read_turn

_CUT = "..."
_CHARACTERS_PER_TOKEN = 100
"""A result is cut to this many characters for each allowed token before it is tokenized, which would take long."""
_CALLED, _RESULT = "the-assistant-wrote-this", "the-tool-wrote-this"


class CallFormat:
    """How one model uses the tools of one toolbox.

    - **A call** is the text ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; a turn may hold any number.
      Other forms are read too (:func:`~skillweave.tools.turn.read_turn`, which also takes ``thoughts``).
    - **A turn** ends with the end token of the chat template (:func:`~skillweave.base.ends.turn_end`). A turn without a
      call is the answer.
    - **The tools** are described by the chat template if it takes ``tools``, else by a short system message.
      ``instruction`` replaces both. With ``""`` nothing is described, for a model that was trained on the tools.
    - **A result** is a message of the role "tool". If the template does not write that role, it is a message of the
      role "user" in ``<tool_response>``. It is cut at ``max_tool_tokens``, and control tokens in its text are broken
      up, so that no tool can end a turn or speak in another role.

    Raises :class:`UserError` for a tokenizer without a chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        toolbox: Toolbox,
        *,
        max_tool_tokens: int = 512,
        instruction: str | None = None,
        thoughts: Thoughts = "strip",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_tool_tokens = max_tool_tokens
        self._toolbox, self._thoughts = toolbox, thoughts
        if not has_template(tokenizer):
            raise UserError("tools need a model with a chat template, and this tokenizer has none: set chat_template")
        if max_tool_tokens <= len(self._encode(_CUT)):
            raise UserError(f"max_tool_tokens is {max_tool_tokens}: a result needs more to say anything")
        self._tools: list[dict[str, Any]] | None = None
        if instruction is None and self._template_describes(toolbox):
            self._tools = toolbox.schemas
        self._instruction = tools_instruction(toolbox.schemas) if instruction is None else instruction
        self._control = control_tokens(tokenizer)
        self._end = turn_end(tokenizer)
        self._tool_role = self._writes_tool_role()

    def prompt_ids(self, prompt: PromptOrIds) -> list[int]:
        """Token ids of the prompt with the description of the tools, up to where the model writes.

        Raises :class:`UserError` if the template refuses the prompt's roles, for a prompt of token ids, to which no
        description can be added, and for a prompt that brings tools of its own, because these cannot be run.
        """
        if is_token_ids(prompt):
            raise UserError("a prompt of token ids cannot be told of tools: give its text or its messages")
        prompt = cast(Prompt, prompt)
        if tools_of(prompt):
            raise UserError("the prompt brings tools of its own, which cannot be called here: ask it without tools")
        messages = as_messages(prompt)
        if self._tools is None and self._instruction:
            system = [message["content"] for message in messages[:1] if message["role"] == "system"]
            described = {"role": "system", "content": "\n\n".join([*system, self._instruction])}
            messages = [described, *messages[len(system) :]]
        text = self._render(messages, tools=self._tools)
        check_complete(self.tokenizer, messages, self._tools or (), text)
        return rendered_ids(self.tokenizer, text)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as the text that :meth:`read` takes. Special tokens are kept: the mark of a call may be one."""
        return text_of(self.tokenizer, ids, special=True)

    def read(self, text: str, before: str = "") -> Turn:
        """The calls or the answer in one turn of the model. Never raises.

        ``text`` is the turn without its end token. ``before`` is the end of the text before the turn: the template
        itself may have opened a thought there.
        """
        turn = read_turn(opened_thought(before) + text, self._toolbox.schemas, thoughts=self._thoughts)
        return replace(turn, text=text)

    def result_ids(self, outcomes: Sequence[Outcome]) -> list[int]:
        """Token ids of a turn's results, from after the model's end token up to where it writes again."""
        texts = [self._shortened(outcome.text) for outcome in outcomes]
        _, called, after = self._render(_asked_and_called(self._result_messages(texts))).partition(_CALLED)
        if not called:
            raise UserError(
                "tools need a chat template that writes what the assistant said as it is, and this one changes it or "
                "leaves it out: give the model another template"
            )
        # Between the answer and the end token a template may write white space, which the model did not write.
        before, end, rest = after.partition(self._end)
        if not end or before.strip():
            return self._encode(after)
        # The results are tokenized after the end token, as in the conversation; the end token itself is left out.
        return self._encode(end + rest)[1:]

    def trace(self, messages: Sequence[Message]) -> tuple[list[int], list[int], list[int]]:
        """An expert's conversation as tokens of this model: the prompt's ids, the ids after it, and who wrote each.

        ``messages`` are in OpenAI's form: the prompt, then turns of the assistant with ``tool_calls``, each followed by
        the ``tool`` messages that answer them, and last the assistant's answer. The writer is ``EXPERT`` for what the
        assistant wrote, end tokens included, and ``TOOL`` for the rest. Raises :class:`UserError` for other messages.
        """
        prompt, steps = read_trace(messages)
        ids: list[int] = []
        writers: list[int] = []
        for step in steps:
            for writer, piece in ((EXPERT, self._turn_ids(step)), (TOOL, self._step_result_ids(step))):
                ids += piece
                writers += [writer] * len(piece)
        return self.prompt_ids(prompt), ids, writers

    def _turn_ids(self, step: Step) -> list[int]:
        return [*self._encode(step.text), self.tokenizer.convert_tokens_to_ids(self._end)]

    def _step_result_ids(self, step: Step) -> list[int]:
        return self.result_ids([Outcome(text) for text in step.results]) if step.results else []

    def _result_messages(self, texts: Sequence[str]) -> list[dict[str, str]]:
        if self._tool_role:
            return [{"role": "tool", "content": text} for text in texts]
        wrapped = "\n".join(f"<tool_response>{text}</tool_response>" for text in texts)
        return [{"role": "user", "content": wrapped}]

    def _shortened(self, text: str) -> str:
        """A result as the model may see it: valid Unicode, without control tokens, at most ``max_tool_tokens`` long.

        A text that is cut ends with the number of characters left out, if that takes only a small part of the room.
        """
        whole = text.encode("utf-8", "replace").decode()
        text = self._control.sub(
            lambda found: f"{found[0][0]} {found[0][1:]}", whole[: _CHARACTERS_PER_TOKEN * self.max_tool_tokens]
        )
        # verbose=False: the text is cut here, so nobody needs the warning that it is longer than the model's context.
        found = tokenized(self.tokenizer, text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in found.offset_mapping]
        if len(text) >= len(whole) and len(ends) <= self.max_tool_tokens:
            return text
        count = min(len(ends), self.max_tool_tokens)
        # A cut can change how the last word is tokenized: shorten until the text fits.
        while True:
            beginning = text[: ends[count - 1] if count else 0]
            cut = beginning + self._cut_note(len(whole) - len(beginning))
            if len(self._encode(cut)) <= self.max_tool_tokens:
                return cut
            count -= 1

    def _cut_note(self, characters: int) -> str:
        note = f"{_CUT} ({characters:,} more characters were cut off)"
        return note if len(self._encode(note)) <= self.max_tool_tokens // 8 else _CUT

    def _template_describes(self, toolbox: Toolbox) -> bool:
        """Whether the template takes ``tools`` and writes their names."""
        if not toolbox.names:
            return False
        question = [{"role": "user", "content": "?"}]
        with_tools = self._render(question, tools=toolbox.schemas)
        return with_tools != self._render(question) and all(name in with_tools for name in toolbox.names)

    def _writes_tool_role(self) -> bool:
        try:
            return _RESULT in self._render(_asked_and_called([{"role": "tool", "content": _RESULT}]))
        except UserError:
            return False

    def _render(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> str:
        try:
            return rendered(self.tokenizer, messages, tools=tools)
        except UserError as error:
            has_system = any(message.get("role") == "system" for message in messages)
            hint = ". For the description of the tools, set instruction: '' and write it into the prompts" * has_system
            raise UserError(f"{error}{hint}") from error

    def _encode(self, text: str) -> list[int]:
        return tokenized(self.tokenizer, text, add_special_tokens=False)["input_ids"]


def _asked_and_called(results: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """A conversation in which the assistant has just called: a question, its turn, and the results."""
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": _CALLED}, *results]


def tools_instruction(schemas: Sequence[Mapping[str, Any]]) -> str:
    """The tools and the form of a call, in few words, for a template that describes none; empty without tools."""
    if not schemas:
        return ""
    form = f'{OPEN}{{"name": ..., "arguments": {{...}}}}{CLOSE}'
    signatures = [_signature(schema["function"]) for schema in schemas]
    return "\n".join([f"To call a tool write {form}", "Tools:", *signatures])


def _signature(function: Mapping[str, Any]) -> str:
    """One line for a tool, as ``search(query: string): Find ... query: words to look for``."""
    properties = function["parameters"]["properties"]
    required = function["parameters"].get("required", [])
    named = [f"{name}{'' if name in required else '?'}: {_type(schema)}" for name, schema in properties.items()]
    about = [f"{name}: {schema['description']}" for name, schema in properties.items() if schema.get("description")]
    text = " ".join([function["description"], "; ".join(about)])
    return f"{function['name']}({', '.join(named)}): {' '.join(text.split())}"


def _type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    kind = schema.get("type", "any")
    return kind if isinstance(kind, str) else " or ".join(kind)
