"""The settings reference: up to date, complete, and every setting described."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import skillweave
from skillweave.config import Config

ROOT = Path(__file__).parents[2]

# These classes are not settings that a person writes: the shape of a micro model, bases of classes that are listed
# themselves, parts of a verifier's own bookkeeping.
NOT_LISTED = {"MicroShape", "Span", "PlaceOptions", "OwnOptions"}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs" / ".site" / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()
LISTED = GENERATOR.sections()


def _all_configs() -> set[type[Config]]:
    for module in pkgutil.walk_packages(skillweave.__path__, "skillweave."):
        if not module.name.endswith(("__main__", "process_child", "maths_worker", "triton_kernel")):
            importlib.import_module(module.name)
    classes: set[type[Config]] = set()
    todo = [Config]
    while todo:
        todo = [child for cls in todo for child in cls.__subclasses__()]
        classes.update(todo)
    return {cls for cls in classes if cls.__module__.startswith("skillweave.")}


def test_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert written == GENERATOR.page(), "run: python docs/.site/settings.py"


def test_every_class_is_on_the_page() -> None:
    listed = set(LISTED)
    missing = {
        cls.__name__
        for cls in _all_configs() - listed
        # A class whose settings all stand in the table of a class derived from it needs no table of its own.
        if not any(issubclass(other, cls) for other in listed) and not cls.__name__.startswith("_")
    }
    assert missing <= NOT_LISTED


def test_headings_differ() -> None:
    headings = [heading for heading, _ in LISTED.values()]
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("cls", LISTED, ids=[heading for heading, _ in LISTED.values()])
def test_every_setting_is_described(cls: type[Config]) -> None:
    # `source` only tells the kinds of a task apart, and has no row in the tables.
    silent = [name for name, field in cls.model_fields.items() if name != "source" and not field.description]
    assert not silent


@pytest.mark.parametrize("cls", LISTED, ids=[heading for heading, _ in LISTED.values()])
def test_table_has_every_setting(cls: type[Config]) -> None:
    heading = LISTED[cls][0]
    section = GENERATOR.page().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for name in set(cls.model_fields) - {"source"}:
        assert f"\n| `{name}` |" in section


def test_types_and_defaults_as_yaml_writes_them() -> None:
    from skillweave.methods.specialise.config import SpecialiseConfig
    from skillweave.pipeline.config import WeaveConfig

    headings = {cls: heading for cls, (heading, _) in LISTED.items()}
    fields = WeaveConfig.model_fields
    assert GENERATOR.row("budget", fields["budget"], headings).startswith("| `budget` | bytes | none |")
    assert GENERATOR.row("seed", fields["seed"], headings).startswith("| `seed` | integer | `0` |")
    assert "(#cku-unlearn)" in GENERATOR.row("unlearn", fields["unlearn"], headings)
    assert "| required |" in GENERATOR.row("base", fields["base"], headings)
    fields = SpecialiseConfig.model_fields
    assert "number, > 0, ≤ 1 | `0.5` |" in GENERATOR.row("threshold", fields["threshold"], headings)
    assert "| `full`, `lora` | `full` |" in GENERATOR.row("train", fields["train"], headings)
