"""The skills of the benchmark: tasks, a short and a long fine-tune of each, and the prompts that are read of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.zip_quality.bases import SMALL, scratch_base
from skillweave.base import Base
from skillweave.files.hashes import digest
from skillweave.files.lock import claim
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise.run import run as specialise

SHORT, LONG = "short", "long"
LENGTHS = (SHORT, LONG)
CALIBRATION = 192
"""Calibration prompts of each seed; the seeds share none, and no fine-tune has seen any."""
SEEDS = 3


@dataclass(frozen=True)
class Skill:
    """A task, and how many steps its short fine-tune takes. ``tokens`` is the longest answer that is scored."""

    task: str
    steps: int
    tokens: int
    config: dict[str, Any] = field(default_factory=dict)
    data_seed: int = 0
    """the seed of the task's examples"""


@dataclass(frozen=True)
class Scale:
    """A base with its skills. The long fine-tune of a skill takes ``longer`` times its steps, on all parameters."""

    skills: dict[str, Skill]
    batch: int
    rates: dict[str, float]
    """length of the fine-tune -> highest learning rate"""
    family: str | None = None
    """the family of a micro model that is trained from nothing; None: SmolLM2"""
    linear: str = "linear"
    """the parameters that a short fine-tune trains"""
    base_steps: int = 0
    longer: int = 10
    prompts: int = 48
    """test prompts for the KL"""
    scored: int = 160
    """test prompts for the score"""
    calibration: int = CALIBRATION
    train: int = 4000


_LETTERS = {"least": 4, "most": 6}
_MICRO_SKILLS = {
    "micro_sort": Skill("micro_sort", 60, 8, {**_LETTERS, "letters": 12}),
    "micro_reverse": Skill("micro_reverse", 60, 8, _LETTERS),
    "micro_shift": Skill("micro_shift", 60, 8, {**_LETTERS, "furthest": 3}),
}
_MICRO: dict[str, Any] = {"batch": 32, "rates": {SHORT: 1e-3, LONG: 1e-3}, "base_steps": 300, "prompts": 160}
_CONV1D = r"\.(c_attn|c_proj|c_fc)\.weight$"
"""GPT-2's weights of linear layers, which `trainable: linear` does not find: they are no `torch.nn.Linear`."""
SCALES = {
    "small": Scale(
        {
            "json_calls": Skill("json_calls", 48, 40),
            "reverse_words": Skill("reverse_words", 72, 24, {"most": 4}),
            "sort_numbers": Skill("sort_numbers", 72, 24, {"order": "ascending", "most": 4}),
        },
        batch=4,
        rates={SHORT: 3e-4, LONG: 1e-4},
    ),
    "micro": Scale(_MICRO_SKILLS, family="llama", **_MICRO),
    "gpt2": Scale({"micro_sort": _MICRO_SKILLS["micro_sort"]}, family="gpt2", linear=_CONV1D, **_MICRO),
    "qwen3": Scale({"micro_sort": _MICRO_SKILLS["micro_sort"]}, family="qwen3", **_MICRO),
}
QUICK = Scale(
    {"micro_sort": Skill("micro_sort", 2, 4, {**_LETTERS, "letters": 12})},
    batch=8,
    rates={SHORT: 1e-3, LONG: 1e-3},
    family="llama",
    base_steps=3,
    longer=2,
    prompts=4,
    scored=4,
    calibration=8,
    train=64,
)
"""A base that knows nothing: the same path in seconds."""


def scale_named(name: str) -> Scale:
    """Return the scale called ``name``; with ``quick-`` before it, a very small one on a model of its family."""
    full = SCALES[name.removeprefix("quick-")]
    return replace(QUICK, family=full.family or QUICK.family, linear=full.linear) if name.startswith("quick-") else full


def task_spec(scale: Scale, skill: str) -> dict[str, Any]:
    """Return the settings of a skill's task, with a calibration split that holds the prompts of every seed."""
    chosen = scale.skills[skill]
    splits = {
        "train": scale.train,
        "calibration": SEEDS * scale.calibration,
        "test": max(scale.scored, scale.prompts),
    }
    seed = {"seed": chosen.data_seed} if chosen.data_seed else {}
    return {"source": "builtin", "name": chosen.task, "config": chosen.config, "splits": splits, **seed}


def base_of(scale: Scale, folder: Path) -> str:
    """Return the base's place; a micro model is trained if it is not there yet."""
    if scale.family is None:
        return SMALL
    tasks: Sequence[dict[str, Any]] = [task_spec(scale, skill) for skill in scale.skills]
    return str(scratch_base(scale.family, tasks, scale.base_steps, folder))


def fine_tune_config(scale: Scale, skill: str, length: str) -> SpecialiseConfig:
    """Return the settings of a fine-tune.

    The short one trains the linear layers, the long one all parameters, embeddings and norms included.
    """
    chosen = scale.skills[skill]
    return SpecialiseConfig.model_validate(
        {
            "task": task_spec(scale, skill),
            "trainable": "all" if length == LONG else scale.linear,
            "warm_start": {
                "when": "always",
                "steps": chosen.steps * (scale.longer if length == LONG else 1),
                "batch_size": scale.batch,
                "learning_rate": scale.rates[length],
                "held_out": 0,
            },
            "rounds": 0,
            "probe_prompts": 4,
            "samples_per_prompt": 1,
            "max_new_tokens": chosen.tokens,
            "save_every": 40,
            "bf16": False,
        }
    )


def recipe(scale: Scale, skill: str, length: str) -> str:
    """Return a digest of all that decides a fine-tune and the prompts it is measured on."""
    base = None
    if scale.family is not None:
        base = [scale.family, scale.base_steps, *(task_spec(scale, name) for name in scale.skills)]
    config = fine_tune_config(scale, skill, length).model_dump(mode="json")
    return digest([base, config, scale.prompts, scale.scored])


def fine_tune(base: Base, scale: Scale, skill: str, length: str, folder: Path) -> Path:
    """Return the folder of a fine-tune's delta, which is made once; a killed training resumes."""
    place = folder / f"{skill}-{length}-{recipe(scale, skill, length)}"
    with claim(place.with_name(f"{place.name}.training"), waiting=f"another process trains {place.name}; waiting"):
        specialise(base, fine_tune_config(scale, skill, length), place)
    return place / "delta"
