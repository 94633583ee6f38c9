"""What clients ask for: the parameters of the three routes, checked, and what the engine makes of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from skillweave.base import Sampling
from skillweave.errors import shown_value
from skillweave.serve.errors import invalid
from skillweave.serve.openai.parameters import ApiModel, only_keys, text_of_content, unsupported
from skillweave.serve.service import RequestLimits

DEFAULT_COMPLETION = 16
"""Tokens of a completion whose client says nothing, as OpenAI documents it."""
_MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal", "annotations"}
_STOP_LENGTH = 1000


@dataclass(frozen=True)
class Wanted:
    """What the engine is asked for: ``sampling`` of the first answer, and the rest of its arguments."""

    sampling: Sampling
    stop: tuple[str, ...]
    logprobs: int | None
    n: int = 1


class StreamOptions(ApiModel):
    """What a stream tells beside its text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Sampled(ApiModel):
    """The parameters that all routes have."""

    model: str = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] = Field(default_factory=list)

    def _wanted(
        self, limits: RequestLimits, most: tuple[str, int | None], default: int, logprobs: int | None, n: int
    ) -> Wanted:
        """Return what the engine is asked for; ``most`` is the parameter for the longest answer, and its value."""
        name, tokens = most
        if "stream_options" in self.model_fields_set and not self.stream:
            raise invalid("stream_options", "it needs stream: true")
        if tokens is not None and tokens > limits.max_tokens:
            raise invalid(name, f"{tokens} is more than this server writes, which is {limits.max_tokens}")
        if n > limits.max_n:
            raise invalid("n", f"{n} is more than the {limits.max_n} answers that one prompt may have")
        if logprobs is not None and logprobs > limits.max_logprobs:
            raise invalid("top_logprobs", f"{logprobs} is more than {limits.max_logprobs}")
        sampling = Sampling(
            max_new_tokens=min(default, limits.max_tokens) if tokens is None else tokens,
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            seed=secrets.randbits(62) if self.seed is None else self.seed,
        )
        return Wanted(sampling, self._stops(limits), logprobs, n)

    def _stops(self, limits: RequestLimits) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if len(stops) > limits.max_stop:
            raise invalid("stop", f"there are {len(stops)} texts, and the most is {limits.max_stop}")
        if any(not text for text in stops):
            raise invalid("stop", "an empty text would end every answer at once")
        if any(len(text) > _STOP_LENGTH for text in stops):
            raise invalid("stop", f"a text is longer than {_STOP_LENGTH} characters")
        return stops


class ChatRequest(_Sampled):
    """A request for chat completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    response_format: dict[str, Any] | None = None
    tools: list[Any] = Field(default_factory=list)
    tool_choice: Any = None
    parallel_tool_calls: bool = True

    def wanted(self, limits: RequestLimits) -> Wanted:
        """Return what the engine is asked for. Raises :class:`ApiError` for more than the limits allow."""
        most = ("max_completion_tokens", self.max_completion_tokens)
        if self.max_completion_tokens is None:
            most = ("max_tokens", self.max_tokens)
        elif self.max_tokens not in (None, self.max_completion_tokens):
            raise invalid("max_tokens", "it says something else than max_completion_tokens: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "it needs logprobs: true")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._wanted(limits, most, limits.default_max_tokens, logprobs, self.n)

    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages, whose contents are texts. Raises :class:`ApiError`."""
        return checked_messages([_message(message, f"messages.{at}") for at, message in enumerate(self.messages)])


class CompletionRequest(_Sampled):
    """A request for completions."""

    prompt: str | list[Any]
    max_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1)
    best_of: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0)

    def wanted(self, limits: RequestLimits) -> Wanted:
        """Return what the engine is asked for. Raises :class:`ApiError` for more than the limits allow."""
        if self.best_of is not None and self.best_of != self.n:
            raise unsupported(
                "best_of", f"answers are not chosen by their likelihood: leave it out, or give n ({self.n})"
            )
        return self._wanted(limits, ("max_tokens", self.max_tokens), DEFAULT_COMPLETION, self.logprobs, self.n)

    def prompts(self, limits: RequestLimits) -> list[str | list[int]]:
        """Return the prompts: texts, or lists of token ids. Raises :class:`ApiError`."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(_is_id(one) for one in given):
            return [list(given)]
        if not given:
            raise invalid("prompt", "it is empty")
        if _is_id(given[0]):  # one prompt of ids, or what was meant as one
            at = next(at for at, one in enumerate(given) if not _is_id(one))
            raise invalid(f"prompt.{at}", f"expected a token id, not {shown_value(given[at])}", "invalid_type")
        if len(given) > limits.max_prompts:
            raise invalid("prompt", f"there are {len(given)} prompts, and the most is {limits.max_prompts}")
        for at, one in enumerate(given):
            if not isinstance(one, str) and not (isinstance(one, list) and one and all(map(_is_id, one))):
                raise invalid(f"prompt.{at}", f"expected a text or token ids, not {shown_value(one)}", "invalid_type")
        return list(given)


class ResponsesRequest(_Sampled):
    """A request for responses."""

    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0)
    include: list[str] = Field(default_factory=list)
    text: dict[str, Any] = Field(default_factory=dict)
    tools: list[Any] = Field(default_factory=list)
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    metadata: dict[str, str] | None = None
    user: str | None = None

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return self.top_logprobs is not None or "message.output_text.logprobs" in self.include

    def wanted(self, limits: RequestLimits) -> Wanted:
        """Return what the engine is asked for. Raises :class:`ApiError` for more than the limits allow."""
        for name in self.include:
            # There are no thoughts of their own kind to be included, so asking for them changes nothing.
            if name not in ("message.output_text.logprobs", "reasoning.encrypted_content"):
                raise unsupported("include", f"{shown_value(name)} is not known here")
        logprobs = (self.top_logprobs or 0) if self.with_logprobs else None
        return self._wanted(
            limits, ("max_output_tokens", self.max_output_tokens), limits.default_max_tokens, logprobs, 1
        )

    def conversation(self) -> list[dict[str, Any]]:
        """Return the instructions and the input as messages for chat. Raises :class:`ApiError`."""
        messages = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        if not self.input:
            raise invalid("input", "it is empty")
        for at, item in enumerate(self.input):
            _add_item(messages, item, f"input.{at}")
        return checked_messages(messages, "input")

    def format(self) -> Mapping[str, Any] | None:
        """Return the form of the text. Raises :class:`ApiError`."""
        given = only_keys(self.text, {"format", "verbosity"}, "text")
        if given.get("verbosity", "medium") != "medium":
            raise unsupported("text.verbosity", "how much the model writes cannot be set: ask for it in the input")
        return given.get("format")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a message for chat whose content is a text."""
    given = only_keys(
        # Clients send answers back as they came, with empty values for what did not come.
        {key: value for key, value in message.items() if value != []}, _MESSAGE_KEYS, where
    )  # fmt: skip
    role = given.get("role")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        hint = (
            "'function' is the old name of 'tool'" if role == "function" else "expected system, user, assistant or tool"
        )
        raise invalid(f"{where}.role", f"{shown_value(role)}: {hint}")
    if "annotations" in given:
        raise unsupported(f"{where}.annotations", "annotations cannot be shown to the model: leave them out")
    read: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = given.get("content", given.get("refusal"))
    if content is None and not (role == "assistant" and given.get("tool_calls")):
        raise invalid(f"{where}.content", "this parameter is required", "missing_required_parameter")
    read["content"] = "" if content is None else text_of_content(content, f"{where}.content")
    for key in ("name", "tool_call_id", "reasoning_content"):
        if key in given:
            if not isinstance(given[key], str):
                raise invalid(f"{where}.{key}", "expected a text", "invalid_type")
            read[key] = given[key]
    if "tool_calls" in given:
        if role != "assistant" or not isinstance(given["tool_calls"], list):
            raise invalid(f"{where}.tool_calls", "only the assistant has them, as a list")
        read["tool_calls"] = [_call(one, f"{where}.tool_calls.{at}") for at, one in enumerate(given["tool_calls"])]
    if role == "tool" and "tool_call_id" not in read:
        raise invalid(f"{where}.tool_call_id", "this parameter is required", "missing_required_parameter")
    return read


def _call(call: Any, where: str) -> dict[str, Any]:
    given = only_keys(call, {"id", "type", "function", "index"}, where)
    if given.get("type", "function") != "function":
        raise unsupported(f"{where}.type", f"expected 'function', not {shown_value(given['type'])}")
    function = only_keys(given.get("function"), {"name", "arguments"}, f"{where}.function")
    name, arguments = function.get("name"), function.get("arguments", "{}")
    if not all(isinstance(text, str) for text in (name, arguments, given.get("id"))):
        raise invalid(where, "expected an id, a name, and arguments as a JSON text", "invalid_type")
    return _called(given["id"], str(name), arguments)


def _called(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _add_item(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    """Add an item of an input for responses to the messages for chat."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message":
        keys = {"type", "role", "content", "id", "status", "phase"}
        given = only_keys(item, keys, where)
        messages.append(_message({key: given.get(key) for key in ("role", "content")}, where))
    elif kind == "function_call":
        given = only_keys(item, {"type", "id", "call_id", "name", "arguments", "status"}, where)
        if not all(isinstance(given.get(key), str) for key in ("call_id", "name", "arguments")):
            raise invalid(where, "expected call_id, name and arguments as texts", "invalid_type")
        call = _called(given["call_id"], given["name"], given["arguments"])
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    elif kind == "function_call_output":
        given = only_keys(item, {"type", "id", "call_id", "output", "status"}, where)
        if not isinstance(given.get("call_id"), str) or "output" not in given:
            raise invalid(where, "expected call_id and output", "missing_required_parameter")
        text = text_of_content(given["output"], f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": given["call_id"], "content": text})
    else:
        raise invalid(
            f"{where}.type",
            f"expected message, function_call or function_call_output, not {shown_value(kind)}: other items cannot be "
            "read, and none are stored",
            "unsupported_content",
        )


def checked_messages(messages: list[dict[str, Any]], where: str = "messages") -> list[dict[str, Any]]:
    """Return messages in which each result of a tool answers a call, and knows its tool's name.

    Raises :class:`ApiError` for a result whose call is not there.
    """
    names: dict[str, str] = {}
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool":
            if message["tool_call_id"] not in names:
                shown = shown_value(message["tool_call_id"])
                raise invalid(
                    where, f"a result answers the call {shown}, but no message of the assistant has that call"
                )
            message.setdefault("name", names[message["tool_call_id"]])
    return messages
