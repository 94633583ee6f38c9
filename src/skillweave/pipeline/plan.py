"""The plan of a build: which of its steps are done, which are not, and which must be done again, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from skillweave.base import Checkpoint, fingerprint, open_tokenizer, resolve
from skillweave.base.load import stored_dtype
from skillweave.base.open import as_device, as_dtype
from skillweave.base.precision import automatic_dtype
from skillweave.pipeline.config import WeaveConfig
from skillweave.pipeline.inputs import BuildModels, read_inputs
from skillweave.pipeline.run import work_folder
from skillweave.pipeline.step import BuildStep, base_key, read_marker, step_key
from skillweave.pipeline.steps import steps

State = Literal["done", "to do", "begun", "to do again", "perhaps again"]
"""``begun``: a kill stopped it, and it resumes. ``to do again``: done or begun for inputs that have changed since.
``perhaps again``: it builds on an input that an earlier step has yet to make."""


@dataclass(frozen=True)
class PlannedStep:
    """One step of the plan."""

    name: str
    title: str
    state: State
    because: tuple[str, ...]
    """The inputs that changed (``to do again``), or the steps whose result is not known yet (``perhaps again``)."""
    seconds: float | None
    """How long the step took when it was last finished; None if it never was, or was begun again since."""


def plan_build(config: WeaveConfig, out: Path) -> list[PlannedStep]:
    """The steps that ``build(config, out)`` has, each with its state. Nothing is run or written, no model is loaded.

    The files of the base, the tasks and the ready packs are read, because they are inputs of the steps; a base on the
    hub is downloaded if it is not in the cache. Raises :class:`UserError` for what cannot be read.
    """
    folder = resolve(config.base)
    work = work_folder(out)
    of_base = fingerprint(folder)
    inputs = read_inputs(
        config,
        work,
        fingerprint=of_base,
        key=base_key(work, of_base, Checkpoint(folder).config),
        dtype=str(dtype_in_memory(folder, config)).removeprefix("torch."),
        tokenizer=open_tokenizer(folder),
    )
    keys = dict(inputs.keys)
    makers: dict[str, str] = {}
    planned: list[PlannedStep] = []
    for step in steps(inputs, BuildModels(config, work)):
        marker = read_marker(inputs.work.step(step.name))
        state, because = _state(step, marker, keys, planned)
        shown = tuple(dict.fromkeys(makers.get(name, name) for name in because))
        planned.append(PlannedStep(step.name, step.title, state, shown, marker.get("seconds")))
        makers |= dict.fromkeys(step.makes, step.name)
        if all(need in keys for need in step.needs):
            keys[step.name] = step_key(step.inputs(keys))
        if state == "done":
            keys |= {name: key() for name, key in step.makes.items()}
    return planned


def _state(
    step: BuildStep, marker: Mapping[str, Any], keys: Mapping[str, str], before: list[PlannedStep]
) -> tuple[State, tuple[str, ...]]:
    """The state of a step, and the reason for it. ``before`` has the steps that come first in the list."""
    if not marker:
        return "to do", ()
    unknown = [need for need in step.needs if need not in keys]
    again = {planned.name for planned in before if planned.state == "to do again"}
    changed = [*step.changes(marker["inputs"], keys), *(need for need in unknown if need in again)]
    if unknown and not changed:
        return "perhaps again", tuple(unknown)
    if changed or step_key(step.inputs(keys)) != marker["key"]:
        return "to do again", tuple(changed)
    return ("done" if marker["done"] else "begun"), ()


def dtype_in_memory(folder: Path, config: WeaveConfig) -> torch.dtype:
    """The dtype that the weights of the base in ``folder`` have once ``open_base`` has loaded it."""
    wanted = as_dtype(config.dtype)
    if wanted is not None:
        return wanted
    files = Checkpoint(folder)
    stored = stored_dtype(files)
    nbytes = stored.itemsize * sum(parameter.numel() for parameter in files.skeleton.parameters())
    return automatic_dtype(stored, as_device(config.device), nbytes, config.budget)
