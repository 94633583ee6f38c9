"""What a scale is: a base with its skills, how they are trained, what they are asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.headline.questions import Question
from skillweave.base import Prompt

Row = dict[str, Any]
"""A training example: ``{"messages": [...]}``; the last message is the answer."""
TUNE, TEST = "tune", "test"
"""Prompts that settings are chosen on, and prompts that count. No training has seen either."""
SPECIALIST, MULTI, LORA, MONOLITH = "specialist", "multi-task", "LoRA", "monolith"
ARITHMETIC, TIES, DARE = "task arithmetic", "TIES", "DARE"
MERGES = (ARITHMETIC, TIES, DARE)
TUNING_SEED = 100


@dataclass(frozen=True, kw_only=True)
class Scale(ABC):
    """A base with its skills.

    - ``skills``: those of the weave; ``added`` is the one that comes later
    - ``steps``, ``batch``: those of one skill's fine-tune, which goes once over its examples
    - ``tokens``: the longest answer
    - ``trainable``, ``targets``: the parameters that are trained, and the same layers as PEFT names them
    - ``rates``: the grid of each kind of training, and for a merge of its specialists; a single rate is not tuned
    - ``factors``: the grid of each kind of merge
    - ``lora_tuned_on``: the skills on which the rate of LoRAs is tuned
    - ``tested``, ``tuned``, ``hard``: prompts of each skill (``hard``: of each kind)
    - ``judges_everyday``: whether everyday prompts have right answers
    - ``ratio``, ``refine``: the size of the packs, and how they are refined (None: not)
    - ``routed_on``: prompts of each skill that the router learns from
    """

    name: str
    skills: tuple[str, ...]
    added: str
    steps: int
    batch: int
    tokens: int
    trainable: str
    targets: str
    rates: dict[str, tuple[float, ...]]
    factors: dict[str, tuple[float, ...]]
    lora_tuned_on: tuple[str, ...]
    tested: int
    tuned: int
    hard: int
    routed_on: int
    judges_everyday: bool
    ratio: str = "1/64"
    refine: dict[str, Any] | None = None

    @abstractmethod
    def base(self) -> str:
        """Return the reference of the base; a micro model is trained if it is not there yet."""

    @abstractmethod
    def monolith(self) -> str | None:
        """Return the reference of a model of twice the size that was trained alike; None: there is none."""

    @abstractmethod
    def twice(self, folder: Path) -> str:
        """Return a model of twice the size to take the time of: the monolith, or random weights made in ``folder``."""

    @abstractmethod
    def rows(self, skill: str, seed: int) -> list[Row]:
        """Return the training examples of a skill, which a fine-tune goes over once."""

    @abstractmethod
    def prompts(self, skill: str, seed: int) -> list[Prompt]:
        """Return prompts of training examples for the router."""

    @abstractmethod
    def asked(self, skill: str, seed: int, split: str) -> list[Question]:
        """Return the questions of a skill in the words that it is trained on."""

    @abstractmethod
    def asked_hard(self, kind: str, seed: int) -> list[Question]:
        """Return questions that are hard to route, of one of the kinds in :data:`questions.HARD`."""

    @abstractmethod
    def background(self) -> Sequence[Prompt]:
        """Return everyday prompts, from which the router learns what belongs to no pack."""
