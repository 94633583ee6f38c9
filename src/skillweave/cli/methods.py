"""``skillweave specialise``, ``tpaw`` and ``e3tir``: the ways to make a delta."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.jobs import make_delta, say
from skillweave.cli.options import BASE_OR_FILE, CONFIG, DEVICE, SET

TASK = typer.Option(None, "--task", "-t", help="A task: YAML or data file, `builtin:...`, `reasoning-gym:...`.")
OUT = typer.Option(None, "--out", "-o", help="Work folder; the delta is left in OUT/delta.")


@app.command()
def specialise(
    base: str = BASE_OR_FILE,
    task: str = TASK,
    out: Path = OUT,
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Grow one specialist: the base samples its own answers, the verifier judges, online DPO trains a delta.

    Where the base never succeeds it is first warmed up on the task's answers. Killed and run again, it goes on.
    Where nothing is learnt there is no delta: the command says why, and exits with 2.
    `base`, `task` and `out` may stand in the config's file too.

    **Examples**

    `skillweave specialise -b bundled:smollm2 -t builtin:json_calls -o runs/json`

    `skillweave specialise -b ./my-model -t data.jsonl -o runs/x --set train=lora`

    `skillweave specialise -c grow.yaml -o runs/x -s report_to=tensorboard`

    `skillweave specialise -c grow.yaml -o runs/y -s warm_start.patience=3`
    """
    _run("specialise", base, task, out, config, overrides, device)


@app.command()
def tpaw(
    base: str = BASE_OR_FILE,
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


@app.command()
def e3tir(
    base: str = BASE_OR_FILE,
    task: str = TASK,
    out: Path = OUT,
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Warm up an agent that calls tools: branches from an expert's traces and its own exploration, then RL.

    Few traces are enough: the policy goes on from where it is least sure of what the expert did, and a verifier judges.
    Killed and run again, it goes on.
    `base`, `task` and `out` may stand in the config's file too.

    **Examples**

    `skillweave e3tir --config warmup.yaml`

    `skillweave e3tir -b ./my-model -t builtin:hops -o runs/hops -s traces=200`

    `skillweave e3tir -c warmup.yaml -o runs/zero -s warm_up.steps=0`
    """
    _run("e3tir", base, task, out, config, overrides, device)


def _run(
    name: str, base: str | None, task: str | None, out: Path | None, config: Path | None, overrides: list[str],
    device: str | None,
) -> None:  # fmt: skip
    job, made = make_delta(name, config, {"base": base, "task": task, "out": out}, overrides, device)
    say(f"Zip it: skillweave zip --base {job.base} --delta {made} --task {task or 'TASK'} -o PACK")
