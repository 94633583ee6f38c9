"""The micro scale: a model that is trained from nothing on a mixture, and six operations on strings of letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.headline import texts
from benchmarks.headline.questions import ALIKE, EVERYDAY, REWORDED, TWO, Question, exact, share_of_both
from benchmarks.headline.scale import (
    ARITHMETIC,
    DARE,
    LORA,
    MERGES,
    MONOLITH,
    MULTI,
    SPECIALIST,
    TEST,
    TIES,
    TUNE,
    Row,
    Scale,
)
from skillweave.base import Prompt
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base

_BASE_SEED = 1_000_000
"""The base's strings are drawn with a seed that no fine-tune and no test has."""
_ROUTER_SEED = 2_000_000
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, kw_only=True)
class Micro(Scale):
    """The micro scale.

    - ``width``, ``monolith_width``: of the base, and of the monolith, which has twice the parameters
    - ``rate``, ``monolith_rate``: learning rates with which they are trained from nothing, for as many steps. At the
      base's rate the monolith ends behind the base; half of it is better by 16 points on validation prompts.
    """

    width: int
    monolith_width: int
    rate: float
    monolith_rate: float
    layers: int
    base_steps: int
    base_rows: int

    def base(self) -> str:
        """Return the folder of the base, which has read a mixture of all operations in all wordings."""
        return self._trained(self.width, self.rate, "headline")

    def monolith(self) -> str:
        """Return the folder of a model of twice the size, trained on the same mixture for as many steps."""
        return self._trained(self.monolith_width, self.monolith_rate, "headline-twice")

    def twice(self, folder: Path) -> str:
        """Return the monolith."""
        return self.monolith()

    def _trained(self, width: int, rate: float, name: str) -> str:
        every = tuple(range(texts.WORDINGS))
        mixture = [row for each in texts.OPERATIONS for row in texts.rows(each, self.base_rows, _BASE_SEED, every)]
        shape = MicroShape(hidden=width, layers=self.layers, heads=4, kv_heads=2, intermediate=2 * width, context=64)
        training = TrainingSettings(steps=self.base_steps, batch_size=32, learning_rate=rate)
        return str(micro_base(mixture, shape=shape, training=training, seed=0, name=name))

    def rows(self, skill: str, seed: int) -> list[Row]:
        """Return the examples behind those of test and tuning, in one stream of distinct strings."""
        return [_row(prompt, answer) for prompt, answer in self._stream(skill, seed)[self.tested + self.tuned :]]

    def prompts(self, skill: str, seed: int) -> list[Prompt]:
        """Return the first prompts of the training."""
        return [row["messages"][0]["content"] for row in self.rows(skill, seed)[: self.routed_on]]

    def asked(self, skill: str, seed: int, split: str) -> list[Question]:
        """Return the questions of a skill in the first wording."""
        begin, end = {TEST: (0, self.tested), TUNE: (self.tested, self.tested + self.tuned)}[split]
        return [Question(prompt, (skill,), exact(answer)) for prompt, answer in self._stream(skill, seed)[begin:end]]

    def asked_hard(self, kind: str, seed: int) -> list[Question]:
        """Return questions of one kind.

        - look alike: sorting up and down, asked with the same letters in another order ("a to z: ", "z to a: ")
        - other words: all skills in wordings that only the base has read
        - two skills: two prompts in one; everyday: what no skill is trained on
        """
        if kind == TWO:
            return [
                Question(prompt, both, share_of_both(golds))
                for prompt, golds, both in texts.twofold(self.skills, self.hard, seed)
            ]
        names, wordings = {
            ALIKE: (("sort_up", "sort_down"), (2,)),
            REWORDED: (self.skills, (1, 2, 3)),
            EVERYDAY: (tuple(texts.EVERYDAY), (0, 1)),
        }[kind]
        found = []
        for name in names:
            for prompt, answer in texts.rows(name, -(-self.hard // len(names)), seed, wordings):
                home = (name,) if name in self.skills else ()
                found.append(Question(prompt, home, exact(answer)))
        return found

    def background(self) -> Sequence[Prompt]:
        """Return prompts of two everyday operations; the router never sees the others."""
        return [
            prompt for name in texts.ROUTER_SEES for prompt, _ in texts.rows(name, self.routed_on, _ROUTER_SEED, (0, 1))
        ]

    def _stream(self, skill: str, seed: int) -> list[tuple[str, str]]:
        return texts.rows(skill, self.tested + self.tuned + self.steps * self.batch, seed)


def _row(prompt: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


MICRO = Micro(
    name="micro",
    skills=tuple(texts.SKILLS),
    added="odd",
    steps=80,
    batch=32,
    tokens=8,
    trainable="linear",
    targets="all-linear",
    rates={
        **dict.fromkeys((SPECIALIST, MULTI, MONOLITH, *MERGES), (1e-3, 3e-3)),
        LORA: (3e-3, 1e-2, 3e-2),
    },
    factors={ARITHMETIC: _FACTORS, TIES: (0.1, 0.25, 0.5, 1.0, 2.0), DARE: _FACTORS},
    lora_tuned_on=("reverse", "shift"),
    tested=200,
    tuned=64,
    hard=120,
    routed_on=64,
    judges_everyday=True,
    ratio="1/16",
    refine={"steps": 100, "max_new_tokens": 8, "prompts": 512},
    width=96,
    monolith_width=136,
    rate=3e-3,
    monolith_rate=1.5e-3,
    layers=2,
    base_steps=1500,
    base_rows=4000,
)

MICRO_LONG = replace(MICRO, name="micro-long", steps=3 * MICRO.steps)
"""The same with three times the examples, which bring a specialist near to its end."""
QUICK = replace(
    MICRO,
    name="quick",
    skills=("sort_up", "sort_down"),
    steps=2,
    batch=2,
    rates={arm: rates[:1] for arm, rates in MICRO.rates.items()},
    factors={how: factors[:1] for how, factors in MICRO.factors.items()},
    lora_tuned_on=("sort_up",),
    tested=4,
    tuned=2,
    hard=4,
    routed_on=4,
    ratio="1/4",
    refine=None,
    base_steps=2,
    base_rows=8,
)
"""A base that knows nothing: the same path in seconds."""
