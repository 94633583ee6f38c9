"""``skillweave specialise``, ``tpaw`` and ``e3tir``: the methods that make the delta of a skill."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.jobs import make_delta, say
from skillweave.cli.options import BASE_OR_FILE, CONFIG, DEVICE, SET

TASK = typer.Option(None, "--task", "-t", help="A task: YAML or data file, `builtin:...`, `reasoning-gym:...`.")
OUT = typer.Option(None, "--out", "-o", help="The work folder; the delta is written to OUT/delta.")


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

    If the base never succeeds, it is first trained on the task's answers. A killed run resumes with the same command.
    If nothing is learnt, there is no delta: the command says why, and exits with 2.
    `base`, `task` and `out` may be in the file of --config too.

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

    The model learns to prefer the task's answers to those of the last players; nobody labels preferences. The round
    with the best score on held-out prompts is kept. A killed run resumes with the same command.
    `base`, `task` and `out` may be in the file of --config too.

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
    """Warm up a model that calls tools with an expert's traces and its own exploration, then train it with RL.

    Few traces are enough: the model continues them from where it is least sure of what the expert did, and a verifier
    judges the result. A killed run resumes with the same command.
    `base`, `task` and `out` may be in the file of --config too.

    **Examples**

    `skillweave e3tir --config warmup.yaml`

    `skillweave e3tir -b ./my-model -t builtin:hops -o runs/hops -s traces=200`

    `skillweave e3tir -c warmup.yaml -o runs/zero -s warm_up.steps=0`
    """
    _run("e3tir", base, task, out, config, overrides, device)


def _run(
    name: str,
    base: str | None,
    task: str | None,
    out: Path | None,
    config: Path | None,
    overrides: list[str],
    device: str | None,
) -> None:
    job, made = make_delta(name, config, {"base": base, "task": task, "out": out}, overrides, device)
    say(f"Zip it: skillweave zip --base {job.base} --delta {made} --task {task or 'TASK'} -o PACK")
