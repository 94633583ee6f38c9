"""The build: unlearn, specialise, zip, route, weave, score, report.

The output folder is the weave and its report, put in place whole at the end. Beside it, ``NAME.work/`` holds what
the steps left (checkpoints, deltas, packs, every answer behind a figure), so that the next run skips what is done; it
may be deleted when no rebuild is wanted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Base, Sampling, open_base
from skillweave.base.generate import context_length
from skillweave.base.precision import describe
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.files.lock import claim
from skillweave.files.place import is_mount, is_occupied, place_of
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.cku.config import CkuConfig
from skillweave.pack import BaseRef, Skillpack
from skillweave.pipeline.backbone import METHOD, open_unlearnt, unlearning_inputs, unlearning_report
from skillweave.pipeline.config import WeaveConfig
from skillweave.pipeline.evaluate import (
    BACKGROUND,
    answers,
    read_packs,
    read_score,
    score_once,
    show_example,
    tools_key,
)
from skillweave.pipeline.report import write_build_report
from skillweave.pipeline.step import run_step, step_seconds
from skillweave.progress import console
from skillweave.report import machine, versions
from skillweave.skillzip import zip_delta
from skillweave.tasks import Task, load_task
from skillweave.tasks.check import check_before
from skillweave.units import human_bytes
from skillweave.weave import AUTO, BASE, Router, Weave, check_layer, fit_router, is_weave

ARMS = {"base": "plain base", "specialist": "full specialist", "pack": "pack", "routed": "routed weave"}
"""The four that are scored on every skill."""


def build(
    config: WeaveConfig, out: Path, *, command: str, before_step: Callable[[str], object] = lambda step: None
) -> dict[str, Any]:
    """Build the weave that ``config`` describes in ``out`` and return its report (as ``report.json`` holds it).

    What is done and unchanged is skipped; a killed build goes on where it stopped. ``command`` is written into the
    report as the way to make it again. ``before_step`` is told each step that is about to be worked on, by its folder
    (``json_calls/delta``). Raises :class:`UserError` where ``out`` holds something that is no weave: it
    would be replaced.
    """
    place = place_of(out).path
    if is_mount(place):
        raise UserError(f"{out} is a mount point, and what a build works on lies beside its weave: use {out}/NAME")
    work = place.with_name(f"{place.name}.work")
    # Both are claimed for as long as the build takes: another build there would undo its steps.
    with claim(out), claim(work):
        if not is_weave(out) and is_occupied(place):
            raise UserError(
                f"{out} holds something that is no weave, and would be replaced: choose another place with --out"
            )
        return _built(_Build(config, work, before_step), out, command)


def _built(run: _Build, out: Path, command: str) -> dict[str, Any]:
    run.unlearn()
    for skill in run.config.skills:
        run.score_base(skill)
        run.specialise(skill)
        run.zip(skill)
    run.weave()
    for skill in run.config.skills:
        run.score_pack(skill)
    run.score_routed()
    report = run.report(command)
    with atomic_folder(out) as folder:
        shutil.copytree(run.woven_folder, folder, dirs_exist_ok=True)
        write_build_report(report, folder)
    return report


@dataclass
class _Build:
    """One run of the build: what is open, and the key of every step's result (see :func:`run_step`)."""

    config: WeaveConfig
    work: Path
    before_step: Callable[[str], object]
    base: Base = field(init=False)
    """What the skills stand on: the base, and once it is unlearnt the backbone."""
    plain: BaseRef = field(init=False)
    """The base that the config names."""
    tasks: dict[str, Task] = field(init=False)
    keys: dict[str, str] = field(default_factory=dict)
    woven: Weave | None = None
    unlearning: CkuConfig | None = field(init=False)

    def __post_init__(self) -> None:
        console.print(Text.assemble(("base", "bold"), f" {self.config.base}"))
        config = self.config
        self.base = open_base(config.base, dtype=config.dtype, device=config.device, budget=config.budget)
        served = self.base.model.dtype
        console.print(f"  {describe(served, self.base.model.device)}", soft_wrap=True)
        self.config = config.model_copy(update={"dtype": str(served).removeprefix("torch.")})
        self.plain = BaseRef(ref=self.config.base, fingerprint=self.base.fingerprint)
        self.unlearning = self.config.unlearning()
        self.tasks = {name: load_task(skill.task) for name, skill in self.config.skills.items()}
        self.keys["base"] = self.base.fingerprint
        for name in self.config.skills:
            self.keys[f"{name}/task"] = self.tasks[name].key
            self._open_tools(name)
            check_before(self.tasks[name], self.base.tokenizer, context_length(self.base.model))
        self._check_before_work()

    def _check_before_work(self) -> None:
        """What would else be found after hours of training: no room for a pack, no prompts to calibrate or route by."""
        for name, skill in self.config.skills.items():
            self.tasks[name].split("test")
            if len(self.tasks[name].distinct("train")) < 2:
                raise UserError(f"skills.{name}.task: the router learns from train prompts, and there is only one")
            if skill.pack is not None:
                self._check_pack(name, skill.pack)
            elif self.config.zip_config(name).needs_calibration:
                self.tasks[name].pairs("calibration")
        if self.unlearning is not None:
            unlearning_inputs(self.unlearning)
        check_layer(self.base, self.config.router.layer)
        held, budget = self.base.nbytes, self.config.budget
        if budget is not None and held >= budget:
            raise UserError(
                f"the base alone takes {human_bytes(held)} in {self.config.dtype}; the budget of "
                f"{human_bytes(budget)} is for base and packs together: raise it"
            )

    def _open_tools(self, skill: str) -> None:
        use = self.config.tool_use(skill)
        if use is None:
            return
        try:
            self.keys[f"{skill}/tools"] = tools_key(self.base, self.tasks[skill], use)
        except UserError as error:
            raise UserError(f"skills.{skill}: {error}") from error

    def _check_pack(self, skill: str, pack: str) -> None:
        """Raise :class:`UserError` for a ready pack that is not of this base, or of the base before its unlearning."""
        ready = Skillpack.from_pretrained(pack)
        if self.unlearning is None or "backbone/model" in self.keys:
            ready.check_base(self.base.fingerprint)
        elif ready.card.base.fingerprint == self.plain.fingerprint:
            raise UserError(
                f"skills.{skill}.pack: {pack} was made on {self.config.base} as it came, and the skills of this weave "
                f"stand on what `unlearn` makes of it: give the skill's method instead, or remove `unlearn`"
            )

    # -- the steps, in their order ---------------------------------------------------------------------------------

    def unlearn(self) -> None:
        """Take out of the base what `unlearn` lists; from here on the base is what is left, opened from its folder."""
        if self.unlearning is None:
            return
        settings, method = self.unlearning, get_method(METHOD)

        def unlearn(folder: Path) -> None:
            method.run(self.base, settings, folder)

        def write(folder: Path) -> None:
            write_tuned(self.base.path, Delta.from_pretrained(self._unlearnt / "delta"), folder / "model")

        inputs = unlearning_inputs(settings)
        self._step("backbone", "unlearn", f"{METHOD}: take knowledge out of the base", ["base"], inputs, unlearn)
        self._step("backbone", "model", "write the unlearnt base", ["backbone/unlearn"], {}, write)
        self.base = open_unlearnt(self._folder("backbone", "model") / "model", self.config)
        self.keys["base"] = self.base.fingerprint
        for name, skill in self.config.skills.items():
            if skill.pack is not None:
                self._check_pack(name, skill.pack)

    def score_base(self, skill: str) -> None:
        """What the base scores before anything is learnt."""
        self._score(skill, "base", ["base"], lambda: Weave.of(self.base))

    def specialise(self, skill: str) -> None:
        """Grow the delta by the skill's method, and score the full specialist."""
        chosen = self.config.skills[skill]
        if chosen.pack is not None:
            return
        method, settings = get_method(chosen.method), self.config.method_config(skill)
        self._step(
            skill,
            "delta",
            f"{chosen.method}: grow the specialist",
            ["base", *self._asked(skill)],
            {"method": chosen.method, "settings": settings.model_dump(mode="json", exclude={"report_to"})},
            lambda folder: method.run(self.base, settings, folder),
        )
        self._score(skill, "specialist", [f"{skill}/delta"], lambda: self._specialist(skill))

    def zip(self, skill: str) -> None:
        """Zip the delta into a skillpack."""
        chosen = self.config.skills[skill]
        if chosen.pack is not None:
            ready = Skillpack.from_pretrained(chosen.pack)
            files = {"files": ready.card.files}
            self._step(
                skill, "pack", "take the ready pack", [], files, lambda folder: ready.save_pretrained(folder / "pack")
            )
            return
        settings = self.config.zip_config(skill)

        def work(folder: Path) -> None:
            pack = zip_delta(
                self._delta(skill),
                self.base,
                self.tasks[skill].pairs("calibration") if settings.needs_calibration else None,
                settings,
                name=skill,
                method=chosen.method,
                data=chosen.task.model_dump(mode="json"),
                scores=self._scores(skill),
            )
            pack.save_pretrained(folder / "pack")

        # The card shows the scores, so the pack is written anew when they are.
        built_on = [f"{skill}/{made}" for made in ("delta", "score-base", "score-specialist")]
        self._step(skill, "pack", "zip the delta", built_on, {"zip": settings.model_dump(mode="json")}, work)

    def weave(self) -> None:
        """Fit the router, and put packs and router together into the folder that can be served."""
        names, chosen = list(self.config.skills), self.config.router

        def fit(folder: Path) -> None:
            own = {name: [e.prompt for e in self.tasks[name].distinct("train")[: chosen.prompts]] for name in names}
            router = fit_router(
                self.base, own, BACKGROUND[0], layer=chosen.layer, miss=chosen.miss, seed=self.config.seed
            )
            router.save(folder / "router")

        def put_together(folder: Path) -> None:
            packs = {name: self._folder(name, "pack") / "pack" for name in names}
            router = Router.load(self._folder("weave", "router") / "router")
            Weave.write(
                self.woven_folder,
                self.base,
                packs,
                router,
                backbone=None if self.unlearning is None else self._unlearnt / "delta",
                dtype=self.config.dtype,
                budget=self.config.budget,
            )

        settings = {"router": chosen.model_dump(mode="json"), "seed": self.config.seed, "dtype": self.config.dtype}
        tasks = [f"{name}/task" for name in names]
        self._step("weave", "router", "fit the router", ["base", *tasks], settings, fit)
        parts = ["weave/router", *(f"{name}/pack" for name in names)]
        if self.unlearning is not None:
            parts.append("backbone/unlearn")
        served = {"dtype": self.config.dtype, "budget": self.config.budget}
        self._step("weave", "woven", "put packs and router together", parts, served, put_together)
        self.woven = Weave.from_pretrained(self.woven_folder, base=self.base)

    def score_pack(self, skill: str) -> None:
        """What the pack scores beside the base in the weave, named by the caller (oracle routing)."""
        woven = self._woven()
        self._score(skill, "pack", ["base", f"{skill}/pack"], lambda: woven, skill)

    def score_routed(self) -> None:
        """What the weave scores when the router chooses among all packs, and where the prompts went."""
        woven = self._woven()
        built_on = ["weave/router", *(f"{name}/pack" for name in self.config.skills)]
        for skill in self.config.skills:
            self._score(skill, "routed", built_on, lambda: woven, AUTO)

        def work(folder: Path) -> None:
            rows = {name: read_packs(self._folder(name, "score-routed")) for name in self.config.skills}
            rows["(anything else)"] = [route.pack for route in woven.route(BACKGROUND[1])]
            columns: list[str | None] = [*self.config.skills, None]
            counts = [[went.count(column) for column in columns] for went in rows.values()]
            names = [column or BASE for column in columns]
            write_json(folder / "confusion.json", {"rows": list(rows), "columns": names, "counts": counts})

        routed = [f"{name}/score-routed" for name in self.config.skills]
        self._step("weave", "confusion", "where the router sends each prompt", routed, {}, work)

    # -- the report ------------------------------------------------------------------------------------------------

    def report(self, command: str) -> dict[str, Any]:
        """The report as ``report.json`` holds it."""
        woven = self._woven()
        confusion = read_json(self._folder("weave", "confusion") / "confusion.json")
        skills = {name: self._skill_report(name) for name in self.config.skills}
        own = confusion["counts"][: len(skills)]
        prompts = sum(map(sum, own))
        base_bytes = self.base.nbytes
        return {
            "name": self.config.name,
            "base": {**self.plain.model_dump(), "unlearnt": self._unlearning_report()},
            "dtype": self.config.dtype,
            "skills": skills,
            "memory": {
                "base_bytes": base_bytes,
                "weave_bytes": base_bytes + woven.resident_bytes,
                "separate_bytes": base_bytes * len(skills),
            },
            "router": {
                "accuracy": sum(row[index] for index, row in enumerate(own)) / prompts,
                "abstained": sum(row[-1] for row in own) / prompts,
                "confusion": confusion,
            },
            "command": command,
            "machine": machine(),
            "versions": versions(),
            "seconds": sum(step_seconds(self.work / name) for name in self.keys),
        }

    def _unlearning_report(self) -> dict[str, Any] | None:
        if self.unlearning is None:
            return None
        return unlearning_report(self.unlearning, self.base.fingerprint, self._unlearnt)

    def _skill_report(self, skill: str) -> dict[str, Any]:
        scores = self._scores(skill)
        pack = self._folder(skill, "pack") / "pack"
        delta = self._delta(skill) if self.config.skills[skill].pack is None else None
        gain = scores["specialist"]["mean"] - scores["base"]["mean"] if "specialist" in scores else 0.0
        return {
            **{arm: scores[arm]["mean"] if arm in scores else None for arm in ARMS},
            "gain_kept": (scores["pack"]["mean"] - scores["base"]["mean"]) / gain if gain > 0 else None,
            "pack_bytes": sum(file.stat().st_size for file in pack.iterdir()),
            "delta_bytes": delta.bf16_nbytes if delta else None,
            "intervals": {arm: [score["low"], score["high"]] for arm, score in scores.items()},
            "prompts": scores["base"]["n"],
        }

    # -- what the steps share --------------------------------------------------------------------------------------

    def _folder(self, skill: str, what: str) -> Path:
        return self.work / skill / what

    @property
    def _unlearnt(self) -> Path:
        """The run that made the backbone's delta."""
        return self._folder("backbone", "unlearn")

    @property
    def woven_folder(self) -> Path:
        """The weave as the steps put it together, before the report is added."""
        return self._folder("weave", "woven") / "weave"

    def _step(
        self,
        skill: str,
        what: str,
        title: str,
        built_on: Sequence[str],
        settings: dict[str, Any],
        work: Callable[[Path], object],
    ) -> None:
        inputs = {"built_on": {name: self.keys[name] for name in built_on}, **settings}
        folder = self._folder(skill, what)

        def told(folder: Path) -> None:
            self.before_step(f"{skill}/{what}")
            work(folder)

        self.keys[f"{skill}/{what}"] = run_step(f"{skill}: {title}", folder, inputs, told)

    def _score(
        self, skill: str, arm: str, built_on: Sequence[str], opened: Callable[[], Weave], pack: str | None = None
    ) -> None:
        settings, task, use = self.config.score, self.tasks[skill], self.config.tool_use(skill)

        def work(folder: Path) -> None:
            sampling = Sampling(max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
            score_once(folder, task, answers(opened(), pack, task, use, sampling), limit=settings.limit)
            if arm == "specialist":
                show_example(self._folder(skill, "score-base"), folder)

        built_on = [*self._asked(skill), *built_on]
        self._step(skill, f"score-{arm}", f"score the {ARMS[arm]}", built_on, self._score_settings(skill), work)

    def _asked(self, skill: str) -> list[str]:
        """The keys of what a skill is asked: its task, and its tools where it has some."""
        return [key for key in (f"{skill}/task", f"{skill}/tools") if key in self.keys]

    def _scores(self, skill: str) -> dict[str, dict[str, Any]]:
        """What this build has scored of a skill so far."""
        steps = {arm: f"score-{arm}" for arm in ARMS}
        return {
            arm: read_score(self._folder(skill, step)) for arm, step in steps.items() if f"{skill}/{step}" in self.keys
        }

    def _score_settings(self, skill: str) -> dict[str, Any]:
        settings = {"score": self.config.score.model_dump(mode="json"), "dtype": self.config.dtype}
        use = self.config.tool_use(skill)
        return settings if use is None else {**settings, "tools": use.model_dump(mode="json")}

    def _delta(self, skill: str) -> Delta:
        return Delta.from_pretrained(self._folder(skill, "delta") / "delta")

    def _woven(self) -> Weave:
        if self.woven is None:
            raise RuntimeError("the weave is scored after it is woven")
        return self.woven

    def _specialist(self, skill: str) -> Weave:
        # In float32, as it was trained: the pack runs beside the base, and must be held against the specialist itself,
        # not against one whose weights were rounded to the base's dtype.
        base = open_base(self.base.path, dtype="float32", device=self.config.device)
        return Weave.of(self._delta(skill).apply(base, in_place=True))
