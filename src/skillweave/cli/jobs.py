"""Commands with many settings: read them from the file of --config and from typed options, then run a method."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_type_hints

from skillweave.cli.output import say
from skillweave.cli.places import check_apart, check_folder, is_run
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.config import Config

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class CommandJob(Generic[C]):
    """What a command works on: a base, settings, and the folder for the result."""

    base: str
    settings: C
    out: Path


def read_job(cls: type[C], file: Path | None, typed: Mapping[str, Any], overrides: Sequence[str]) -> CommandJob[C]:
    """Read ``base``, ``out`` and settings of the class ``cls`` from a YAML file, ``typed`` options and ``--set``.

    Typed options replace what the file says, and ``overrides`` (``KEY=VALUE`` of --set) replace both. ``typed`` values
    that are None or empty count as not given. Raises :class:`UserError`, also if a required setting is missing.
    """
    from pydantic import create_model

    from skillweave.config import read_config

    hints = get_type_hints(cls, include_extras=True)
    needed = {"base": str, **{key: hints[key] for key, field in cls.model_fields.items() if field.is_required()}}
    needed["out"] = Path
    # Required settings may be missing while the file is read: the message below names the option for each.
    fields: dict[str, Any] = {key: (hint | None, None) for key, hint in needed.items()}
    with_places = cast("type[Config]", create_model("CommandJob", __base__=cls, **fields))
    typed_overrides = [
        f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"
        for key, value in typed.items()
        if value is not None and value != []
    ]
    read: Any = read_config(with_places, file, [*typed_overrides, *overrides])
    for key in needed:
        if getattr(read, key) is None:
            raise UserError(f"{key} is missing: give --{key}, or write `{key}:` in the file of --config")
    # Settings that were not given stay unset: a method may choose a default that depends on the others.
    settings = cls.model_validate(read.model_dump(exclude={"base", "out"}, exclude_unset=True))
    return CommandJob(read.base, settings, read.out)


def make_delta(
    name: str, file: Path | None, typed: Mapping[str, Any], overrides: Sequence[str], device: str | None
) -> tuple[CommandJob[Any], Path]:
    """Run the method of that name and print where its delta is; return the job and the delta's folder."""
    from skillweave.base import open_base
    from skillweave.methods import get_method

    method = get_method(name)
    job = read_job(method.config, file, typed, overrides)
    check_apart(job.out, replaced=False, base=job.base)
    check_folder(job.out, is_run, f"work folder of {name}", parts=None)
    delta = method.run(open_base(job.base, device=device), job.settings, job.out)
    made = job.out / "delta"
    say(f"Wrote {made} ({delta.nbytes:,} bytes).")
    return job, made


def command_line() -> str:
    """The command line as it was typed, for a report."""
    return shlex.join(["skillweave", *sys.argv[1:]])
