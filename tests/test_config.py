"""Settings are strict, and every error has the place and the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from skillweave.config import ByteSize, Config, Ratio, read_config
from skillweave.errors import UserError


class Inner(Config):
    learning_rate: float = Field(1e-4, gt=0)


class Outer(Config):
    base: str
    ratio: Ratio = 1 / 32
    budget: ByteSize | None = None
    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)


class Sized(Config):
    steps: int = 1
    share: float = Field(0.5, gt=0)
    budget: ByteSize | None = None
    limit: Annotated[int, Field(ge=0)] | None = None
    flag: bool = False
    flag_or_count: bool | int = 3


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("number", ["9999999999999999999", f"-{10**30}", "1e400"])
def test_a_number_that_no_setting_is_as_large_as_is_named(number: str) -> None:
    with pytest.raises(UserError, match=rf"--set steps={number}: steps: .* \(found "):
        read_config(Sized, {}, [f"steps={number}"])
    assert read_config(Sized, {}, ["steps=-123456789012345678"]).steps == -123456789012345678


def test_yes_is_no_number(tmp_path: Path) -> None:
    for key in ("steps", "share", "budget", "limit"):
        with pytest.raises(UserError, match=rf"c\.yaml, line 1: {key}: a number is expected, not true or false"):
            read_config(Sized, write(tmp_path, f"{key}: yes\n"))
    with pytest.raises(UserError, match=r"line 2: inner\.learning_rate: a number is expected"):
        read_config(Outer, write(tmp_path, "base: b\ninner: {learning_rate: on}\n"))
    assert read_config(Sized, write(tmp_path, "flag: on\nflag_or_count: no\n")).flag_or_count is False


def test_yaml_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "base: b\nratio: 1/64\nbudget: 1.5MiB\ninner: {learning_rate: 0.5}\n")
    config = read_config(Outer, path, ["inner.learning_rate=1e-3", "many.x.learning_rate=2.0"])
    assert config.ratio == 1 / 64
    assert config.budget == 1572864
    assert config.inner.learning_rate == 1e-3
    assert config.many["x"].learning_rate == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base: b\ninner:\n  learning_rat: 1\n",
            r"line 3: unknown key 'inner\.learning_rat'; did you mean 'learning_rate'",
        ),
        ("base: b\nmany:\n  x:\n    lr: 1\n", r"line 4: unknown key 'many\.x\.lr'; known: learning_rate"),
        ("base: b\nlearning_rate: 1\n", r"line 2: unknown key 'learning_rate'; did you mean 'inner\.learning_rate'\?"),
        ("bas: b\n", r"unknown key 'bas'; did you mean 'base'"),
        ("ratio: 1/2\n", r"the key 'base' is missing"),
        ("base: b\ninner:\n  learning_rate: -1\n", r"line 3: inner\.learning_rate: .*greater than 0 \(found -1\)"),
        ("base: b\nbudget: 3 parsecs\n", r"unknown unit 'parsecs'"),
        ("base: [\n", r"not valid YAML"),
        ("- a\n", r"expected keys and values, found list"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config(Outer, write(tmp_path, text))


def test_bad_overrides() -> None:
    with pytest.raises(UserError, match="key=value"):
        read_config(Outer, {"base": "b"}, ["inner"])
    with pytest.raises(UserError, match="holds a value"):
        read_config(Outer, {"base": "b"}, ["base.x=1"])


def test_a_mistake_in_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "base: b\n")
    with pytest.raises(UserError, match=r"^--set inner\.rate=\.\.\.: unknown key 'inner\.rate'"):
        read_config(Outer, path, ["inner.rate=1"])
    with pytest.raises(UserError, match=r"^--set base=5: base"):  # the last one counts
        read_config(Outer, path, ["base=a", "base=5"])
    with pytest.raises(UserError, match=r"^--set base=\.\.\.: the value is not valid YAML"):
        read_config(Outer, path, ["base=["])


def test_an_override_of_one_alias_leaves_the_others_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "base: b\nmany:\n  x: &shared {learning_rate: 0.5}\n  y: *shared\n")
    config = read_config(Outer, path, ["many.x.learning_rate=0.25"])
    assert (config.many["x"].learning_rate, config.many["y"].learning_rate) == (0.25, 0.5)


def test_the_callers_mapping_is_left_alone() -> None:
    values = {"base": "b", "inner": {"learning_rate": 1.0}}
    read_config(Outer, values, ["inner.learning_rate=2.0"])
    assert values == {"base": "b", "inner": {"learning_rate": 1.0}}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_config(Outer, tmp_path / "none.yaml")
