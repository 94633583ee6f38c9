"""The settings of one training stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from skillweave.config import Config


class TrainingSettings(Config):
    """How long, how fast and in what pieces to train. A step is one optimiser update on ``batch_size`` examples."""

    steps: int | None = Field(default=None, ge=1, description="optimiser steps; where given, it wins over epochs")
    epochs: int = Field(default=1, ge=1, description="passes over the examples")
    learning_rate: float = Field(default=5e-5, gt=0)
    batch_size: int = Field(default=16, ge=1, description="examples a step, over all processes together")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="most examples in memory at once in one process; None: the whole share"
    )
    warmup: float = Field(default=0.1, ge=0, le=1, description="fraction of the steps the learning rate rises in")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)

    def steps_for(self, examples: int) -> int:
        """Optimiser steps for that many examples: ``steps`` where given, else whole batches covering ``epochs``."""
        return self.steps if self.steps is not None else max(1, -(-examples * self.epochs // self.batch_size))
