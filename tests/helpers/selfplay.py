"""What the tests of TPAW share: settings of runs, the record of an unbroken run, and ways to interrupt one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.digits import Repeats
from skillweave.delta import Delta
from skillweave.files.read import read_json
from skillweave.methods.tpaw import TpawConfig
from skillweave.methods.training import pieces
from skillweave.methods.training import run as shared

LN2 = pytest.approx(math.log(2), abs=1e-4)
SFT = {"steps": 16, "batch_size": 8, "learning_rate": 3e-3}
SETTINGS = {
    "task": "repeats.jsonl",
    "bf16": False,
    "sft": SFT,
    "rounds": 3,
    "team": 2,
    "generations": 2,
    "training": {"steps": 5, "batch_size": 8, "learning_rate": 1e-3},
    "held_out": 10,
    "judge_by": "log_prob",
    "sampling_batch_size": 16,
    "max_new_tokens": 6,
    "save_every": 3,
}
SHORT = {
    "rounds": 1,
    "team": None,
    "generations": None,
    "sft": None,
    "keep": "last",
    "training": {**SETTINGS["training"], "steps": 2},
}
"""One round of two steps from the base itself; its result is always kept."""


def settings(**changes) -> TpawConfig:
    return TpawConfig(**{**SETTINGS, **changes})


@dataclass
class Whole:
    """An unbroken run, and what was recorded while it ran."""

    out: Path
    kept: Path
    """The folder with copies of all players, which the run itself deletes."""
    task: Repeats
    before: dict[str, torch.Tensor]
    delta: Delta | None = None
    trained_on: dict[str, list[dict]] = field(default_factory=dict)
    scored: list[tuple[int, str, tuple]] = field(default_factory=list)
    """(player, name, tokens) of every answer that went through a model."""
    teams: list[tuple[str, list[int]]] = field(default_factory=list)
    """(join or dismiss, the players on the disk after it), in order."""

    def figures(self, stage: str = "") -> dict:
        return read_json(self.out / stage / "figures.json")

    def player(self, base, number: int):
        return model_with(base, Delta.from_pretrained(self.kept / str(number)))

    def judged(self) -> list[float]:
        """The held-out log-probability of each player."""
        return self.figures()["held_out_log_prob"]


def model_with(base, delta: Delta):
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    delta.add_to(model)
    return model


# -- ways to interrupt -----------------------------------------------------------------------------------------------


def stop_writing(patch, out: Path, file: str, after: bool = False) -> None:
    """Interrupt before (or after) a file is written: a piece of a long job, or the figures of a finished stage."""
    for module, name in ((pieces, "write_json_lines"), (shared, "write_json")):
        write = getattr(module, name)

        def writing(path, value, write=write):
            if path != out / file or after:
                write(path, value)
            if path == out / file:
                raise KeyboardInterrupt

        patch.setattr(module, name, writing)


def stop_calling(patch, owner, name: str, of=lambda *_: True) -> None:
    """Interrupt before ``owner.name`` is called with arguments for which ``of`` is true."""
    call = getattr(owner, name)

    def calling(*args):
        if of(*args):
            raise KeyboardInterrupt
        return call(*args)

    patch.setattr(owner, name, calling)
