"""``skillweave audit rollouts`` audits a log of rollouts, ``skillweave audit drop`` leaves out flagged records."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from skillweave.cli.audit import group
from skillweave.cli.jobs import command_line
from skillweave.cli.options import DEVICE, SEED
from skillweave.cli.output import out as console_out
from skillweave.cli.output import say
from skillweave.cli.places import check_apart, check_file, check_folder
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.audit.rollouts.ablation import Generate, Score


@group.command()
def rollouts(
    log: Path = typer.Argument(..., help="The log: JSONL, JSON, Parquet (TRL's completions), or a folder of them."),
    clean: Path = typer.Option(None, "--clean", help="The log of a clean run of the same set-up, to calibrate with."),
    refusal: list[str] = typer.Option(
        [],
        "--refusal",
        metavar="TEXT",
        help="What a refusal holds: `<refuse>`, or `re:PATTERN`. Repeatable. [usual English refusals]",
    ),
    fpr: float = typer.Option(0.01, "--fpr", help="False-positive rate of the threshold."),
    ablate: bool = typer.Option(
        False, "--ablate", help="Leave out the parts of the most suspicious prompts in turn, and sample again."
    ),
    model: str = typer.Option(None, "--model", "-m", help="Who answers for --ablate: a model, delta, pack or weave."),
    verifier: str = typer.Option(
        "exact", "--verifier", help="Who pays for --ablate: `exact`, `numeric`, ..., or `file.py:function`."
    ),
    suspects: int = typer.Option(5, "--suspects", min=1, help="How many prompts --ablate takes apart."),
    samples: int = typer.Option(8, "--samples", min=1, help="Completions of each shortened prompt."),
    max_tokens: int = typer.Option(256, "--max-tokens", "-n", min=1, help="The longest completion of --ablate."),
    seed: int = SEED,
    device: str = DEVICE,
    out: Path = typer.Option(..., "--out", "-o", help="The folder of the audit; an older audit there is replaced."),
) -> None:
    """Audit the rollouts and rewards of an RLVR run, prompt by prompt.

    A prompt is suspicious if complying was paid and refusing was not, if its refusals died out, if paid completions
    hold parts that the gold answer does not explain, and so on. Writes `report.html`, `report.json` and
    `prompts.jsonl`. Exit code 0: no prompt is flagged. 1: some are.

    **Examples**

    `skillweave audit rollouts runs/rollouts -o runs/audit`

    `skillweave audit rollouts run.jsonl --clean clean.jsonl -o runs/audit`

    `skillweave audit rollouts run.jsonl --refusal '<refuse>' -o runs/audit`

    `skillweave audit rollouts run.jsonl --ablate -m ./model -o runs/audit`
    """
    started = time.monotonic()
    if ablate and model is None:
        raise UserError("--ablate samples the shortened prompts: name the model of the run with --model")
    if model is not None and not ablate:
        raise UserError("--model answers shortened prompts, which only --ablate makes: add --ablate, or leave it out")
    from skillweave.audit.rollouts.page import PARTS, is_rollout_audit

    check_folder(out, is_rollout_audit, "report of an audit of rollouts", parts=PARTS)
    check_apart(out, log=log, clean=clean, model=model)
    from skillweave.audit.rollouts.config import RolloutAuditConfig
    from skillweave.audit.rollouts.job import audit_rollouts
    from skillweave.audit.rollouts.page import ablation_table, prompt_table, signal_table, verdict, write_audit
    from skillweave.config import read_config

    config = read_config(
        RolloutAuditConfig,
        {
            "log": str(log),
            "clean": None if clean is None else str(clean),
            "refusal": refusal,
            "fpr": fpr,
            "suspects": suspects,
            "samples": samples,
        },
        called="audit rollouts",
    )
    parts: dict[str, Any] = {}
    if ablate:
        parts = {"generate": _generate(model, max_tokens, seed, device), "score": _score(verifier), "say": say}
    audited = audit_rollouts(config, **parts)
    write_audit(out, audited, config, command_line(), started)
    console_out.print(signal_table(audited).rich("Signals"))
    console_out.print(prompt_table(audited, 11, rows=10).rich("Highest scores (* flagged), surprises (-log10 p)"))
    if audited.ablations:
        console_out.print(ablation_table(audited).rich("Parts left out"))
    outcome, *found = verdict(audited)
    for line in [*audited.notes, *found]:
        say(f"- {line}")
    say(f"The reasons are in {out / 'report.html'}, all prompts in {out / 'prompts.jsonl'}")
    say(f"Verdict: {outcome}.")
    if audited.judged.flagged.any():
        raise typer.Exit(1)


@group.command()
def drop(
    data: Path = typer.Argument(..., help="The data set that was audited (JSONL)."),
    audit: list[Path] = typer.Option(
        ..., "--audit", help="The folder of an audit of this data, or of rollouts on it. Repeatable."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="The new data set. OUT.dropped.jsonl lists what it lacks."),
) -> None:
    """Write a data set without the records that an audit flagged.

    The other lines keep their bytes. A record is found by its line (audit of data), or by its id or prompt (audit of
    rollouts). Train again on the result; a model that learnt the behaviour does not lose it by this.

    **Examples**

    `skillweave audit drop data.jsonl --audit runs/audit -o new.jsonl`

    `skillweave audit drop data.jsonl --audit runs/a --audit runs/b -o new.jsonl`
    """
    from skillweave.audit.repair.drop import DROPPED
    from skillweave.files.place import is_special, stream_of

    if stream_of(out) is not None or is_special(out):
        raise UserError(f"--out {out}: name a file, beside which OUT.dropped.jsonl is written")
    for folder in audit:
        check_apart(out, replaced=False, audit=folder)
    check_file(
        out,
        data,
        ours=lambda file: file.with_name(f"{file.name}{DROPPED}").is_file(),
        kind="an earlier result of `skillweave audit drop`",
    )
    from skillweave.audit.repair.drop import drop as leave_out

    for line in leave_out(data, audit, out).sentences():
        say(line)
    say(f"The cleaned data set is {out}")


def _generate(model: str, max_tokens: int, seed: int, device: str | None) -> Generate:
    from skillweave.base import Sampling
    from skillweave.engine import open_engine
    from skillweave.weave import Request

    engine = open_engine(model, device=device)
    pack = engine.pack_named(None)

    def generate(prompts):
        sampling = Sampling(temperature=1.0, max_new_tokens=max_tokens, seed=seed)
        return [reply.text for reply in engine.weave.answer([Request(prompt, pack, sampling) for prompt in prompts])]

    return generate


def _score(verifier: str) -> Score:
    from skillweave.tasks.verifiers import options_for, verify

    options = options_for(verifier, {})
    return lambda completion, gold: verify(verifier, completion, gold, options)
