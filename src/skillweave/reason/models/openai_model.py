"""A model behind any server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from typing import Any
from urllib.parse import urlsplit

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI

from skillweave.errors import UserError, nearest
from skillweave.progress import say_once
from skillweave.reason.models.model import Completion, ModelCall, ModelUnreachable
from skillweave.terminal import one_line

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the key of the server."""
LONGEST_WAIT = 60.0
"""Most seconds between two tries. A server that asks for more is treated as unreachable."""
CHECK_SECONDS = 10.0
"""Most seconds for the check before a run."""
_MOST_TOKENS = 2**40
"""A count of tokens that is not below this is taken for no count."""

_RETRIED = {408, 409, 425, 429}
"""Statuses below 500 after which the same request may succeed later."""
_REFUSES = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra_forbidden|use '", re.I
)
"""How servers say that they do not know a parameter."""


class _Fault(Exception):
    """A try failed, and another one may succeed. ``wait``: the seconds that the server asks for."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class OpenAIModel:
    """A model behind an OpenAI-compatible server.

    - ``url``: up to the version, as in ``http://127.0.0.1:8000/v1``
    - ``name``: the model's name on the server
    - ``api_key``: the key; None takes it from the environment variable ``OPENAI_API_KEY``. Servers on one's own machine
      need none. It is a part of no message and of no file.
    - ``concurrency``: most requests in flight at once, those that wait for their next try included
    - ``timeout``: seconds for one try
    - ``retries``: tries after the first, when the server does not answer, limits the rate, fails or answers garbage
    - ``wait``: seconds before the second try; they double with each try. If the server asks for a longer wait, it
      gets it.
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
        wait: float = 0.5,
    ) -> None:
        self.url = _checked_url(url)
        self.name = name
        self._key = api_key or os.environ.get(KEY_VARIABLE) or ""
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{self.url}: the key holds a line break or a character that no key has: copy it again")
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._retries = retries
        self._wait = wait
        self._refused: set[str] = set()
        # The client needs some key, even for a server that reads none. It does not retry: our loop also retries answers
        # that arrive with the status 200 and hold nothing usable.
        self._client = AsyncOpenAI(base_url=self.url, api_key=self._key or "none", timeout=timeout, max_retries=0)

    @property
    def identity(self) -> str:
        """The URL and the name of the model."""
        return f"{self.url}#{self.name}"

    async def complete(self, call: ModelCall) -> Completion:
        """Answer one call; see :class:`~skillweave.reason.models.model.Model`.

        Raises :class:`UserError` at once for a request that the server refuses, because another try would not help.
        """
        async with self._slots:
            for attempt in range(self._retries + 1):
                try:
                    return await self._try(call)
                except _Fault as fault:
                    latest = fault
                if latest.wait > LONGEST_WAIT:
                    raise ModelUnreachable(
                        f"{self.url}: the server asks to wait {latest.wait:.0f} seconds ({latest}). Start again after "
                        "that."
                    )
                if attempt < self._retries:
                    backoff = min(self._wait * 2**attempt, LONGEST_WAIT) * random.uniform(0.75, 1.0)
                    await asyncio.sleep(max(backoff, latest.wait))
        raise ModelUnreachable(
            f"{self.url}: the model '{self.name}' gave no usable answer in {self._retries + 1} tries; at the last one, "
            f"{latest}. Start again when the server works."
        )

    async def check(self) -> None:
        """Ask the server for its models, so that a wrong address or key fails before a long run.

        Raises :class:`UserError`. A server that lists no models is accepted, with a note.
        """
        try:
            names = await self._listed_models()
        except APIStatusError as error:
            if error.status_code not in (404, 405):
                raise self._refusal(error) from error
            if not re.search(r"/v\d", self.url):
                raise UserError(
                    f"{self.url}: the server has no list of models there. Most servers want an address that ends with "
                    f"/v1: try {self.url}/v1"
                ) from error
            say_once(f"{self.url}: the server does not list its models, so '{self.name}' is not checked")
            return
        except (APIError, TimeoutError) as error:
            raise ModelUnreachable(
                f"{self.url}: no server answers there: {self._connection(error)}. Start the server, or correct the "
                "address."
            ) from error
        except ValueError as error:
            raise UserError(
                f"{self.url}: a server answers, but not with a list of models ({error}): is this the address of an "
                "OpenAI-compatible API? It usually ends with /v1"
            ) from error
        if names and self.name not in names:
            raise self._unknown_model(names)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _try(self, call: ModelCall) -> Completion:
        """One try. Raises :class:`_Fault` if another one may succeed."""
        while True:
            values = self._values(call)
            try:
                async with asyncio.timeout(self._timeout):
                    response = await self._client.chat.completions.with_raw_response.create(**values)
                return self._read(call, response.text)
            except APIStatusError as error:
                if error.status_code == 429 and error.code == "insufficient_quota":
                    raise ModelUnreachable(
                        f"{self.url}: the quota of this key is used up: {self._said(error)}"
                    ) from error
                if error.status_code in _RETRIED or error.status_code >= 500:
                    raise _Fault(self._said(error), _retry_after(error)) from error
                if not self._gives_up_a_parameter(error, values):
                    raise await self._explained(error) from error
            except (APIError, TimeoutError) as error:
                raise _Fault(self._connection(error)) from error

    def _values(self, call: ModelCall) -> dict[str, Any]:
        """The parameters of a request, without those that the server refused."""
        values = {
            "model": self.name,
            "messages": [{"role": role, "content": _whole_characters(content)} for role, content in call.messages],
            "temperature": call.temperature,
            "seed": call.seed,
            "max_tokens": call.max_tokens,
        }
        if "max_tokens" in self._refused:
            values["max_completion_tokens"] = values["max_tokens"]
        return {key: value for key, value in values.items() if key not in self._refused}

    def _gives_up_a_parameter(self, error: APIStatusError, values: dict[str, Any]) -> bool:
        """Whether the server refuses a parameter of the request that it can do without; this is said once."""
        said = self._said(error)
        if error.status_code not in (400, 422) or not _REFUSES.search(said):
            return False
        instead = {
            "max_tokens": "max_completion_tokens is sent in its place",
            "seed": "the draws of this model cannot be repeated, but the cache still keeps its answers",
            "temperature": "the server's own temperature is used",
        }
        for name, what in instead.items():
            if name in values and (error.param == name or re.search(rf"\b{name}\b", said)):
                self._refused.add(name)
                say_once(f"{self.url}: the model '{self.name}' does not take {name}: {what}")
                return True
        return False

    def _read(self, call: ModelCall, body: str) -> Completion:
        """The completion in the body of an answer. Raises :class:`_Fault` if there is none."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise _Fault(f"its answer was not JSON: {self._shown(body)}") from None
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise _Fault(f"its answer held no choice: {self._shown(body)}")
        ended = choice.get("finish_reason")
        text = message.get("content")
        if text is None:
            # An equal request may well give the same again, so this is an answer that was paid for, and no fault.
            say_once(
                f"{self.url}: '{self.name}' gave {self._no_text(call, message, ended)}; it counts as an empty answer"
            )
            text = ""
        if not isinstance(text, str):
            raise _Fault(f"its answer held no text (content is {self._shown(json.dumps(text))})")
        text = _whole_characters(text)
        prompt_tokens, completion_tokens = self._usage(answer.get("usage"), call, text)
        return Completion(text, "length" if ended == "length" else "stop", prompt_tokens, completion_tokens)

    def _no_text(self, call: ModelCall, message: dict[str, Any], ended: Any) -> str:
        """What a server sent in the place of a text, and what to do."""
        if ended == "length":
            return f"an answer whose {call.max_tokens} tokens were all used for its thoughts (raise max_tokens)"
        if message.get("reasoning_content") or message.get("reasoning"):
            return "an answer with only thoughts and no text"
        return f"an answer without a text (it ended with {self._shown(json.dumps(ended))})"

    def _usage(self, usage: Any, call: ModelCall, text: str) -> tuple[int, int]:
        """The tokens of prompt and completion; a quarter of the characters if the server does not count them."""
        counts = [
            usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        if all(type(count) is int and 0 <= count < _MOST_TOKENS for count in counts):
            return counts[0], counts[1]  # type: ignore[return-value]
        say_once(f"{self.url}: the server does not count tokens, so they are estimated: one for four characters")
        return -(-sum(len(content) for _, content in call.messages) // 4), -(-len(text) // 4)

    async def _explained(self, error: APIStatusError) -> UserError:
        """The error for a request that the server refuses, with the models that it has if it does not know ours."""
        if error.status_code != 404:
            return self._refusal(error)
        try:
            names = await self._listed_models()
        except (APIError, TimeoutError, ValueError):
            return UserError(
                f"{self.url}: there is nothing at this address ({self._said(error)}). It usually ends with /v1; or the "
                f"server has no model '{self.name}'."
            )
        if self.name in names:
            return UserError(
                f"{self.url}: the server has the model '{self.name}', but it does not answer chats there "
                f"({self._said(error)}). Choose a model for chats, or correct the address."
            )
        return self._unknown_model(names)

    def _unknown_model(self, names: list[str]) -> UserError:
        return UserError(f"{self.url}: the server does not know the model '{self.name}'; {nearest(self.name, names)}")

    def _refusal(self, error: APIStatusError) -> UserError:
        status, said = error.status_code, self._said(error)
        if status in (401, 403):
            key = "refuses the key" if self._key else "wants a key, and none is given"
            return UserError(f"{self.url}: the server {key} ({said}). Set {KEY_VARIABLE} to a key that it accepts.")
        if status in _RETRIED or status >= 500:
            return ModelUnreachable(f"{self.url}: the server does not work now ({said}). Start again later.")
        return UserError(
            f"{self.url}: the server refuses a request to '{self.name}' ({said}). Change the settings that it "
            "names, or use another model."
        )

    async def _listed_models(self) -> list[str]:
        """The names of the server's models. Raises the client's errors, and ``ValueError`` for another answer."""
        async with asyncio.timeout(min(self._timeout, CHECK_SECONDS)):
            response = await self._client.models.with_raw_response.list()
        try:
            listed = json.loads(response.text)["data"]
            return [str(model["id"]) for model in listed]
        except (ValueError, TypeError, LookupError, RecursionError):
            raise ValueError(self._shown(response.text)) from None

    def _said(self, error: APIStatusError) -> str:
        """The status and the message of a server."""
        body = error.body
        message = body.get("message") or body.get("detail") or body if isinstance(body, dict) else body
        return f"status {error.status_code}: {self._shown(str(message or error.message))}"

    def _connection(self, error: Exception) -> str:
        """Why there was no answer."""
        if isinstance(error, APITimeoutError | TimeoutError):
            return f"it did not answer within {self._timeout:g} seconds"
        cause = error.__cause__ if isinstance(error, APIConnectionError) else error
        return f"the connection failed ({self._shown(str(cause or error) or type(cause).__name__)})"

    def _shown(self, text: str) -> str:
        """A text of the server for a message, on one line; the key is removed, in case the server repeats it."""
        return one_line(text.replace(self._key, "***") if self._key else text)


def _checked_url(url: str) -> str:
    """The address without a slash at its end. Raises :class:`UserError`, also for one that holds a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{one_line(url)} is not the address of a server: write it as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"{parts.scheme}://{parts.hostname}: write the address without a password and without '?' and '#', because "
            f"it is shown and stored; set {KEY_VARIABLE} to the key"
        )
    return url.rstrip("/")


def _whole_characters(text: str) -> str:
    """The text with a question mark for each half of a character: JSON can hold one, but no file or request can."""
    return text.encode("utf-8", "replace").decode()


def _retry_after(error: APIStatusError) -> float:
    """The seconds that a server asks to wait; 0 if it names none."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(error.response.headers.get(name, "")) / unit
        except ValueError:  # missing, or a date
            continue
        if seconds >= 0:
            return seconds
    return 0.0
