"""The proof that a pack acts: log-probabilities on its card, which a model with the pack must give again.

When a delta is zipped, the card gets a short text as token ids, and the log-probabilities of a few tokens under the
plain base and under the base with the pack. A model that answers as the base, or with the factors of another pack, or
with factors in the wrong places, gives other differences between the two. The rounding of a base in bfloat16 or int8
moves both nearly alike, so the differences hardly change (docs/explanation/skillzip.md). [ours]

The functions are pure and need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skillweave.files.values import Count

MOST_TOKENS, MOST_PLACES = 48, 8
"""Most tokens of a text, and most of its places at which log-probabilities are kept, when a probe is recorded."""
LEAST = -99.9999
"""Smaller log-probabilities count as this one, so that each takes a few bytes on the card."""
_DIGITS = 4
_LEAST_CHANGE = 0.001
"""Nats. A smaller change may be nothing but rounding, even in float32."""
_FREE_DISTANCE, _FREE_REROUTED, _MOST_DISTANCE, _PER_NOISE = 0.1, 0.3, 0.9, 1.5

LogProb = Annotated[float, Field(strict=True, ge=-100, le=0, allow_inf_nan=False)]


class PackProbe(BaseModel):
    """A text, and what the base and the pack say about some of its next tokens.

    After the tokens ``ids[: at[i] + 1]`` the token ``tokens[i]`` has the log-probability ``pack[i]`` with the pack, and
    ``base[i]`` without it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: Annotated[tuple[Count, ...], Field(min_length=1, max_length=256)]
    at: Annotated[tuple[Count, ...], Field(min_length=1, max_length=64)]
    tokens: tuple[Count, ...]
    pack: tuple[LogProb, ...]
    base: tuple[LogProb, ...]

    @model_validator(mode="after")
    def _one_length(self) -> PackProbe:
        if len({len(self.at), len(self.tokens), len(self.pack), len(self.base)}) != 1:
            raise ValueError("at, tokens, pack and base must have one length")
        if max(self.at) >= len(self.ids):
            raise ValueError(f"at: the place {max(self.at)} is after the last of the {len(self.ids)} ids")
        return self

    @property
    def change(self) -> float:
        """The root mean square of the recorded differences, in nats."""
        return _rms(_differences(self.pack, self.base))


Outcome = Literal["proven", "too small", "differs"]
"""``too small``: the change is so small beside the rounding of this base that nothing can be said."""


@dataclass(frozen=True)
class Proof:
    """How the log-probabilities that a model gave compare with those of a probe."""

    change: float
    """root mean square of the recorded differences between pack and base, in nats"""
    found: float
    """that of the found differences"""
    noise: float
    """root mean square of the found log-probabilities of the base minus the recorded ones, in nats"""
    distance: float
    """|found - recorded| / |recorded| of the differences, as vectors. It is 1 if the pack acts as the base"""
    allowed: float
    """the distance up to which the pack is proven"""

    @property
    def outcome(self) -> Outcome:
        """What the proof says."""
        if not math.isfinite(self.found):
            return "differs"
        if self.change < _LEAST_CHANGE or not self.allowed <= _MOST_DISTANCE:
            return "too small"
        return "proven" if self.distance <= self.allowed else "differs"


def compare(probe: PackProbe, pack: Sequence[float], base: Sequence[float], *, rerouted: bool = False) -> Proof:
    """Return how the log-probabilities ``pack`` and ``base`` that a model gave compare with those of ``probe``.

    The allowed distance is 0.1, plus 1.5 times what the rounding of this base alone moves, as a share of the change.
    With ``rerouted``, for a base with experts in int8, it is 0.3 in place of 0.1: the rounding sends some tokens to
    other experts, with the pack and without it in different ways. It is always below 1, the distance of a pack that
    does nothing; where it would be above 0.9, the change is too small to be proven. [ours]
    """
    pack, base = shortened(pack), shortened(base)
    recorded, found = _differences(probe.pack, probe.base), _differences(pack, base)
    change, noise = _rms(recorded), _rms(_differences(base, probe.base))
    apart = _rms(_differences(found, recorded))
    return Proof(
        change=change,
        found=_rms(found),
        noise=noise,
        distance=apart / change if change else math.inf,
        allowed=(_FREE_REROUTED if rerouted else _FREE_DISTANCE) + _PER_NOISE * noise / change if change else math.inf,
    )


def shortened(values: Sequence[float]) -> tuple[float, ...]:
    """Return log-probabilities as a card keeps them: rounded, and no smaller than :data:`LEAST`. NaN stays NaN."""
    return tuple(value if math.isnan(value) else min(0.0, max(LEAST, round(value, _DIGITS))) for value in values)


def longest_probe(vocabulary: int) -> PackProbe:
    """Return a probe that takes at least as many bytes as any that is recorded with this many tokens."""
    token = max(0, vocabulary - 1)
    return PackProbe(
        ids=(token,) * MOST_TOKENS,
        at=(MOST_TOKENS - 1,) * MOST_PLACES,
        tokens=(token,) * MOST_PLACES,
        pack=(LEAST,) * MOST_PLACES,
        base=(LEAST,) * MOST_PLACES,
    )


def _differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
