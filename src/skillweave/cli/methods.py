"""``skillweave specialise`` and ``tpaw``: the ways to make a delta."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import typer

from skillweave.cli.app import app
from skillweave.cli.options import CONFIG, DEVICE, SET
from skillweave.cli.places import check_folder, is_run
from skillweave.errors import UserError

BASE = typer.Option(None, "--base", "-b", help="Hugging Face folder, hub id, GGUF file or bundled:smollm2.")
TASK = typer.Option(None, "--task", "-t", help="A task: YAML or JSONL file, `builtin:...`, `reasoning-gym:...`.")
OUT = typer.Option(None, "--out", "-o", help="Work folder; the delta is left in OUT/delta.")


@app.command()
def specialise(
    base: str = BASE,
    task: str = TASK,
    out: Path = OUT,
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Grow one specialist: the base samples its own answers, the verifier judges, online DPO trains a delta.

    Where the base never succeeds it is first warmed up on the task's answers. Killed and run again, it goes on.
    `base`, `task` and `out` may stand in the config's file too.

    **Examples**

    `skillweave specialise -b bundled:smollm2 -t builtin:json_calls -o runs/json`

    `skillweave specialise -b ./my-model -t data.jsonl -o runs/x --set train=lora`
    """
    _run("specialise", base, task, out, config, overrides, device)


@app.command()
def tpaw(
    base: str = BASE,
    task: str = TASK,
    out: Path = OUT,
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Align on supervised data alone: the model plays, round by round, against a team of its past selves.

    The task's answers are preferred to what the last players wrote; nobody labels preferences. The round that does
    best on held-out prompts is kept. Killed and run again, it goes on.
    `base`, `task` and `out` may stand in the config's file too.

    **Examples**

    `skillweave tpaw --config selfplay.yaml`

    `skillweave tpaw -b ./sft-model -t chats.jsonl -o runs/x -s judge_by=log_prob`

    `skillweave tpaw -c selfplay.yaml -o runs/spin -s loss=spin`
    """
    _run("tpaw", base, task, out, config, overrides, device)


def _run(
    name: str, base: str | None, task: str | None, out: Path | None, config: Path | None, overrides: list[str],
    device: str | None,
) -> None:  # fmt: skip
    """Run a method with what was typed laid over what stands in the file."""
    from pydantic import create_model

    from skillweave.base import open_base
    from skillweave.cli.show import out as terminal
    from skillweave.config import Config, read_config
    from skillweave.methods import get_method
    from skillweave.tasks import TaskSpec

    method = get_method(name)
    fields: dict[str, Any] = {"base": (str | None, None), "task": (TaskSpec | None, None), "out": (Path | None, None)}
    with_places = cast(type[Config], create_model("Job", __base__=method.config, **fields))
    typed = {"base": base, "task": task, "out": None if out is None else str(out)}
    laid_over = [f"{key}={json.dumps(value)}" for key, value in typed.items() if value is not None]
    job: Any = read_config(with_places, config, [*laid_over, *overrides])
    for key in fields:
        if getattr(job, key) is None:
            raise UserError(f"{key} is missing: give --{key}, or write `{key}:` in the file of --config")
    check_folder(job.out, is_run, f"work folder of {name}")
    settings = method.config.model_validate(job.model_dump(exclude={"base", "out"}))
    delta = method.run(open_base(job.base, device=device), settings, job.out)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
        return
    made = job.out / "delta"
    terminal.print(f"Wrote {made} ({delta.nbytes:,} bytes).", soft_wrap=True)
    terminal.print(
        f"Zip it: skillweave zip --base {job.base} --delta {made} --task {task or 'TASK'} -o PACK", soft_wrap=True
    )
