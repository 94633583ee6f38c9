"""The smallest task and the shortest training with which a whole build works."""

from __future__ import annotations

from typing import Any

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
