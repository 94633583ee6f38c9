"""The settings of generated induction problems."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from skillweave.config import Config
from skillweave.errors import nearest
from skillweave.reason.induction.families import FAMILIES
from skillweave.reason.induction.rows import RowKind

Range = tuple[int, int]


class InductionFamily(Config):
    """The problems of one family."""

    share: float = Field(default=1.0, gt=0, description="how many training rows, relative to the other families")
    train: Range = Field(description="the fewest and the most parts of a training program")
    test: Range = Field(description="the fewest and the most parts of a program of test and practice problems")
    pairs: Range = Field(description="the fewest and the most training pairs of a problem")
    tests: int = Field(default=6, ge=1, description="the number of test pairs of a problem")

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("train", "test", "pairs"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} must be two numbers from 1, the smaller one first, not [{low}, {high}]")
        return self


class InductionConfig(Config):
    """The settings of :func:`~skillweave.reason.induction.write.write_induction`."""

    seed: int = Field(default=0, description="the seed of all draws")
    rows: int = Field(default=8000, ge=1, description="the number of training rows")
    tasks: int = Field(default=60, ge=1, description="the number of test problems of each family")
    practice: int = Field(default=100, ge=0, description="the number of practice problems of each family")
    families: dict[str, InductionFamily] = Field(
        default={
            "lists": InductionFamily(train=(1, 4), test=(2, 4), pairs=(5, 6)),
            "commands": InductionFamily(train=(3, 6), test=(4, 6), pairs=(6, 8)),
        },
        min_length=1,
        description="the families and their sizes",
    )
    kinds: dict[RowKind, float] = Field(
        default={"program": 0.40, "refine": 0.30, "criticise": 0.08, "answer": 0.12, "rule": 0.05, "code": 0.05},
        min_length=1,
        description="the share of each kind of training row, relative to the other kinds",
    )

    @model_validator(mode="after")
    def _known_families(self) -> Self:
        for name in self.families:
            if name not in FAMILIES:
                raise ValueError(f"there is no family '{name}'; {nearest(name, list(FAMILIES))}")
        if min(self.kinds.values()) < 0 or not sum(self.kinds.values()):
            raise ValueError("the shares in kinds must not be negative, and one of them must be above 0")
        return self
