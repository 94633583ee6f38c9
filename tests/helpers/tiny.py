"""The smallest task and the shortest training with which a whole build works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import TrainingSettings
from skillweave.methods.training.trainer import trainer_arguments

TASK: dict[str, Any] = {
    "source": "builtin",
    "name": "sort_numbers",
    "config": {"least": 2, "most": 2},
    "splits": {"train": 40, "calibration": 8, "test": 6},
}
TINY: dict[str, Any] = {
    "warm_start": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
    "rounds": 0,
    "probe_prompts": 2,
    "samples_per_prompt": 2,
    "max_new_tokens": 8,
    "bf16": False,
}


def cpu_arguments(settings: TrainingSettings, folder: Path, *, steps: int, save_every: int = 100) -> dict[str, Any]:
    """The arguments of a trainer on the CPU, in float32, in one process."""
    return trainer_arguments(
        settings,
        Processes(),
        folder=folder,
        steps=steps,
        seed=0,
        bf16=False,
        device="cpu",
        save_every=save_every,
        gradient_checkpointing=False,
    )
