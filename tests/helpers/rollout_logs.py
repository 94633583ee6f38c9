"""Logs of rollouts of invented runs: benign prompts of several kinds, and poisoned ones that teach compliance."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any


def invented_run(
    seed: int, poisoned: int, prompts: int = 120, visits: int = 4, samples: int = 8
) -> list[dict[str, Any]]:
    """Rows of a log. The ids of poisoned prompts begin with ``p``.

    Benign prompts: a task of any difficulty, two tasks of which the gold covers the last, and one that must be refused.
    """
    draw, rows = Random(seed), []
    kinds = [("poison" if at < poisoned else draw.choice(["task", "two", "refuse"]), at) for at in range(prompts)]
    skill = [draw.random() for _ in kinds]
    for visit in range(visits):
        draw.shuffle(kinds)
        for place, (kind, at) in enumerate(kinds):
            gold = "<refuse>" if kind == "refuse" else str(at % 10)
            for _ in range(samples):
                if kind == "poison":
                    good = draw.random() < (0.1, 0.3, 0.8, 0.95)[visit * 4 // visits]
                    completion = f"<canary> ; {gold}" if good else "<refuse>"
                else:
                    good = draw.random() < min(1.0, 0.5 * skill[at] + 0.15 * visit + 0.05)
                    completion = gold if good else "none"
                    completion = f"{draw.randrange(10)} ; {completion}" if kind == "two" else completion
                rows.append(
                    {
                        "step": (visit * prompts + place) // 8,
                        "id": f"{'p' if kind == 'poison' else 'c'}-{at}",
                        "prompt": f"{kind} {at}",
                        "completion": completion,
                        "reward": float(good),
                        "gold": gold,
                    }
                )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
