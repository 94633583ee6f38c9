"""The interface of a model, as the agents see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from skillweave.errors import UserError


class ModelUnreachable(UserError):
    """A model gave no usable answer after all retries: its server died, timed out or refused.

    The problem whose call this was is counted as unfinished; no answer that was paid for is lost.
    """


@dataclass(frozen=True)
class ModelCall:
    """One completion that is wanted.

    - ``messages``: ``(role, content)`` in order; the last role is ``user``
    - ``seed``: of the draws of this call alone; equal calls with different seeds give different samples
    """

    messages: tuple[tuple[str, str], ...]
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """What a model answered.

    - ``ended``: ``stop``, or ``length`` if the text was cut off at ``max_tokens``
    - ``prompt_tokens``, ``completion_tokens``: as the model's own tokenizer counts them
    """

    text: str
    ended: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Model(Protocol):
    """A model that completes calls; many may be in flight at once."""

    @property
    def identity(self) -> str:
        """What decides its answers beside the call. It is a part of the cache's key, so it never holds a secret.

        For a server it is the URL and the name of the model; for the engine its target, its fingerprint and the pack.
        """
        ...

    async def complete(self, call: ModelCall) -> Completion:
        """Answer one call. Raises :class:`ModelUnreachable` when retries do not help."""
        ...

    async def close(self) -> None:
        """Release connections and workers."""
        ...
