"""What is sent to a vLLM server and what comes back. Its failures become the errors of engines."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from skillweave.base import Sampling
from skillweave.engine.interface import AnswerToken, EngineBusy
from skillweave.errors import UserError, shown_value

_TOKEN = "token_id:"


class ServerFailed(Exception):
    """A vLLM server is gone or broken; another one may answer."""


class AdapterMissing(Exception):
    """A vLLM server does not have the adapter; perhaps it was started again."""


@dataclass(frozen=True)
class StreamEvent:
    """One event of a stream: new tokens (with the end token), and the reason of the end if there is one."""

    tokens: tuple[AnswerToken, ...]
    finish: str | None


def completion(
    model: str, ids: Sequence[int], room: int, sampling: Sampling, stops: Sequence[int], logprobs: int | None
) -> dict[str, Any]:
    """Return the body of a streamed request. It leaves nothing to vLLM's defaults that would choose other tokens."""
    return {
        "model": model,
        "prompt": list(ids),
        "max_tokens": room,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p or 1e-6,  # vLLM takes no 0, which means the likeliest token alone
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": (sampling.seed + 2**63) % 2**64 - 2**63,
        "logprobs": logprobs,
        "stop_token_ids": list(stops),
        "ignore_eos": True,  # the pack's end tokens count, not the base's
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


async def stream(client: httpx2.AsyncClient, url: str, body: dict[str, Any]) -> AsyncGenerator[StreamEvent, None]:
    """Yield the events of a streamed completion. Closing the iterator closes the connection, and vLLM gives it up.

    Raises :class:`ServerFailed`, :class:`AdapterMissing`, :class:`EngineBusy`, or :class:`UserError` for a request that
    vLLM refuses.
    """
    ended = False
    try:
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                check(response, url)
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                text = line.removeprefix("data:").strip()
                if text == "[DONE]":
                    break
                piece = read_piece(text, body["logprobs"], url)
                ended = ended or piece.finish is not None
                yield piece
    except httpx2.HTTPError as error:
        raise ServerFailed(f"{url}: {type(error).__name__}: {error}") from error
    if not ended:
        raise ServerFailed(f"{url}: the stream ended before the answer did")


def read_piece(text: str, logprobs: int | None, url: str) -> StreamEvent:
    """Return one event of a stream.

    Raises :class:`ServerFailed` for an error that vLLM reports in the stream, and :class:`UserError` for an event
    without token ids, which an older vLLM sends.
    """
    try:
        values = json.loads(text)
        if "error" in values:
            raise ServerFailed(f"{url}: {_message(values)}")
        if not values["choices"]:
            return StreamEvent((), None)
        choice = values["choices"][0]
        ids, given = choice.get("token_ids"), choice.get("logprobs") or {}
        if ids is None:
            raise UserError(f"the vLLM server at {url} sends no token ids: use vLLM 0.11 or newer")
        tokens = tuple(_token(given, at, token, logprobs) for at, token in enumerate(ids))
        return StreamEvent(tokens, choice.get("finish_reason"))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ServerFailed(f"{url}: an event that is none of vLLM's: {shown_value(text)}") from error


def _token(given: dict[str, Any], at: int, token: int, logprobs: int | None) -> AnswerToken:
    if logprobs is None:
        return AnswerToken(token)
    ranked = sorted(given["top_logprobs"][at].items(), key=lambda one: -one[1])
    top = tuple((int(name.removeprefix(_TOKEN)), value) for name, value in ranked[:logprobs])
    return AnswerToken(token, given["token_logprobs"][at], top)


async def call(client: httpx2.AsyncClient, method: str, url: str, path: str, body: Any = None) -> Any:
    """Return what a vLLM server answers to a short request: JSON or text. Raises the errors of :func:`stream`."""
    try:
        response = await client.request(method, f"{url}{path}", json=body)
    except httpx2.HTTPError as error:
        raise ServerFailed(f"{url}: {type(error).__name__}: {error}") from error
    check(response, url)
    try:
        return response.json()
    except ValueError:
        return response.text


def check(response: httpx2.Response, url: str) -> None:
    """Raise the error that a response of vLLM means, if it is one."""
    if response.status_code < 400:
        return
    try:
        said = _message(response.json())
    except ValueError:
        said = response.text.strip()
    said = shown_value(said) if len(said) > 500 else said
    if response.status_code in (429, 503):
        after = response.headers.get("retry-after", "")
        raise EngineBusy(
            f"the vLLM server at {url} takes no more requests: {said}", float(after) if after.isdigit() else 1.0
        )
    if response.status_code >= 500:
        raise ServerFailed(f"{url}: {response.status_code} {said}")
    if response.status_code == 404:
        raise AdapterMissing(f"{url}: {said or 'not found'}")
    if response.status_code in (401, 403):
        raise UserError(
            f"the vLLM server at {url} refuses the key ({response.status_code}): give the key that it was started with"
        )
    raise UserError(f"the vLLM server at {url} refuses the request ({response.status_code}): {said}")


def _message(values: Any) -> str:
    error = values.get("error", values) if isinstance(values, dict) else values
    return str(error.get("message", error) if isinstance(error, dict) else error)
