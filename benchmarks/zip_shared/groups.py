"""Groups of fine-tunes of one base: different tasks, or one task with other settings or other examples."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.common.closeness import said_to
from benchmarks.common.skills import find
from benchmarks.zip_quality.bases import scratch_base
from benchmarks.zip_quality.skills import QUICK, SCALES, SHORT, Scale, Skill, fine_tune, recipe, task_spec
from skillweave.base import Base, Prompt, open_base
from skillweave.delta import Delta
from skillweave.files.hashes import digest
from skillweave.skillzip.refine.teacher import TeacherRow
from skillweave.tasks import Task, load_task
from skillweave.weave import background_prompts

TASKS, SETTINGS, SAME, DEMO = "different tasks", "one task, other settings", "one task, other examples", "the demo"
_MICRO = SCALES["micro"]
_SORT = _MICRO.skills["micro_sort"]
_LETTERS = (12, 26, 8, 20, 10, 23, 14, 17)
_EVERYDAY = Skill("micro_add", 0, 8)
"""The base learns a little of this task too, and no fine-tune sees it: its prompts are those without a pack."""
_APART = 100
"""The examples of two seeds are drawn with seeds that are so far apart."""
SMALL_TOKENS = 32


@dataclass(frozen=True)
class Member:
    """One fine-tune of a group. What its specialist says is made when it is asked for, once in ``folder``."""

    name: str
    base: Base
    delta: Delta
    prompts: dict[str, list[Prompt]]
    tokens: int
    folder: Path

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The delta's tensors, float32."""
        return {name: self.delta.tensor(name).float() for name in self.delta.names()}

    @functools.cached_property
    def test(self) -> list[TeacherRow]:
        """What the specialist says on test prompts."""
        return self._said("test")

    @functools.cached_property
    def tuning(self) -> list[TeacherRow]:
        """What the specialist says on prompts that are not tested."""
        return self._said("calibration")

    def _said(self, split: str) -> list[TeacherRow]:
        return said_to(self._specialist, self.prompts[split], self.tokens, self.folder / split)

    def _specialist(self) -> Base:
        base = open_base(self.base.path, dtype="float32", device=self.base.model.device)
        return self.delta.apply(base, in_place=True)


@dataclass(frozen=True)
class Group:
    """Fine-tunes of one base, and what the base says on everyday prompts."""

    base: Base
    members: list[Member]
    everyday: list[TeacherRow]


def micro_skills(relation: str, packs: int, seed: int) -> list[Skill]:
    """Return the first ``packs`` skills of a relation. The seed decides which examples they are trained on."""
    if relation == TASKS:
        found = list(_MICRO.skills.values())
    elif relation == SETTINGS:
        found = [replace(_SORT, config={**_SORT.config, "letters": letters}) for letters in _LETTERS]
    else:
        found = [replace(_SORT, data_seed=at) for at in range(len(_LETTERS))]
    return [replace(skill, data_seed=skill.data_seed + _APART * seed) for skill in found[:packs]]


def micro_group(relation: str, packs: int, seed: int, folder: Path, prompts: int, *, quick: bool) -> Group:
    """Return fine-tunes of a micro base (:func:`micro_skills`), each made once in ``folder``."""
    scale = replace(QUICK, train=64) if quick else _MICRO
    base = _micro_base(folder, quick)
    everyday = replace(scale, skills={"everyday": _EVERYDAY})
    asked = [entry.prompt for entry in load_task(task_spec(everyday, "everyday")).distinct("test")[:prompts]]
    rows = said_to(lambda: base, asked, _EVERYDAY.tokens, folder / "said" / f"everyday-{prompts}")
    members = [_micro_member(skill, folder, prompts, quick) for skill in micro_skills(relation, packs, seed)]
    return Group(base, members, rows)


@functools.lru_cache(maxsize=1)
def _micro_base(folder: Path, quick: bool) -> Base:
    scale: Scale = QUICK if quick else _MICRO
    skills = {**_MICRO.skills, "everyday": _EVERYDAY}
    tasks = [task_spec(replace(scale, skills=skills), name) for name in skills]
    return open_base(scratch_base("llama", tasks, scale.base_steps, folder / "fine-tunes"), dtype="float32")


def _micro_member(skill: Skill, folder: Path, prompts: int, quick: bool) -> Member:
    scale = replace(QUICK if quick else _MICRO, skills={skill.task: replace(skill, steps=2) if quick else skill})
    base = _micro_base(folder, quick)
    place = fine_tune(base, scale, skill.task, SHORT, folder / "fine-tunes")
    name = f"{skill.task} {recipe(scale, skill.task, SHORT)}"
    return _member(name, place, base, load_task(task_spec(scale, skill.task)), prompts, skill.tokens, folder)


def small_group(weave: Path, folder: Path, prompts: int) -> Group:
    """Return the fine-tunes of a build, whose work folder lies beside it."""
    built = find(weave)
    base = open_base(built.base_ref, dtype="float32")
    members = [
        _member(skill.name, skill.delta_folder, base, skill.task(), prompts, SMALL_TOKENS, folder)
        for skill in built.skills
    ]
    # Every fifth line: neighbours are often of one kind.
    everyday = background_prompts()[::5][:prompts]
    rows = said_to(lambda: base, everyday, SMALL_TOKENS, folder / "said" / f"everyday-{prompts}")
    return Group(base, members, rows)


def _member(name: str, place: Path, base: Base, task: Task, prompts: int, tokens: int, folder: Path) -> Member:
    asked = {split: [entry.prompt for entry in task.distinct(split)[:prompts]] for split in ("test", "calibration")}
    key = digest([name, asked, (place / "delta.json").read_text(encoding="utf-8")])
    return Member(name, base, Delta.from_pretrained(place), asked, tokens, folder / "said" / key)
