"""The steps of a build, in the order in which they run: unlearn, specialise, zip, audit, route, weave, score.

:func:`steps` is the list. The functions below it make its lines, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from skillweave.artefact import write_json
from skillweave.audit.model.job import audit_checkpoint, pack_audit, read_reference
from skillweave.audit.model.prompts import read_audit_prompts
from skillweave.audit.model.verdict import ALARM
from skillweave.base import Sampling, fingerprint
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.files.recover import drop
from skillweave.methods import get_method
from skillweave.methods.cku.config import CkuConfig
from skillweave.pack import Skillpack
from skillweave.pipeline.config import UNLEARNING, WeaveConfig
from skillweave.pipeline.evaluate import BACKGROUND, answers, read_packs, score_once, show_example
from skillweave.pipeline.inputs import BuildInputs, BuildModels
from skillweave.pipeline.shares import check_bytes, read_shares, split_budget
from skillweave.pipeline.speed import compare_speed
from skillweave.pipeline.step import BACKBONE, BASE, BuildStep, read_result
from skillweave.skillzip import zip_delta
from skillweave.weave import AUTO, Router, Weave, fit_router
from skillweave.weave import BASE as TO_BASE

ARMS = {"base": "plain base", "specialist": "full specialist", "pack": "pack", "routed": "routed weave"}
"""What is scored on every skill: the arm's name, and what it is for a person."""
_VERDICT = "verdict.json"


def steps(inputs: BuildInputs, models: BuildModels) -> list[BuildStep]:
    """All steps of a build, in their order; nothing is run.

    A step's name is also its folder below the work folder. ``needs`` names what it builds on, so the list can be
    printed as a plan (:mod:`skillweave.pipeline.plan`). A model is opened only by the ``work`` of a step.

    The second half is that of the skills that are not held back (:func:`held_back`); before the audits have run, that
    is all of them. Raises :class:`UserError` if a file that ``unlearn`` or ``audit`` names does not exist.
    """
    return [*skill_steps(inputs, models), *weave_steps(inputs.without(held_back(inputs)), models)]


def skill_steps(inputs: BuildInputs, models: BuildModels) -> list[BuildStep]:
    """The first half: every skill gets its pack, and every pack its audit if weave.yaml asks for one."""
    skills = list(inputs.config.skills)
    listed: list[BuildStep] = []
    zips: list[BuildStep] = []
    if inputs.config.unlearn is not None:
        listed += [unlearn(inputs, models), write_backbone(inputs, models)]
    for skill in skills:
        listed.append(score_base(inputs, models, skill))
        if skill in inputs.packs:
            listed.append(take_pack(inputs, skill))
        else:
            listed.append(specialise(inputs, models, skill))
            listed.append(score_specialist(inputs, models, skill))
            (listed if inputs.config.pack_budget is None else zips).append(zip_skill(inputs, models, skill))
    if zips:  # one budget for all packs: it is split when all deltas are there
        listed += [split_budget(inputs, models), *zips]
    if inputs.config.audit is not None:
        listed += [audit_skill(inputs, models, skill) for skill in skills]
    return listed


def weave_steps(inputs: BuildInputs, models: BuildModels) -> list[BuildStep]:
    """The second half: the packs become a weave, which is scored."""
    skills = list(inputs.config.skills)
    listed = [fit_weave_router(inputs, models), put_together(inputs, models)]
    listed += [score_pack(inputs, models, skill) for skill in skills]
    listed += [score_routed(inputs, models, skill) for skill in skills]
    return [*listed, confusion(inputs, models), measure_speed(inputs, models)]


# -- the backbone ------------------------------------------------------------------------------------------------------


def unlearn(inputs: BuildInputs, models: BuildModels) -> BuildStep:
    """Make the delta that takes knowledge out of the base."""
    settings, method = inputs.config.unlearning(), get_method(UNLEARNING)
    assert settings is not None

    def work(folder: Path) -> None:
        method.run(models.base, settings, folder)

    title = f"backbone: {UNLEARNING}: take knowledge out of the base"
    return BuildStep("backbone/unlearn", title, (BASE,), unlearning_inputs(settings), work)


def unlearning_inputs(settings: CkuConfig) -> dict[str, Any]:
    """The inputs of the unlearning besides the base: its settings, and the SHA-256 of each file that they name.

    Where the training log goes (``report_to``) does not count. Raises :class:`UserError` for a missing file.
    """
    named = {"forget": settings.forget, "retain": settings.retain, "unseen": settings.unseen or []}
    hashes: dict[str, list[str]] = {}
    for key, files in named.items():
        for file in files:
            if not file.is_file():
                raise UserError(f"unlearn.{key}: {file} does not exist: name a JSONL file (looked in {Path.cwd()})")
        hashes[key] = [sha256_file(file) for file in files]
    return {"unlearn": settings.model_dump(mode="json", exclude={"report_to"}), "files": hashes}


def write_backbone(inputs: BuildInputs, models: BuildModels) -> BuildStep:
    """Write the unlearnt base as a model folder. Its fingerprint, which this step makes, is an input of the skills."""

    def work(folder: Path) -> None:
        write_tuned(models.base.path, Delta.from_pretrained(inputs.work.unlearning / "delta"), folder / "model")

    def fingerprint_of_backbone() -> str:
        key = fingerprint(inputs.work.backbone)
        inputs.check_packs(key)
        return key

    makes = {BACKBONE: fingerprint_of_backbone}
    return BuildStep("backbone/model", "backbone: write the unlearnt base", ("backbone/unlearn",), {}, work, makes)


# -- one skill ---------------------------------------------------------------------------------------------------------


def score_base(inputs: BuildInputs, models: BuildModels, skill: str) -> BuildStep:
    """Score the backbone before anything is learnt."""
    return score(inputs, skill, "base", (BACKBONE,), lambda: Weave.of(models.backbone))


def specialise(inputs: BuildInputs, models: BuildModels, skill: str) -> BuildStep:
    """Make the skill's delta by its method."""
    name, settings = inputs.config.skills[skill].method, inputs.config.method_config(skill)
    method = get_method(name)

    def work(folder: Path) -> None:
        method.run(models.backbone, settings, folder)

    inputs_of_method = {"method": name, "settings": settings.model_dump(mode="json", exclude={"report_to"})}
    title = f"{skill}: {name}: grow the specialist"
    return BuildStep(f"{skill}/delta", title, (BACKBONE, *inputs.prompt_inputs(skill)), inputs_of_method, work)


def score_specialist(inputs: BuildInputs, models: BuildModels, skill: str) -> BuildStep:
    """Score the base with the skill's whole delta, and print one prompt with the answers of base and specialist."""
    scored = score(inputs, skill, "specialist", (f"{skill}/delta",), lambda: models.specialist(skill))

    def work(folder: Path) -> None:
        scored.work(folder)
        show_example(inputs.work.step(f"{skill}/score-base"), folder)

    return replace(scored, work=work)


def zip_skill(inputs: BuildInputs, models: BuildModels, skill: str) -> BuildStep:
    """Zip the skill's delta into a pack."""
    settings, shared = inputs.config.zip_config(skill), inputs.config.pack_budget is not None

    def work(folder: Path) -> None:
        task, unfinished = inputs.tasks[skill], folder / "refine"  # builds of earlier versions resume with this name
        limit = {"ratio": None, "budget": read_shares(inputs).skills[skill].bytes} if shared else {}
        pack = zip_delta(
            Delta.from_pretrained(inputs.work.delta(skill)),
            models.backbone,
            task.pairs("calibration") if settings.needs_calibration else None,
            settings.model_copy(update=limit),
            refine_on=task.examples(("calibration", "train"), settings.refine.prompts) if settings.refine else None,
            work=unfinished,
            **inputs.card(skill),
        )
        pack.save_pretrained(folder / "pack")
        drop(unfinished)

    # The pack's card shows both scores, so the pack is written again when they change.
    needs: tuple[str, ...] = (f"{skill}/delta", f"{skill}/score-base", f"{skill}/score-specialist")
    # Without a refinement its key is left out, as in builds of versions that had none: they need not zip again.
    left_out = set() if settings.refine else {"refine"}
    if shared:
        needs, left_out = (*needs, f"{skill}/bytes"), left_out | {"ratio", "budget"}
    recorded = settings.model_dump(mode="json", exclude=left_out)
    return BuildStep(f"{skill}/pack", f"{skill}: zip the delta", needs, {"zip": recorded}, work)


def take_pack(inputs: BuildInputs, skill: str) -> BuildStep:
    """Copy a ready pack."""
    ready = inputs.packs[skill]

    def work(folder: Path) -> None:
        ready.save_pretrained(folder / "pack")

    return BuildStep(f"{skill}/pack", f"{skill}: take the ready pack", (), {"files": ready.card.files}, work)


def audit_skill(inputs: BuildInputs, models: BuildModels, skill: str) -> BuildStep:
    """Audit the skill's pack against the base, and write a copy of it with the audit on its card."""
    settings = inputs.config.audit
    assert settings is not None
    files = {"prompts": settings.prompts, **({"reference": settings.reference} if settings.reference else {})}
    for key, file in files.items():
        if not file.is_file():
            raise UserError(f"audit.{key}: {file} does not exist: name a file (looked in {Path.cwd()})")
    read_audit_prompts(settings.prompts)  # a mistake in a file is found before the skills are trained
    reference = read_reference(settings.reference)
    hashes = {key: sha256_file(file) for key, file in files.items()}

    def work(folder: Path) -> None:
        audited = models.audited
        pack = Skillpack.from_pretrained(inputs.work.pack(skill))
        verdict, _ = audit_checkpoint(audited, pack, reference, f"the pack '{skill}'")
        pack.card.audit = pack_audit(verdict, pack).model_dump(mode="json")
        pack.save_pretrained(folder / "pack")
        write_json(folder / _VERDICT, verdict.model_dump(mode="json"))

    title = f"{skill}: audit the pack"
    recorded = {"audit": settings.model_dump(mode="json"), "files": hashes}
    return BuildStep(f"{skill}/audit", title, (BACKBONE, f"{skill}/pack"), recorded, work)


def held_back(inputs: BuildInputs) -> dict[str, list[str]]:
    """The skills whose audit raised an alarm, each with the evidence; empty if nothing is audited, or not yet."""
    if inputs.config.audit is None:
        return {}
    folders = {skill: inputs.work.step(f"{skill}/audit") for skill in inputs.config.skills}
    verdicts = {skill: read_verdict(folder) for skill, folder in folders.items() if (folder / _VERDICT).is_file()}
    return {skill: verdict["evidence"] for skill, verdict in verdicts.items() if verdict["outcome"] == ALARM}


def read_verdict(folder: Path) -> dict[str, Any]:
    """The verdict that the step of :func:`audit_skill` wrote into its folder."""
    return read_result(folder, _VERDICT, {"outcome": str, "evidence": list})


# -- the weave ---------------------------------------------------------------------------------------------------------


def fit_weave_router(inputs: BuildInputs, models: BuildModels) -> BuildStep:
    """Fit the router on train prompts of every skill and on prompts for the plain base."""
    config, chosen = inputs.config, inputs.config.router

    def work(folder: Path) -> None:
        own = {
            skill: [entry.prompt for entry in task.distinct("train")[: chosen.prompts]]
            for skill, task in inputs.tasks.items()
        }
        settings = chosen.model_dump(include={"layer", "stray", "miss"})
        fitted = fit_router(models.backbone, own, BACKGROUND[0], **settings, seed=config.seed)
        fitted.save(folder / "router")

    settings = {"router": chosen.model_dump(mode="json"), "seed": config.seed, "dtype": config.dtype}
    needs = (BACKBONE, *(f"{skill}/task" for skill in config.skills))
    return BuildStep("weave/router", "weave: fit the router", needs, settings, work)


def put_together(inputs: BuildInputs, models: BuildModels) -> BuildStep:
    """Write the weave: packs, router, and the backbone's delta if there is one."""
    config, place = inputs.config, inputs.work

    def work(folder: Path) -> None:
        check_bytes(inputs)
        Weave.write(
            place.weave,
            models.backbone,
            {skill: inputs.final_pack(skill) for skill in config.skills},
            Router.load(place.router),
            backbone=None if config.unlearn is None else place.unlearning / "delta",
            backbone_codes=config.backbone,
            dtype=config.dtype,
            budget=config.budget,
        )

    needs = ("weave/router", *(f"{skill}/{'audit' if config.audit else 'pack'}" for skill in config.skills))
    if config.unlearn is not None:
        needs = (*needs, "backbone/unlearn")
    settings = {"dtype": config.dtype, "budget": config.budget} | _served(config)
    if config.pack_budget is not None:
        settings["pack_budget"] = config.pack_budget
    return BuildStep("weave/woven", "weave: put packs and router together", needs, settings, work)


def score_pack(inputs: BuildInputs, models: BuildModels, skill: str) -> BuildStep:
    """Score the skill's pack in the weave, named by the caller (oracle routing)."""
    return score(inputs, skill, "pack", (BACKBONE, f"{skill}/pack"), lambda: models.weave, skill)


def score_routed(inputs: BuildInputs, models: BuildModels, skill: str) -> BuildStep:
    """Score the weave on the skill's prompts while the router chooses among all packs."""
    packs = (f"{name}/pack" for name in inputs.config.skills)
    return score(inputs, skill, "routed", ("weave/router", *packs), lambda: models.weave, AUTO)


def confusion(inputs: BuildInputs, models: BuildModels) -> BuildStep:
    """Count to which pack the router sent the test prompts of each skill, and everyday prompts."""
    skills = list(inputs.config.skills)

    def work(folder: Path) -> None:
        rows = {skill: read_packs(inputs.work.step(f"{skill}/score-routed")) for skill in skills}
        rows["(anything else)"] = [route.pack for route in models.weave.route(BACKGROUND[1])]
        columns: list[str | None] = [*skills, None]
        counts = [[packs.count(column) for column in columns] for packs in rows.values()]
        names = [column or TO_BASE for column in columns]
        write_json(folder / "confusion.json", {"rows": list(rows), "columns": names, "counts": counts})

    needs = tuple(f"{skill}/score-routed" for skill in skills)
    return BuildStep("weave/confusion", "weave: where the router sends each prompt", needs, {}, work)


def measure_speed(inputs: BuildInputs, models: BuildModels) -> BuildStep:
    """Time a mixed batch in the weave beside a separate model for each skill."""
    tasks = {skill: inputs.tasks[skill] for skill in inputs.config.skills}

    def work(folder: Path) -> None:
        prompts = {skill: [entry.prompt for entry in task.split("test")] for skill, task in tasks.items()}
        write_json(folder / "speed.json", compare_speed(models.weave, prompts))

    return BuildStep("weave/speed", "weave: how fast a mixed batch is", ("weave/woven",), {}, work)


def _served(config: WeaveConfig) -> dict[str, str]:
    """The part of a step's settings for a weave that is served in another form than the skills are made in."""
    return {} if config.backbone is None else {"backbone": config.backbone}


# -- scores ------------------------------------------------------------------------------------------------------------


def score(
    inputs: BuildInputs,
    skill: str,
    arm: str,
    needs: tuple[str, ...],
    open_weave: Callable[[], Weave],
    pack: str | None = None,
) -> BuildStep:
    """Score one arm on the skill's test prompts. ``pack`` is the pack that answers, as in :meth:`Weave.generate`."""
    config, task, use = inputs.config, inputs.tasks[skill], inputs.config.tool_use(skill)

    def work(folder: Path) -> None:
        sampling = Sampling(max_new_tokens=config.score.max_new_tokens, batch_size=config.score.batch_size)
        score_once(folder, task, answers(open_weave(), pack, task, use, sampling), limit=config.score.limit)

    settings = {"score": config.score.model_dump(mode="json"), "dtype": config.dtype}
    if arm in ("pack", "routed"):
        settings |= _served(config)
    if use is not None:
        settings["tools"] = use.model_dump(mode="json")
    title = f"{skill}: score the {ARMS[arm]}"
    return BuildStep(f"{skill}/score-{arm}", title, (*inputs.prompt_inputs(skill), *needs), settings, work)
