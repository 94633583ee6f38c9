"""How a delta is zipped: :class:`ZipConfig`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from skillweave.config import ByteSize, Config, Ratio
from skillweave.errors import UserError
from skillweave.pack.schema import Prefill
from skillweave.skillzip.refine.config import RefineConfig

FIXED_SIZE = ("bitdelta", "rtn8", "rtn4", "none")
"""Codecs that write every matrix at one size: a limit can only refuse their packs."""


class ZipConfig(Config):
    """Settings of a zip.

    Either ``ratio`` or ``budget`` limits the bytes of the whole pack, including all files and metadata. Without either,
    the ratio is 1/32; the codecs :data:`FIXED_SIZE` then have no limit.

    How one width for all and fitted widths compare is in :mod:`skillweave.skillzip.steps` and
    docs/explanation/skillzip.md. The other defaults measured best [ours] with packs of the earlier layout (``scales:
    row``). The measurement: SmolLM2-135M, a full fine-tune of 15 steps (||delta|| / ||W|| =
    0.0019), a pack of 1/32 of the delta, KL to the specialist on held-out answers:

    | settings | KL, thousandths |
    | --- | --- |
    | int4, rotated | 0.97 |
    | int4, not rotated | 0.99 |
    | int4, `smoothing` 0.5 | 1.04 |
    | int4, `smoothing` 0.75 | 1.06 |
    | int4, `activation_aware`, `shrink` 0.8 | 0.92 |
    | int4, `activation_aware`, `shrink` 0.25 | 0.99 |
    | int8, rotated | 3.08 |
    | codec `svd` | 16.8 |

    Weighting by the activations gained 5% in this form, with one seed and 12 prompts. With less ``shrink`` and some
    weight on the prompt it was worse than no weighting, by about half as much. That is too little and too unstable to
    ask every user for calibration prompts, so the default is unweighted. Smoothing is for bases whose inputs have
    outlier channels large enough to spoil 8-bit activations. SmolLM2 has none: integer arithmetic at run time costs
    only 0.002 thousandths.
    """

    codec: str = Field(
        default="skillzip",
        description="how matrices are written: `skillzip` (integer factors), or as a method with which it is compared "
        "does it: `svd`, `bitdelta`, `delta-come`, `dqrelo`, `rtn8`, `rtn4` or `none`",
    )
    ratio: Ratio | None = Field(
        default=None,
        gt=0,
        le=1,
        description="most bytes of the pack, as a share of the delta in bf16 (2 bytes for every number of every "
        "changed tensor); 1/32 if neither ratio nor budget is given, but no limit with a codec of one fixed "
        "size (`bitdelta`, `rtn8`, `rtn4`, `none`)",
    )
    budget: ByteSize | None = Field(default=None, gt=0, description="most bytes of the pack, in place of ratio")
    bits: Literal[4, 8] | None = Field(
        default=None,
        description="width of the integer factors in bits; none: leading directions get more bits than others, as "
        "many as suit their share of the change (with `scales: row`, none is 4)",
    )
    scales: Literal["rank", "row"] = Field(
        default="rank",
        description="scales of the integer factors: `rank` stores one for each rank and codes the integers by their "
        "entropy; `row` stores one for each row of both factors, and packs the integers at their width",
    )
    group_size: int = Field(
        default=128,
        ge=1,
        le=2**20,
        description="how many numbers of a row share a scale (codecs `rtn8`, `rtn4` and `delta-come`)",
    )
    activation_aware: bool = Field(
        default=False,
        description="weight the error of each matrix by the inputs that its layer gets from calibration prompts "
        "(codecs `skillzip` and, by rounding with GPTQ, `delta-come`)",
    )
    shrink: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="share of the identity mixed into the second moment of the inputs (with activation_aware)",
    )
    smoothing: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="exponent of the smoothing of input channels, measured on calibration prompts; none: no smoothing",
    )
    rotate: bool = Field(
        default=True,
        description="mix the rank channels by an orthogonal rotation before rounding, if all have one width (with "
        "`bits`, or `scales: row`)",
    )
    other: Literal["drop", "keep"] = Field(
        default="keep",
        description="what becomes of changed tensors that are not matrices (norms, biases, small convolutions): `keep` "
        "stores their differences in bf16, `drop` leaves them at the base's values",
    )
    allow_left_out: bool = Field(
        default=False,
        description="make the pack even if it leaves out more than 5% of the delta's squared norm, instead of an error",
    )
    seed: int = Field(default=0, description="seed of the rotation")
    refine: RefineConfig | None = Field(
        default=None,
        description="tune the factors towards the specialist's own probabilities on calibration prompts; none: do not",
    )

    prefill: Prefill = Field(
        default="pack",
        description="who reads the prompts of the pack: `pack`, or `backbone`, which lets all packs share one cached "
        "prefix. It needs refine, which then trains for it; a pack that keeps less than 97% of its gain is not marked",
    )

    @model_serializer(mode="wrap")
    def _without_prefill(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Work that was done before this setting existed goes on: its inputs, written down without it, are the same.
        return {key: value for key, value in dump(self).items() if key != "prefill" or value != "pack"}

    @model_validator(mode="before")
    @classmethod
    def _one_bound(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values  # already a config, or a mistake that pydantic reports
        given = [key for key in ("ratio", "budget") if values.get(key) is not None]
        if len(given) == 2:
            raise ValueError("give ratio or budget, not both")
        return values if given or values.get("codec") in FIXED_SIZE else {**values, "ratio": 1 / 32}

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration prompts must be sent through the base first."""
        reads_smoothing = self.codec == "skillzip" and self.smoothing is not None
        return reads_smoothing or (self.codec in ("skillzip", "delta-come") and self.activation_aware)

    def settings(self) -> dict[str, Any]:
        """Return the settings that the codec uses, for the pack's card."""
        read_by_all = {"ratio", "budget", "other"} | ({"allow_left_out"} if self.allow_left_out else set())
        own = (
            {"bits", "scales", "activation_aware", "smoothing", "rotate", "seed"} if self.codec == "skillzip" else set()
        )
        own |= {"group_size"} if self.codec in ("rtn8", "rtn4", "delta-come") else set()
        own |= {"activation_aware"} if self.codec == "delta-come" else set()
        own |= {"shrink"} if "activation_aware" in own and self.activation_aware else set()
        own |= {"refine", "prefill"} if self.refine is not None else set()
        return self.model_dump(mode="json", include=read_by_all | own, exclude_none=True)


def check_prefill(config: ZipConfig) -> None:
    """Raise :class:`UserError` if the backbone is to read the prompts of a pack that is not refined for it."""
    if config.prefill == "backbone" and config.refine is None:
        raise UserError(
            "prefill 'backbone' needs refine, because a skill loses much if it was not trained for prompts that the "
            "backbone reads: add --refine and --task (refine: {} in weave.yaml), or leave out prefill"
        )
