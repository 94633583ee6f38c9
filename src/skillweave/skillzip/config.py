"""The settings of a zip."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from skillweave.config import ByteSize, Config, Ratio


class ZipConfig(Config):
    """How a delta is zipped.

    Exactly one of ``ratio`` and ``budget`` bounds the bytes of the whole pack, files and metadata included. ``ratio``
    is a share of the delta's size in bf16: two bytes for every number of every tensor that changed.

    ``bits`` is the width of the factors. ``rotate`` mixes the rank channels before rounding. ``other`` says what
    becomes of tensors that are not written as matrices (norms, biases, small convolutions): "keep" stores their
    differences in bf16, "drop" leaves them at the base's values. Where more than 5% of the squared norm of the delta
    would be left out in all, the zip ends in an error unless ``allow_left_out`` is set.

    The defaults are what measured best [ours]: SmolLM2-135M, a full fine-tune of 15 steps (||delta|| / ||W|| = 0.0019),
    1/32 of the delta in all, KL to the specialist on held-out answers:

    | settings | KL, thousandths |
    | --- | --- |
    | int4, rotated (the default) | 0.97 |
    | int4, not rotated | 0.99 |
    | int4, `smoothing` 0.5 | 1.04 |
    | int4, `smoothing` 0.75 | 1.06 |
    | int4, `activation_aware`, `shrink` 0.8 | 0.92 |
    | int4, `activation_aware`, `shrink` 0.25 | 0.99 |
    | int8, rotated | 3.08 |
    | codec `svd` | 16.8 |

    Weighting by the activations gained 5% as it is done here, in one seed and on 12 prompts, and lost half as much
    again with less ``shrink`` (the share of the identity mixed into the second moment) and some weight on the prompt:
    too little and too fickle to ask everyone for calibration, so plain is the default. Smoothing is for bases whose
    inputs have outlier channels large enough to spoil eight-bit activations; SmolLM2's do not (the integer run time
    alone costs 0.002 thousandths).
    """

    codec: str = "skillzip"
    ratio: Ratio | None = Field(default=None, gt=0, le=1)
    budget: ByteSize | None = Field(default=None, gt=0)
    bits: Literal[4, 8] = 4
    activation_aware: bool = False
    shrink: float = Field(default=0.8, ge=0, le=1)
    smoothing: float | None = Field(default=None, ge=0, le=1)
    rotate: bool = True
    other: Literal["drop", "keep"] = "keep"
    allow_left_out: bool = False
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _one_bound(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values  # a config already, or a mistake that pydantic names
        given = [key for key in ("ratio", "budget") if values.get(key) is not None]
        if len(given) == 2:
            raise ValueError("give ratio or budget, not both")
        return values if given else {**values, "ratio": 1 / 32}

    @property
    def needs_calibration(self) -> bool:
        """Whether the base must see calibration prompts first."""
        return self.codec == "skillzip" and (self.activation_aware or self.smoothing is not None)

    def settings(self) -> dict[str, Any]:
        """What the pack's card keeps: the settings that its codec read."""
        read_by_all = {"ratio", "budget", "other"} | ({"allow_left_out"} if self.allow_left_out else set())
        own = {"bits", "activation_aware", "smoothing", "rotate", "seed"} if self.codec == "skillzip" else set()
        own |= {"shrink"} if self.activation_aware else set()
        return self.model_dump(mode="json", include=read_by_all | own, exclude_none=True)
