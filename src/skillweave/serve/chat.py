"""A conversation with any OpenAI-compatible server, for `skillweave chat`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, OpenAI
from openai.types.chat import ChatCompletionChunk

from skillweave.errors import UserError, nearest


@dataclass(frozen=True)
class ShownRoute:
    """Which pack answered, as the server tells it; ``confidence`` is None if no router chose."""

    pack: str
    confidence: float | None


@dataclass
class ChatSession:
    """The turns so far, and the model that answers next.

    - ``system``: the text that stands before the first turn; empty: none
    - ``route``: who gave the latest answer, if the server tells it
    """

    client: OpenAI
    models: list[str]
    model: str
    system: str = ""
    max_tokens: int | None = None
    temperature: float = 0.0
    turns: list[dict[str, str]] = field(default_factory=list)
    route: ShownRoute | None = None

    def choose(self, name: str) -> None:
        """Let another model answer from now. Raises :class:`UserError` for one that the server does not have."""
        if self.models and name not in self.models:
            raise UserError(f"the server has no model '{name}'; {nearest(name, self.models)}")
        self.model = name

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer to a message piece by piece. What was read of it becomes a turn, also if the reader stops.

        A message without any answer is no turn. Raises :class:`UserError` if the server refuses or fails.
        """
        pieces: list[str] = []
        self.route = None
        try:
            for piece in self._stream(text):
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(pieces)}]

    def _stream(self, text: str) -> Iterator[str]:
        messages: list[Any] = [{"role": "system", "content": self.system}] if self.system else []
        messages += [*self.turns, {"role": "user", "content": text}]
        more: dict[str, Any] = {"temperature": self.temperature}
        if self.max_tokens is not None:
            more["max_tokens"] = self.max_tokens
        try:
            stream = self.client.chat.completions.create(model=self.model, messages=messages, stream=True, **more)
            with stream:
                for chunk in stream:
                    self.route = _route_of(chunk) or self.route
                    if chunk.choices and (piece := chunk.choices[0].delta.content):
                        yield piece
        except APIError as error:
            raise UserError(explained(error, str(self.client.base_url))) from error


def listed_models(client: OpenAI) -> list[str]:
    """Return the names of a server's models. Raises :class:`UserError` if no server answers."""
    try:
        return [model.id for model in client.models.list().data]
    except APIError as error:
        raise UserError(explained(error, str(client.base_url))) from error


def explained(error: APIError, url: str) -> str:
    """Return what went wrong with a server, and what to do."""
    if isinstance(error, APIStatusError):
        if error.status_code == 401:
            return f"{url} needs its key, and got none or a wrong one: set SKILLWEAVE_API_KEY or give --api-key-file"
        if error.status_code == 404:
            return f"{url}: {_said(error)}. The address usually ends with /v1"
        return f"{url} refused with status {error.status_code}: {_said(error)}"
    if isinstance(error, APIConnectionError):
        return f"no server answers at {url}: start it, wait until it shows its address, or correct the address"
    return f"{url}: the answer broke off: {error.message}"


def _said(error: APIStatusError) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message


def _route_of(chunk: ChatCompletionChunk) -> ShownRoute | None:
    told = (chunk.model_extra or {}).get("skillweave")
    if not isinstance(told, dict) or not isinstance(told.get("pack"), str):
        return None
    confidence = told.get("confidence")
    return ShownRoute(told["pack"], confidence if isinstance(confidence, int | float) else None)
