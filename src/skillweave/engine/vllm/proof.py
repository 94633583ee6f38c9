"""Prove that an adapter acts in vLLM: along a probe text, its log-probabilities are not those of the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2

from skillweave.engine.vllm.wire import ServerFailed, call

PROBE = (
    "Sort the numbers 7, 3 and 12. Write a poem about rain, a call of a tool as JSON, and the word 'winter' backwards."
)
LEAST = 1e-3
"""Mean difference, in nats per token, under which an adapter counts as one that does not act. The same request twice
gives the same log-probabilities, or differs by the rounding of another batch, which is far less on average."""


async def probe_logprobs(client: httpx2.AsyncClient, url: str, model: str, ids: Sequence[int]) -> list[float]:
    """Return the log-probabilities of the tokens of a text after the first, as a vLLM server computes them."""
    body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    values: Any = await call(client, "POST", url, "/v1/completions", body)
    try:
        given = values["choices"][0]["prompt_logprobs"]
        return [float(one[str(token)]["logprob"]) for one, token in zip(given[1:], ids[1:], strict=True)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ServerFailed(f"{url}: the answer has no prompt_logprobs") from error


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the mean absolute difference of log-probabilities along one text, in nats per token."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
