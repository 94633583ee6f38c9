"""What the package uses below the public surface of its libraries is still there and still does what it relies on."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from skillweave.methods.training.trl_hooks import CHECKED, HOOKS, Hook

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def resolve(path: str) -> Any:
    """The object of a dotted name. Raises AttributeError with the part that is missing."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AttributeError(path)


def what_changed(hook: Hook) -> str:
    """A sentence that says what is no longer true of the installed library; empty if all is well."""
    library = hook.path.partition(".")[0]
    name = f"{hook.path} of {library} {version(library)}"
    advice = (
        f"skillweave.methods.{hook.used_in} relies on this: {hook.relies_on} Adapt that module and its row in "
        f"trl_hooks.HOOKS, or lower the upper bound of {library} in pyproject.toml."
    )
    try:
        found = resolve(hook.path)
    except AttributeError:
        return f"{name} does not exist. {advice}"
    if hook.parameters:
        names = list(inspect.signature(found).parameters)
        missing = [parameter for parameter in hook.parameters if parameter not in names]
        if missing:
            return f"{name} has no parameter {', '.join(missing)} (it has {', '.join(names)}). {advice}"
        places = [names.index(parameter) for parameter in hook.parameters]
        if places != sorted(places):
            return f"{name} has its parameters in another order: {', '.join(names)}. {advice}"
    text = inspect.getsource(inspect.unwrap(found)) if hook.source else ""
    gone = [piece for piece in hook.source if piece not in text]
    if gone:
        return f"the source of {name} no longer contains {' nor '.join(map(repr, gone))}. {advice}"
    return ""


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.path)
def test_a_hook_is_as_we_rely_on_it(hook: Hook) -> None:
    assert not (changed := what_changed(hook)), changed


def test_the_message_says_what_changed_and_who_relies_on_it() -> None:
    gone = Hook("trl.trainer.utils.no_such_head", "training.head", "It scores answers.")
    assert "no_such_head of trl" in what_changed(gone)
    assert "does not exist. skillweave.methods.training.head relies on this: It scores answers." in what_changed(gone)
    renamed = Hook("trl.trainer.utils.add_fused_lm_head", "training.head", "It patches.", parameters=("network",))
    assert "has no parameter network (it has model, " in what_changed(renamed)
    turned = Hook("trl.trainer.utils.add_fused_lm_head", "x", "It patches.", parameters=("temperature", "model"))
    assert "in another order" in what_changed(turned)
    rewritten = Hook("trl.trainer.utils.add_fused_lm_head", "x", "It patches.", source=("self.nothing()",))
    assert "no longer contains 'self.nothing()'" in what_changed(rewritten)


@pytest.mark.parametrize("library", CHECKED)
def test_the_bounds_allow_what_was_checked(library: str) -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    bounds = {req.name: req.specifier for req in map(Requirement, project["dependencies"])}[library]
    oldest, newest = CHECKED[library]
    assert Version(oldest) <= Version(newest)
    lower = [Version(bound.version) for bound in bounds if bound.operator == ">="]
    assert lower == [Version(oldest)], f"{library}: the lower bound and the oldest version that was checked differ"
    assert Version(newest) in bounds
    upper = [Version(bound.version) for bound in bounds if bound.operator == "<"]
    major, minor = Version(newest).release[:2]
    assert upper == [Version(f"{major}.{minor + 1}")], f"{library}: newer minor versions were not checked"
