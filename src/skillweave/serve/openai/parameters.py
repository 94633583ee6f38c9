"""Read the body of a request: parameters that are honoured, accepted, refused or unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect, Request

from skillweave.errors import nearest, shown_value
from skillweave.serve.body import json_of
from skillweave.serve.errors import ApiError, api_error, invalid, unsupported

ACCEPTED = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"}
)
"""Parameters that name the client or tune OpenAI's own machines. They change no answer here."""

_SAMPLING: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": ((0, 0.0), "penalties are not supported: leave it out, or give 0"),
    "presence_penalty": ((0, 0.0), "penalties are not supported: leave it out, or give 0"),
    "logit_bias": (({},), "biases on tokens are not supported: leave it out"),
}
_CHAT: dict[str, tuple[tuple[Any, ...], str]] = {
    **_SAMPLING,
    "audio": ((), "only text can be written"),
    "modalities": ((["text"],), "only text can be written: give ['text']"),
    "prediction": ((), "predicted outputs are not supported: leave it out"),
    "web_search_options": ((), "the server does not search the web: give a tool that does"),
    "functions": (([],), "this is the old form: use tools"),
    "function_call": ((), "this is the old form: use tool_choice"),
    "reasoning_effort": ((), "how long the model thinks cannot be set: leave it out"),
    "verbosity": (("medium",), "how much the model writes cannot be set: ask for it in the prompt"),
    "store": ((False,), "nothing is stored: leave it out, or give false"),
    "moderation": ((), "the server does not moderate: leave it out"),
    "prompt_cache_options": ((), "caching of prompts cannot be set: leave it out"),
}
_COMPLETIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    **_SAMPLING,
    "echo": ((False,), "the prompt is not repeated in the answer: put it before the answer yourself"),
    "suffix": (("",), "text that comes after the answer cannot be given: the model writes forwards only"),
}
_RESPONSES: dict[str, tuple[tuple[Any, ...], str]] = {
    **_SAMPLING,
    "store": ((False,), "no response is stored: leave it out, or give false"),
    "previous_response_id": ((), "no response is stored: send the whole conversation as input"),
    "conversation": ((), "no conversation is stored: send the whole conversation as input"),
    "background": ((False,), "answers are not written in the background: leave it out, or use stream"),
    "background_options": ((), "answers are not written in the background: leave it out"),
    "prompt": ((), "no prompt templates are stored: send input"),
    "max_tool_calls": ((), "the server runs no tools of its own, so it cannot count their calls: leave it out"),
    "truncation": (("disabled",), "an input that is too long is refused and not shortened: leave it out"),
    "reasoning": (({},), "how long the model thinks cannot be set: leave it out"),
    "context_management": (([],), "the input is never shortened: leave it out"),
    "moderation": ((), "the server does not moderate: leave it out"),
    "prompt_cache_options": ((), "caching of prompts cannot be set: leave it out"),
    "access_programs": ((), "there are no such programs here: leave it out"),
    "image": ((), "only text can be read and written: leave it out"),
    "n": ((1,), "this route writes one answer: use chat completions for several"),
}
REFUSED = {"chat": _CHAT, "completions": _COMPLETIONS, "responses": _RESPONSES}
"""For each route the parameters that are not honoured, the values that ask for nothing (null is always one), and what
to do instead."""


class ApiModel(BaseModel):
    """A part of a request. A bool is no number, a number no text, and no number is NaN or infinite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, extra="ignore")


M = TypeVar("M", bound=ApiModel)


async def read_request(request: Request, model: type[M], route: str) -> M:
    """Return the body of a request. Raises :class:`ApiError` for one that is not valid, or asks for too much."""
    body = await json_of(request)
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, not {shown_value(body)}", code="invalid_json")
    check_parameters(body, model, REFUSED[route])
    return parsed(model, {name: value for name, value in body.items() if value is not None})


def parsed(model: type[M], values: Mapping[str, Any], where: str = "") -> M:
    """Return a part of a request; ``where`` is its place. Raises :class:`ApiError`."""
    try:
        return model.model_validate(values)
    except ValueError as error:
        told = api_error(error)
        if where:
            told = invalid(f"{where}.{told.param}" if told.param else where, told.message.split(": ", 1)[-1], told.code)
        raise told from None


def check_parameters(
    body: Mapping[str, Any], model: type[ApiModel], refused: Mapping[str, tuple[tuple[Any, ...], str]]
) -> None:
    """Raise :class:`ApiError` for a parameter that is unknown, or that cannot be honoured."""
    for name, value in body.items():
        if name in model.model_fields or name in ACCEPTED:
            continue
        if name not in refused:
            hint = nearest(name, {*model.model_fields, *ACCEPTED})
            raise invalid(name[:100], f"this parameter is unknown; {hint}", "unknown_parameter")
        harmless, what_to_do = refused[name]
        if value is not None and not any(value == one and type(value) is type(one) for one in harmless):
            raise unsupported(name, what_to_do)


def only_keys(value: Any, known: set[str], where: str) -> dict[str, Any]:
    """Return an object without its keys of null. Raises :class:`ApiError` for another value or an unknown key."""
    if not isinstance(value, dict):
        raise invalid(where, f"expected an object, not {shown_value(value)}", "invalid_type")
    given = {key: one for key, one in value.items() if one is not None}
    if unknown := [key for key in given if key not in known]:
        raise invalid(
            f"{where}.{unknown[0][:100]}", f"this key is unknown; {nearest(unknown[0], known)}", "unknown_parameter"
        )
    return given


def text_of_content(content: Any, where: str) -> str:
    """Return a content as one text: a text, or a list of text parts, which are joined by line feeds.

    Raises :class:`ApiError` for images, audio and files.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, f"expected a text or a list of text parts, not {shown_value(content)}", "invalid_type")
    texts = []
    for at, part in enumerate(content):
        place = f"{where}.{at}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
            continue
        if kind not in ("text", "input_text", "output_text"):
            raise invalid(
                place,
                f"only text can be read, and this is a part of the type {shown_value(kind)}",
                "unsupported_content",
            )
        if not isinstance(part.get("text"), str):
            raise invalid(f"{place}.text", f"expected a text, not {shown_value(part.get('text'))}", "invalid_type")
        texts.append(part["text"])
    return "\n".join(texts)


async def until_disconnected(request: Request) -> None:
    """Return when the client of a request, whose body was read, is gone."""
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except (ClientDisconnect, OSError):
        return
