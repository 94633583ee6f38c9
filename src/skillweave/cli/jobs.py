"""Jobs of several settings: what was typed laid over the file of --config, and what is said of the result."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_type_hints

from skillweave.cli.places import check_apart, check_folder, is_run
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.config import Config

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class CommandJob(Generic[C]):
    """What a command is to do: on which base, with which settings, and where to leave it."""

    base: str
    settings: C
    out: Path


def read_job(cls: type[C], file: Path | None, typed: Mapping[str, Any], overrides: Sequence[str]) -> CommandJob[C]:
    """Settings ``cls``, ``base`` and ``out`` from a YAML file, under what was ``typed``, under each ``--set``.

    What is None or empty in ``typed`` was not. Raises :class:`UserError`, also for what is needed and stands nowhere.
    """
    from pydantic import create_model

    from skillweave.config import read_config

    hints = get_type_hints(cls, include_extras=True)
    needed = {"base": str, **{key: hints[key] for key, field in cls.model_fields.items() if field.is_required()}}
    needed["out"] = Path
    # What is needed may be missing while it is read: the message about it names the option that gives it.
    fields: dict[str, Any] = {key: (hint | None, None) for key, hint in needed.items()}
    with_places = cast("type[Config]", create_model("CommandJob", __base__=cls, **fields))
    laid_over = [
        f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"
        for key, value in typed.items()
        if value is not None and value != []
    ]
    found: Any = read_config(with_places, file, [*laid_over, *overrides])
    for key in needed:
        if getattr(found, key) is None:
            raise UserError(f"{key} is missing: give --{key}, or write `{key}:` in the file of --config")
    # What was not set stays unset: a method may choose a default by what else there is.
    settings = cls.model_validate(found.model_dump(exclude={"base", "out"}, exclude_unset=True))
    return CommandJob(found.base, settings, found.out)


def make_delta(
    name: str, file: Path | None, typed: Mapping[str, Any], overrides: Sequence[str], device: str | None
) -> tuple[CommandJob[Any], Path]:
    """Run the method of that name, say where its delta is, and return the job and that place."""
    from skillweave.base import open_base
    from skillweave.methods import get_method

    method = get_method(name)
    job = read_job(method.config, file, typed, overrides)
    check_apart(job.out, replaced=False, base=job.base)
    check_folder(job.out, is_run, f"work folder of {name}", replaced=False)
    delta = method.run(open_base(job.base, device=device), job.settings, job.out)
    made = job.out / "delta"
    say(f"Wrote {made} ({delta.nbytes:,} bytes).")
    return job, made


def is_first_process() -> bool:
    """Under torchrun the first process writes and speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line of a result, on standard output."""
    from skillweave.cli.show import out as terminal

    if is_first_process():
        terminal.print(text, soft_wrap=True)


def command_line() -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["skillweave", *sys.argv[1:]])
