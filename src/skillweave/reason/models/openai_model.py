"""A model behind a server with OpenAI's API, asked by the official client."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal
from urllib.parse import urlsplit

import openai

from skillweave.errors import UserError, nearest
from skillweave.progress import say_once
from skillweave.reason.models.model import Completion, ModelCall, ModelUnreachable

_KEY = "OPENAI_API_KEY"
_NO_KEY = "none"  # the client wants a key, and local servers need none
_CHARACTERS_PER_TOKEN = 4
FIRST_WAIT = 0.5
"""Seconds before an answer that could not be read is asked for again; each further wait is twice as long."""


class OpenAIModel:
    """Answers calls with the chat completions of a server.

    - ``url``: up to ``/v1``; ``name``: the model that the server is to use
    - ``api_key``: None: the environment variable OPENAI_API_KEY, or none
    - ``concurrency``: the most requests at the same time
    - ``timeout``: seconds for one request; ``retries``: how often it is sent again

    The client itself retries time-outs, lost connections and the status 408, 409, 429 and 5xx, with backoff and as the
    server's Retry-After asks. An answer that cannot be read is asked for again in the same number of tries.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self._url, self._name, self._retries = url.rstrip("/"), name, retries
        self._places = asyncio.Semaphore(concurrency)
        self._limit_key = "max_tokens"
        self._takes_seed = True
        try:
            self._client = openai.AsyncOpenAI(
                base_url=self._url,
                api_key=api_key or os.environ.get(_KEY) or _NO_KEY,
                timeout=timeout,
                max_retries=retries,
            )
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise UserError(
                f"{self._shown}: this is no URL of a server ({error}): write http://HOST:PORT/v1"
            ) from error

    @property
    def identity(self) -> str:
        """The server without credentials, and the model's name."""
        return f"{self._shown}#{self._name}"

    @property
    def _shown(self) -> str:
        """The URL without user, password and query."""
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"

    async def check(self) -> None:
        """Ask the server for its models. Raises :class:`UserError` if it is not there or does not know this one.

        A server that has no such list is accepted.
        """
        try:
            listed = await self._client.with_options(max_retries=1).models.list()
            names = [model.id for model in listed.data]
        except (openai.NotFoundError, openai.UnprocessableEntityError):
            return
        except openai.APIStatusError as error:
            if error.status_code == 405:
                return
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            raise UserError(
                f"no server answers at {self._shown} ({_cause(error)}): check the URL, and that the server runs"
            ) from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError):
            return  # it lists its models in another form
        if names and self._name not in names:
            raise UserError(f"{self._shown} has no model '{self._name}'; {nearest(self._name, names)}")

    async def complete(self, call: ModelCall) -> Completion:
        """The completion of a call. Raises :class:`ModelUnreachable` or, for a refused request, :class:`UserError`."""
        why = ""
        async with self._places:
            for attempt in range(self._retries + 1):
                if attempt:
                    await asyncio.sleep(min(8.0, FIRST_WAIT * 2 ** (attempt - 1)))
                try:
                    response = await self._ask(call)
                    return self._read(response, call)
                except openai.APIStatusError as error:
                    if error.status_code < 500 and error.status_code not in (408, 409, 429):
                        raise self._refused(error) from error
                    raise self._gave_up(f"status {error.status_code}") from error
                except openai.APIConnectionError as error:
                    raise self._gave_up(_cause(error)) from error
                except (openai.OpenAIError, _Broken, ValueError, TypeError, AttributeError) as error:
                    why = f"its answer cannot be read: {str(error)[:200] or type(error).__name__}"
        raise self._gave_up(why)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, call: ModelCall) -> Any:
        """One request; a server that does not know one of our parameters is asked again without it."""
        messages: Any = [{"role": role, "content": content} for role, content in call.messages]
        while True:
            more: dict[str, Any] = {self._limit_key: call.max_tokens}
            if self._takes_seed:
                more["seed"] = call.seed
            try:
                return await self._client.chat.completions.create(
                    model=self._name, messages=messages, temperature=call.temperature, **more
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                told = str(error)
                if "max_completion_tokens" in told and "max_tokens" in more:
                    self._limit_key = "max_completion_tokens"
                elif "seed" in told and "seed" in more:
                    self._takes_seed = False
                    say_once(f"{self._shown} takes no seed: a run there cannot be repeated without its cache")
                else:
                    raise

    def _read(self, response: Any, call: ModelCall) -> Completion:
        """The completion in a response. Raises :class:`_Broken` for a response without one."""
        if not getattr(response, "choices", None):
            raise _Broken("it holds no choices")
        choice = response.choices[0]
        if getattr(choice, "message", None) is None:
            raise _Broken("its choice holds no message")
        text = choice.message.content
        if text is not None and not isinstance(text, str):
            raise _Broken("its content is no text")
        ended: Literal["stop", "length"] = "length" if choice.finish_reason == "length" else "stop"
        usage = getattr(response, "usage", None)
        if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            say_once(
                f"{self._shown} does not say how many tokens it used: they are estimated as characters / "
                f"{_CHARACTERS_PER_TOKEN}"
            )
            sent = sum(len(content) for _, content in call.messages)
            return Completion(text or "", ended, _estimate(sent), _estimate(len(text or "")))
        return Completion(text or "", ended, int(usage.prompt_tokens), int(usage.completion_tokens))

    def _refused(self, error: openai.APIStatusError) -> UserError:
        """The error for a request that is refused however often it is sent."""
        if error.status_code in (401, 403):
            return UserError(f"{self._shown} refuses the key (status {error.status_code}): set {_KEY} to a valid key")
        if error.status_code == 404:
            return UserError(
                f"{self._shown} does not know the model '{self._name}' or this URL (status 404): check both; the URL "
                f"usually ends with /v1"
            )
        told = str(getattr(error, "message", error))[:300]
        return UserError(f"{self._shown} refuses the request (status {error.status_code}): {told}")

    def _gave_up(self, why: str) -> ModelUnreachable:
        tries = self._retries + 1
        return ModelUnreachable(f"{self._shown} gave no answer in {tries} tries: {why}")


class _Broken(Exception):
    """A response of status 200 that holds no answer."""


def _cause(error: openai.APIConnectionError) -> str:
    """What went wrong with a connection."""
    if isinstance(error, openai.APITimeoutError):
        return "it did not answer in time"
    return str(error.__cause__ or error)[:200]


def _estimate(characters: int) -> int:
    return -(-characters // _CHARACTERS_PER_TOKEN)
