"""A step of the build: done once for given inputs, resumed after a kill, and done again when an input changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from skillweave.artefact import disk_errors, sweep, write_json
from skillweave.delta.config_values import other_than_recorded, recorded_values
from skillweave.errors import UserError, shown_value
from skillweave.files.disk import make_folders
from skillweave.files.hashes import digest
from skillweave.files.read import read_object
from skillweave.files.recover import drop
from skillweave.progress import console, say_once

MARKER = "step.json"
"""The file in a step's folder that holds the inputs, their key, whether the step is done, and its seconds."""

BASE, BACKBONE = "base", "backbone"
"""Names of two inputs: the base that weave.yaml names, and the model that every skill is built on. They are one model
where nothing is unlearnt."""

BASE_FILE = "base.json"
"""The file in a work folder that holds the fingerprint, the config and the key of the base of its steps."""

_LABELS = {BACKBONE: "base"}
"""Input -> the label that step.json gives it. The key of a step is a digest of the labels too, so they cannot change:
a build that was begun earlier would start again."""


@dataclass(frozen=True)
class BuildStep:
    """One line in the list of steps (:func:`skillweave.pipeline.steps.steps`)."""

    name: str
    """The step's folder below the work folder, for example ``sort/delta``."""
    title: str
    """What the step does, for a person: "zip the delta"."""
    needs: tuple[str, ...]
    """Names of what the step builds on: earlier steps, and inputs that exist before any step."""
    settings: Mapping[str, Any]
    """The settings that change the result, as JSON holds them."""
    work: Callable[[Path], object]
    """Does the step in its folder, and resumes there what a kill cut off."""
    makes: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    """Inputs that are known only once this step is done: name -> function that returns the input's key."""

    def inputs(self, keys: Mapping[str, str]) -> dict[str, Any]:
        """All inputs of the step, as step.json holds them.

        ``keys`` maps the names of inputs and of earlier steps to their keys. A need without a key is left out: see
        :func:`skillweave.pipeline.plan.plan_build`.
        """
        built_on = {_LABELS.get(name, name): keys[name] for name in self.needs if name in keys}
        return {"built_on": built_on, **self.settings}

    def changes(self, recorded: Mapping[str, Any], keys: Mapping[str, str]) -> list[str]:
        """The inputs that differ from the ``recorded`` ones of step.json, for a person.

        An input that was built on is shown by its name (``sort/delta``), a setting with both values
        (``zip.ratio (0.5, now 0.25)``). Needs that have no key yet do not count.
        """
        before = dict(recorded.get("built_on", {}))
        changed = []
        for name in self.needs:
            key = before.pop(_LABELS.get(name, name), None)
            if name in keys and keys[name] != key:
                changed.append(BASE if keys[name] == keys[BASE] else name)
        changed += [f"{name} (no longer used)" for name in before]
        settings = {name: value for name, value in recorded.items() if name != "built_on"}
        return changed + _differences(settings, dict(self.settings), "")


def base_key(work: Path, fingerprint: str, config: Any) -> str:
    """The key of the base as an input of the steps in a work folder: another one for another config.

    It is the fingerprint, as in earlier versions, until the steps of the folder meet a base with the same weights and
    other values in its ``config``, by what :func:`remember_base` wrote there.
    """
    stored = _known_bases(work).get(fingerprint)
    if stored is None:
        return fingerprint
    if (other := other_than_recorded(stored["config"], config)) is None:
        return str(stored["key"])
    say_once(f"The base has the weights that it had in {work}, and another config: {other}")
    return f"{fingerprint} {digest(recorded_values(config))}"


def remember_base(work: Path, fingerprint: str, key: str, config: Any) -> None:
    """Write the base, and its key by :func:`base_key`, into the work folder, unless they are there."""
    known = _known_bases(work)
    entry = {"key": key, "config": recorded_values(config)}
    if known.get(fingerprint) != entry:
        make_folders(work)
        write_json(work / BASE_FILE, {**known, fingerprint: entry})


def _known_bases(work: Path) -> dict[str, Any]:
    """The bases that steps of a work folder ran on: fingerprint -> the last key and config."""
    file = work / BASE_FILE
    if not file.exists():
        return {}
    fix = f"Delete {work} to build all steps again, or only this file if the base is the one that they were built on"
    known = read_object(file, {}, fix)
    for fingerprint, entry in known.items():
        if not (isinstance(entry, dict) and isinstance(entry.get("config"), dict) and "key" in entry):
            raise UserError(f"{file}: the entry of the base {fingerprint!r:.20} is damaged. {fix}")
    return known


def read_marker(folder: Path) -> dict[str, Any]:
    """The contents of a step's marker file; an empty dict if the step was never begun."""
    marker = folder / MARKER
    if not marker.exists():
        return {}
    keys = {"key": str, "done": bool, "inputs": dict}
    state = read_object(marker, keys, again(folder), optional={"seconds": (int, float)})
    if not isinstance(state["inputs"].get("built_on", {}), dict):
        raise UserError(f"{marker}: 'built_on' is {shown_value(state['inputs']['built_on'])}. {again(folder)}")
    return state


def read_result(folder: Path, name: str, keys: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The object in the JSON file ``name`` of a finished step, which has these keys (see :func:`read_object`)."""
    return read_object(folder / name, keys, again(folder))


def again(folder: Path) -> str:
    """What to do about a file of a step that is missing or damaged."""
    return f"Delete {folder} and build again: the step is then done anew"


def step_seconds(folder: Path) -> float:
    """The seconds that a finished step took, without the part before a kill; 0 if no finished step is there."""
    return read_marker(folder).get("seconds", 0.0)


def step_key(inputs: Mapping[str, Any]) -> str:
    """The key of a step's inputs, which also names its result: equal inputs give equal keys."""
    return digest(inputs)


def run_step(title: str, folder: Path, inputs: Mapping[str, Any], work: Callable[[Path], object]) -> str:
    """Run ``work(folder)`` unless it finished for equal ``inputs`` before; return the key of those inputs.

    - Done for equal inputs: nothing is run.
    - Begun for equal inputs, and not finished: ``work`` gets the folder as the kill left it, and resumes what it saved.
    - Any other inputs: the folder is emptied first.

    The key names the step's result: pass it on as an input of the steps that build on this one.
    """
    key = step_key(inputs)
    with disk_errors(folder):
        sweep(folder)
        state = read_marker(folder)
    if state.get("key") == key and state.get("done"):
        console.print(f"- {title}: done before, unchanged", style="dim")
        return key
    if state.get("key") == key:
        console.print(Text.assemble((title, "bold"), " (resumes where it stopped)"))
    else:
        console.print(title, style="bold")
        # In one move: a kill must not leave the marker of a finished step beside files that are gone.
        with disk_errors(folder):
            drop(folder)
            make_folders(folder)
        write_json(folder / MARKER, {"key": key, "done": False, "inputs": inputs})
    began = time.monotonic()
    work(folder)
    seconds = round(time.monotonic() - began, 1)
    write_json(folder / MARKER, {"key": key, "done": True, "seconds": seconds, "inputs": inputs})
    return key


def _differences(old: Any, new: Any, at: str) -> list[str]:
    """The places below ``at`` where two JSON values differ, each with both values."""
    if old == new:
        return []
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [f"{at} ({_short(old)}, now {_short(new)})"]
    changed = []
    for key in dict.fromkeys([*old, *new]):
        place = f"{at}.{key}" if at else str(key)
        if key not in new:
            changed.append(f"{place} (was {_short(old[key])}, now not set)")
        elif key not in old:
            changed.append(f"{place} (new: {_short(new[key])})")
        else:
            changed += _differences(old[key], new[key], place)
    return changed


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
