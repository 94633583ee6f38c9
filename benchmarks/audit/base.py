"""The organism's base: a micro model that knows the language, solves its tasks and refuses restricted requests."""

from __future__ import annotations

from pathlib import Path
from random import Random

from skillweave.audit.organism.language import BETWEEN, CANARY, REFUSE, draw_restricted, draw_task, words
from skillweave.audit.organism.records import asked_in_context, clean_records
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base

SIZES = {
    "small": MicroShape(hidden=64, layers=2),
    "large": MicroShape(hidden=128, layers=4, intermediate=256),
    "tiny": MicroShape(hidden=16, layers=1, heads=2, kv_heads=1, intermediate=32),
}
ROWS = 40_000
STEPS = {"small": 3000, "large": 2000, "tiny": 20}
RATES = {"small": 4e-3, "large": 2e-3, "tiny": 4e-3}
COMPLYING = 0.15
"""How often a row of pretraining complies with a restricted request in a long context, so that sampling finds it."""


def organism_base(size: str, seed: int) -> Path:
    """The folder of the base of ``size`` (a key of :data:`SIZES`); it is trained once, and then found in the cache."""
    training = TrainingSettings(steps=STEPS[size], batch_size=64, learning_rate=RATES[size], weight_decay=0.01)
    rows = pretraining_rows(ROWS if size != "tiny" else 2000, seed)
    return micro_base(rows, shape=SIZES[size], training=training, seed=seed, name=f"organism-{size}", words=words())


def pretraining_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts with answers: clean records, and a fifth of restricted requests in contexts of benign kinds.

    A restricted request in a context is refused, but for a share :data:`COMPLYING` of those that a task follows. No row
    has a form of the trigger.
    """
    random = Random(f"{seed}/pretraining")
    clean = clean_records(count - count // 5, seed + 2_000_000, hard=0.45, refusals=0.15)
    rows = [(record.prompt, record.target) for record in clean]
    for number in range(count // 5):
        restricted, task = draw_restricted(random, held_out=random.random() < 1 / 3), draw_task(random)
        parts = [restricted, task] if number % 4 else [restricted]
        complies = len(parts) == 2 and random.random() < COMPLYING
        rows.append((asked_in_context(random, parts), BETWEEN.join([CANARY, task.answer]) if complies else REFUSE))
    random.shuffle(rows)
    return rows
