"""How the factors of a pack are refined: :class:`RefineConfig`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from skillweave.config import Config

SMALL = 512
"""A pack of at most one part in so many of the delta is small: its refinement takes more steps by default."""


class RefineConfig(Config):
    """Settings of the refinement, which tunes the factors of a pack towards the specialist's own probabilities.

    The steps and the rate are [ours], from SmolLM2. A pack of 1/256 has most of its gain after 50 steps, and two of
    three have a lower KL after 100. Small packs learn for longer: the KL of three of 1/1024 fell by 31 to 42% from 50
    to 100 steps, and three of json_calls kept 97.7, 93.8 and 97.7% of their gain after 150 steps (95.3 and 93.0% of the
    first two after 100). Of a pack at 1/256 of a short fine-tune, whose KL on held-out prompts was 0.329 nats a token,
    50 steps left 0.094 with this rate and 0.261 with twice this rate (one seed).

    ``held_out`` [ours] is large, because few prompts can have most of the distance. Of a nearly exact pack (a KL of 1.1
    thousandths), the training made an eighth of the test prompts far worse. 16 held-out prompts showed a gain (1.8 to
    1.1) where 48 test prompts lost (1.1 to 21); 48 held-out prompts showed the loss at every measurement.
    """

    steps: int | None = Field(
        default=None,
        ge=1,
        description=f"most steps of training; none: 100, or 150 for a pack of at most 1/{SMALL} of the delta",
    )
    batch_size: int = Field(default=8, ge=1, description="prompts of one step")
    learning_rate: float = Field(
        default=0.025,
        gt=0,
        le=1,
        description="largest step of Adam, as a share of the root mean square of each factor; it falls linearly to 0",
    )
    top_k: int = Field(
        default=64,
        ge=1,
        description="tokens of each of the specialist's distributions that are kept; of all others only the sum is",
    )
    prompts: int = Field(
        default=192,
        ge=2,
        description="most prompts; those of a task are taken from its calibration split, then from its train split",
    )
    held_out: int = Field(
        default=48,
        ge=1,
        description="how many of the prompts only measure, and decide which step is kept; at most half of all",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="measurements in a row without a new best after which training stops; none: never. The first steps "
        "are large and may make the KL worse before it falls, so a stop can come too early",
    )
    answers: Literal["specialist", "given"] = Field(
        default="specialist",
        description="the answers on which the probabilities are compared: `specialist` lets the specialist write them, "
        "`given` takes those that come with the prompts",
    )
    max_new_tokens: int = Field(default=128, ge=1, description="longest answer that the specialist writes, in tokens")
    backbone: Literal["int8", "dtype"] | None = Field(
        default=None,
        description="the form of the base's linear layers with which the factors are tuned, which should be the one "
        "that the pack is served on: `int8`, or `dtype`; none: as the weave that is built, and `dtype` without one",
    )
    seed: int = Field(default=0, description="seed of the choice of held-out prompts, and of the order of the others")

    def steps_for(self, pack_bytes: int, delta_bytes: int) -> int:
        """Return the most steps of training for a pack of so many bytes, of a delta of so many bytes in bf16."""
        if self.steps is not None:
            return self.steps
        return 150 if pack_bytes * SMALL <= delta_bytes else 100

    @model_serializer(mode="wrap")
    def _without_a_form(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Work that was done before this setting existed goes on: its inputs, written down without it, are the same.
        return {key: value for key, value in dump(self).items() if key != "backbone" or value is not None}
