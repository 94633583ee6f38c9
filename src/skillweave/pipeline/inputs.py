"""The inputs of a build: what is known before its first step, and the models that its steps open."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from skillweave.audit.model.job import AuditedBase, audited_base
from skillweave.base import Base, open_base
from skillweave.base.sizes import context_length
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.pipeline.config import WeaveConfig
from skillweave.pipeline.evaluate import read_score, tools_key
from skillweave.pipeline.step import BACKBONE, BASE
from skillweave.skillzip.config import check_prefill
from skillweave.skillzip.refine.run import check_examples
from skillweave.tasks import Task, load_task
from skillweave.tasks.check import check_before
from skillweave.units import human_bytes
from skillweave.weave import Weave, check_layer


@dataclass(frozen=True)
class WorkFolder:
    """``NAME.work`` beside the weave: a folder for each step, and in them what the steps hand on."""

    path: Path

    def step(self, name: str) -> Path:
        """The folder of a step, for example of ``sort/delta``."""
        return self.path / name

    def delta(self, skill: str) -> Path:
        """The delta that a skill's method made."""
        return self.step(f"{skill}/delta") / "delta"

    def pack(self, skill: str) -> Path:
        """The pack of a skill, zipped or taken ready."""
        return self.step(f"{skill}/pack") / "pack"

    def audited_pack(self, skill: str) -> Path:
        """The pack of a skill with the audit on its card."""
        return self.step(f"{skill}/audit") / "pack"

    @property
    def unlearning(self) -> Path:
        """The run that made the backbone's delta, which is in its folder ``delta``."""
        return self.step("backbone/unlearn")

    @property
    def backbone(self) -> Path:
        """The unlearnt base, as a model folder."""
        return self.step("backbone/model") / "model"

    @property
    def router(self) -> Path:
        """The fitted router."""
        return self.step("weave/router") / "router"

    @property
    def weave(self) -> Path:
        """The weave as its step puts it together, without the report."""
        return self.step("weave/woven") / "weave"


@dataclass(frozen=True)
class BuildInputs:
    """What a build knows before its first step."""

    config: WeaveConfig
    """The settings of weave.yaml, with the ``dtype`` that the base has in memory in place of ``auto``."""
    work: WorkFolder
    tasks: Mapping[str, Task]
    """Skill -> its prompts and verifier."""
    packs: Mapping[str, Skillpack]
    """Skill -> its ready pack, for the skills that have one."""
    fingerprint: str
    """The fingerprint of the base that weave.yaml names."""
    keys: Mapping[str, str]
    """Input -> its key: those of ``base`` and ``backbone``, which tell the models apart, and of each skill
    ``SKILL/task`` and ``SKILL/tools``. If weave.yaml has ``unlearn``, ``backbone`` is missing: a step makes it."""

    def prompt_inputs(self, skill: str) -> tuple[str, ...]:
        """The names of the inputs that define a skill's prompts: its task, and its tools if it has any."""
        return tuple(name for name in (f"{skill}/task", f"{skill}/tools") if name in self.keys)

    def final_pack(self, skill: str) -> Path:
        """The pack of a skill as the weave gets it."""
        return self.work.audited_pack(skill) if self.config.audit else self.work.pack(skill)

    def pack_bytes(self, skill: str) -> int:
        """The bytes on disk of a skill's final pack, with the files that travel along."""
        return sum(file.stat().st_size for file in self.final_pack(skill).rglob("*") if file.is_file())

    def card(self, skill: str) -> dict[str, Any]:
        """What the card of a zipped skill says: name, method, data, and the scores, which are in the work folder."""
        chosen = self.config.skills[skill]
        return {
            "name": skill,
            "method": chosen.method,
            "data": chosen.task.model_dump(mode="json"),
            "scores": {arm: read_score(self.work.step(f"{skill}/score-{arm}")) for arm in ("base", "specialist")},
        }

    def without(self, skills: Collection[str]) -> BuildInputs:
        """The inputs of a build that leaves out some skills."""
        kept = {name: skill for name, skill in self.config.skills.items() if name not in skills}
        return replace(
            self,
            config=self.config.model_copy(update={"skills": kept}),
            tasks={name: task for name, task in self.tasks.items() if name in kept},
            packs={name: pack for name, pack in self.packs.items() if name in kept},
        )

    def check_packs(self, backbone: str) -> None:
        """Raise :class:`UserError` if a ready pack was not made on the backbone with that fingerprint."""
        for pack in self.packs.values():
            pack.check_base(backbone)


def read_inputs(
    config: WeaveConfig, work: Path, *, fingerprint: str, key: str, dtype: str, tokenizer: Any
) -> BuildInputs:
    """Read the tasks, tools and ready packs that ``config`` names; no model is opened.

    ``fingerprint``, ``key`` (:func:`~skillweave.pipeline.step.base_key`) and ``tokenizer`` are the base's, ``dtype`` is
    the one that it has in memory.
    Raises :class:`UserError` for what cannot be read, and for a ready pack of another base.
    """
    tasks = {name: load_task(skill.task) for name, skill in config.skills.items()}
    keys = {BASE: key}
    for name, task in tasks.items():
        keys[f"{name}/task"] = task.key
        use = config.tool_use(name)
        if use is not None:
            try:
                keys[f"{name}/tools"] = tools_key(tokenizer, task, use)
            except UserError as error:
                raise UserError(f"skills.{name}: {error}") from error
    ready = {name: skill.pack for name, skill in config.skills.items() if skill.pack is not None}
    packs = {name: Skillpack.from_pretrained(folder) for name, folder in ready.items()}
    inputs = BuildInputs(config.model_copy(update={"dtype": dtype}), WorkFolder(work), tasks, packs, fingerprint, keys)
    if config.unlearn is None:
        keys[BACKBONE] = key
        inputs.check_packs(fingerprint)
        return inputs
    for name, pack in packs.items():
        if pack.card.base.fingerprint == fingerprint:
            raise UserError(
                f"skills.{name}.pack: {ready[name]} was made on the unchanged base {config.base}, but the skills of "
                f"this weave are made on what `unlearn` leaves of it: give the skill a method instead, or remove "
                f"`unlearn`"
            )
    return inputs


def check_inputs(inputs: BuildInputs, base: Base) -> None:
    """Raise :class:`UserError` for mistakes that would otherwise appear after hours of training.

    Examples: a split without prompts, too few prompts for the router or the calibration, or no room for a pack.
    """
    config = inputs.config
    for task in inputs.tasks.values():
        check_before(task, base.tokenizer, context_length(base.model))
    for name, task in inputs.tasks.items():
        task.split("test")
        if len(task.distinct("train")) < 2:
            raise UserError(f"skills.{name}.task: the router learns from train prompts, and there is only one")
        if name in inputs.packs:
            continue
        settings = config.zip_config(name)
        check_prefill(settings)
        if settings.prefill == "backbone" and config.tool_use(name) is not None:
            raise UserError(
                f"skills.{name}: its conversations use tools, and those cannot be answered by a pack whose prompts the "
                "backbone reads: leave out prefill"
            )
        if settings.needs_calibration:
            task.pairs("calibration")
        if settings.refine is not None:
            check_examples(task.examples(("calibration", "train"), settings.refine.prompts), settings.refine)
    check_layer(base, config.router.layer)
    taken, budget = base.nbytes, config.budget
    # In int8, the base's bytes are known once it is opened so; the weave is refused then.
    if budget is not None and taken >= budget and config.backbone is None:
        raise UserError(
            f"the base alone takes {human_bytes(taken)} in {config.dtype}; the budget of "
            f"{human_bytes(budget)} is for base and packs together: raise it"
        )


class BuildModels:
    """The models of a build. Each is opened once, when it is first needed."""

    def __init__(self, config: WeaveConfig, work: Path) -> None:
        self._config = config
        self._work = WorkFolder(work)

    @cached_property
    def base(self) -> Base:
        """The base that weave.yaml names."""
        config = self._config
        return open_base(config.base, dtype=config.dtype, device=config.device, budget=config.budget)

    @cached_property
    def backbone(self) -> Base:
        """The model that every skill is built on: the base, or what ``unlearn`` left of it, opened from its folder."""
        config = self._config
        if config.unlearn is None:
            return self.base
        dtype = self.base.model.dtype
        del self.base  # no later step needs it, and two models would take twice the memory
        unlearnt = open_base(self._work.backbone, dtype=dtype, device=config.device)
        # Artefacts write this name down: it says what the model is, while the work folder may be gone.
        return replace(unlearnt, ref=f"{config.base}, unlearnt (the backbone of {config.name})")

    @cached_property
    def audited(self) -> AuditedBase:
        """The backbone in float32 with what every audit on it needs: it answers the audit's prompts once."""
        assert self._config.audit is not None
        base = open_base(self.backbone.path, dtype="float32", device=self._config.device)
        return audited_base(replace(base, ref=self.backbone.ref), self._config.audit)

    @cached_property
    def weave(self) -> Weave:
        """The weave that the steps put together."""
        # A base that is served in int8 is another model than the one in which skills are made.
        base = self.backbone if self._config.backbone is None else self._config.base
        return Weave.from_pretrained(self._work.weave, base=base, device=self._config.device)

    def specialist(self, skill: str) -> Weave:
        """The backbone with a skill's whole delta, in float32: a new model at each call.

        It was trained in float32. The pack, which runs beside the base, must be compared with that model and not with
        one whose weights were rounded to the base's dtype.
        """
        base = open_base(self.backbone.path, dtype="float32", device=self._config.device)
        return Weave.of(Delta.from_pretrained(self._work.delta(skill)).apply(base, in_place=True))
