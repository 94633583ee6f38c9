"""The build: it checks its inputs, runs its steps, and puts the weave and its report in place.

The output folder is the weave with its report, put in place whole at the end. Beside it, ``NAME.work/`` holds what the
steps left (checkpoints, deltas, packs, every answer behind a figure), so that the next run skips what is done. It may
be deleted if no rebuild is wanted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from skillweave.artefact import atomic_folder
from skillweave.base.precision import describe
from skillweave.delta.delta import PARTS as DELTA_PARTS
from skillweave.errors import UserError
from skillweave.files.lock import claim
from skillweave.files.place import check_parts, is_mount, is_occupied, place_of
from skillweave.pack.stored import PARTS as PACK_PARTS
from skillweave.pipeline.config import WeaveConfig
from skillweave.pipeline.inputs import BuildModels, check_inputs, read_inputs
from skillweave.pipeline.report import HELD_BACK, build_report, write_build_report
from skillweave.pipeline.shares import check_ready_packs
from skillweave.pipeline.step import BuildStep, base_key, remember_base, run_step
from skillweave.pipeline.steps import held_back, skill_steps, weave_steps
from skillweave.progress import console
from skillweave.report.page import PAGE_PARTS
from skillweave.weave import is_weave
from skillweave.weave.card import WEAVE_FILE
from skillweave.weave.router import PARTS as ROUTER_PARTS

_PARTS = (
    WEAVE_FILE,
    *(f"packs/*/{part}" for part in PACK_PARTS),
    *(f"router/{part}" for part in ROUTER_PARTS),
    *(f"backbone/{part}" for part in DELTA_PARTS),
    *PAGE_PARTS,
)
"""Paths of all files that a weave and its report may have."""


def build(
    config: WeaveConfig, out: Path, *, command: str, before_step: Callable[[str], object] = lambda step: None
) -> dict[str, Any]:
    """Build the weave that ``config`` describes in ``out`` and return its report (as ``report.json`` holds it).

    - Steps that are done and unchanged are skipped; a killed build resumes where it stopped.
    - ``command`` is written into the report as the way to make it again.
    - Packs that the audit of weave.yaml holds back are not in the weave; the report names them under ``held_back``.
    - ``before_step`` is called before each step that is worked on, with the step's name (``json_calls/delta``).

    Raises :class:`UserError` if ``out`` holds something that is not a weave, or no part of one: it would be replaced.
    """
    work = work_folder(out)
    # Both are claimed for as long as the build takes: another build there would undo its steps.
    with claim(out), claim(work):
        if not is_weave(out) and is_occupied(place_of(out).path):
            raise UserError(
                f"{out} holds something that is not a weave, and would be replaced: choose another place with --out"
            )
        check_parts(out, _PARTS, "weave")
        return _build(config, out, work, command, before_step)


def work_folder(out: Path) -> Path:
    """The folder of the steps, ``NAME.work`` beside ``out``. Raises :class:`UserError` if ``out`` is a mount point."""
    place = place_of(out).path
    if is_mount(place):
        raise UserError(f"{out} is a mount point, and a build keeps its steps beside its weave: use {out}/NAME")
    return place.with_name(f"{place.name}.work")


def _build(
    config: WeaveConfig, out: Path, work: Path, command: str, before_step: Callable[[str], object]
) -> dict[str, Any]:
    console.print(Text.assemble(("base", "bold"), f" {config.base}"))
    models = BuildModels(config, work)
    dtype, base_config = models.base.model.dtype, models.base.model.config
    console.print(f"  {describe(dtype, models.base.model.device)}", soft_wrap=True)
    fingerprint = models.base.fingerprint
    key = base_key(work, fingerprint, base_config)
    inputs = read_inputs(
        config,
        work,
        fingerprint=fingerprint,
        key=key,
        dtype=str(dtype).removeprefix("torch."),
        tokenizer=models.base.tokenizer,
    )
    check_inputs(inputs, models.base)
    check_ready_packs(inputs)
    remember_base(work, fingerprint, key, base_config)
    keys = dict(inputs.keys)

    def run_all(listed: Sequence[BuildStep]) -> None:
        for step in listed:
            work_on = _announced(step, before_step)
            keys[step.name] = run_step(step.title, inputs.work.step(step.name), step.inputs(keys), work_on)
            keys.update({name: key() for name, key in step.makes.items()})

    run_all(skill_steps(inputs, models))
    held = held_back(inputs)
    if len(held) == len(config.skills):
        raise UserError(f"{HELD_BACK.format(', '.join(held))} No pack is left, so there is no weave. {_evidence(held)}")
    passed = inputs.without(held)
    run_all(weave_steps(passed, models))
    report = build_report(passed, models, keys, command, held)
    with atomic_folder(out) as folder:
        shutil.copytree(inputs.work.weave, folder, dirs_exist_ok=True)
        write_build_report(report, folder)
    return report


def _evidence(held: Mapping[str, Sequence[str]]) -> str:
    return " ".join(f"{skill}: {' '.join(evidence)}" for skill, evidence in held.items())


def _announced(step: BuildStep, before_step: Callable[[str], object]) -> Callable[[Path], object]:
    """The work of a step, with a call of ``before_step`` in front of it."""

    def work(folder: Path) -> object:
        before_step(step.name)
        return step.work(folder)

    return work
