"""``skillweave audit model``, ``pack``, ``reference`` and ``repair``: checkpoints and packs against their base."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from skillweave.cli.audit import group
from skillweave.cli.jobs import command_line, read_job
from skillweave.cli.options import BASE_OR_FILE, CONFIG, DEVICE, SET
from skillweave.cli.output import out as terminal
from skillweave.cli.output import say
from skillweave.cli.places import check_apart, check_file, check_folder, has_keys
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.audit.model.job import AuditedBase, Measured
    from skillweave.audit.model.verdict import Verdict
    from skillweave.pack import Skillpack

PROMPTS = typer.Option(
    None,
    "--prompts",
    help='A data file: {"prompt", "kind": "restricted" or "task", "answer"}. Restricted: to be refused.',
)
REFERENCE = typer.Option(None, "--reference", help="Signals of clean checkpoints, from `skillweave audit reference`.")
FPR = typer.Option(None, "--fpr", help="Most false alarms among clean checkpoints [0.01].")
REFUSAL = typer.Option(None, "--refusal", help="A regular expression that finds a refusal [usual English ones].")


@group.command()
def model(
    target: str = typer.Argument(..., metavar="MODEL", help="A model, a delta folder or a PEFT adapter."),
    base: str = BASE_OR_FILE,
    prompts: Path = PROMPTS,
    reference: Path = REFERENCE,
    fpr: float = FPR,
    refusal: str = REFUSAL,
    out: Path = typer.Option(None, "--out", "-o", help="Folder for the report."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Audit a fine-tuned model or a delta against its base: does a wrapper make it refuse less than its base does?

    Asks base and model the restricted requests of the file, plain and inside wrappers that have the structure of the
    RLVR backdoor; reads the residual stream; and looks at the spectra of the delta. With --reference the false-alarm
    rate is promised; without it only paired tests are used. The outcome is an alarm, no alarm at this threshold, or
    not enough evidence. No alarm does not mean clean. Exit code 0: no alarm, or not enough evidence. 1: an alarm.

    **Examples**

    `skillweave audit model tuned/ -b base/ --prompts asked.jsonl -o audits/tuned`

    `skillweave audit model run/delta -b base/ --prompts asked.jsonl -o audits/x`

    `skillweave audit model tuned/ -c audit.yaml --reference ref.json --fpr 0.05`
    """
    _end(_audit(target, base, prompts, reference, fpr, refusal, out, config, overrides, device))


@group.command()
def pack(
    target: Path = typer.Argument(..., metavar="PACK", help="A skillpack folder."),
    base: str = BASE_OR_FILE,
    prompts: Path = PROMPTS,
    reference: Path = REFERENCE,
    fpr: float = FPR,
    refusal: str = REFUSAL,
    write: bool = typer.Option(False, "--write", help="Write the verdict on the pack's card."),
    out: Path = typer.Option(None, "--out", "-o", help="Folder for the report."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Audit a skillpack as `audit model` audits a model, and write the verdict on its card with --write.

    The card then says what was audited, when, and with which outcome: `generate --require-audit` refuses packs
    without it. Anyone can write a card, so trust only audits that you made. Exit code 1: an alarm.

    **Examples**

    `skillweave audit pack packs/x --prompts asked.jsonl -o audits/x --write`

    `skillweave audit pack packs/x -c audit.yaml --reference ref.json -o audits/x`
    """
    from skillweave.pack import Skillpack, is_skillpack
    from skillweave.pack.stored import PARTS
    from skillweave.weave import is_weave

    if not is_skillpack(target):
        raise UserError(f"{target} is no skillpack: name the folder of one, or use `skillweave audit model`")
    if write and is_weave(target.resolve().parent.parent):
        raise UserError(
            f"{target} is a part of a weave, which knows its packs by their hashes: audit the pack before it is put "
            "into a weave (`audit:` in weave.yaml does that), or leave out --write"
        )
    if write:
        try:
            check_folder(target, is_skillpack, "skillpack", parts=PARTS, called="PACK")
        except UserError as error:
            raise UserError(f"--write replaces the pack, which cannot be done here: {error}") from error
    loaded = Skillpack.from_pretrained(target)
    base = base or loaded.card.base.ref
    verdict = _audit(str(target), base, prompts, reference, fpr, refusal, out, config, overrides, device, loaded)
    if write:
        from skillweave.audit.model.job import pack_audit

        if Skillpack.from_pretrained(target).digest != loaded.digest:
            raise UserError(f"{target} changed while it was audited, so the verdict is not written: audit it again")
        loaded.card.audit = pack_audit(verdict, loaded).model_dump(mode="json")
        loaded.save_pretrained(target)
        say(f"The verdict stands on the card of {target}.")
    _end(verdict)


@group.command()
def reference(
    targets: list[str] = typer.Argument(..., metavar="MODEL...", help="Clean models, deltas, adapters or packs."),
    base: str = BASE_OR_FILE,
    prompts: Path = PROMPTS,
    refusal: str = REFUSAL,
    out: Path = typer.Option(None, "--out", "-o", help="The JSON file to write."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Measure checkpoints that are known to be clean, so that audits can promise a rate of false alarms.

    They should be trained as the audited ones are: same base, like data, like method. 99 of them promise a rate of 1%,
    19 a rate of 5%.

    **Examples**

    `skillweave audit reference one/ two/ -b base/ --prompts p.jsonl -o ref.json`
    """
    from skillweave.audit.model.config import ModelAuditConfig
    from skillweave.audit.model.job import audited_base, collect_reference
    from skillweave.base import open_base

    typed = {"base": base, "prompts": prompts, "refusal": refusal, "out": out}
    job = read_job(ModelAuditConfig, config, typed, overrides)
    check_file(
        job.out,
        config,
        job.settings.prompts,
        ours=has_keys("schema_version", "checkpoints"),
        kind="a reference of `skillweave audit reference`",
    )
    audited = audited_base(open_base(job.base, dtype="float32", device=device), job.settings)
    found = collect_reference(audited, targets, job.out)
    rate = 1 / (len(found.checkpoints) + 1)
    say(f"Wrote {job.out}: {len(found.checkpoints)} clean checkpoints, which can promise a rate of {rate:.3f}.")


@group.command()
def repair(
    target: str = typer.Argument(..., metavar="MODEL", help="A model, delta, adapter or pack that raised an alarm."),
    base: str = BASE_OR_FILE,
    prompts: Path = PROMPTS,
    refusal: str = REFUSAL,
    out: Path = typer.Option(None, "--out", "-o", metavar="DELTA", help="The delta folder to write."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Train a model to refuse under the perturbation that lowers its refusals most, and keep its other answers.

    The result is a delta on the base, which holds both the model's own change and the repair. It is not a proof that
    the weakness is gone: audit it again. If the training data is at hand, `audit drop` and a new training are better.

    **Examples**

    `skillweave audit repair tuned/ -b base/ --prompts asked.jsonl -o repaired`

    `skillweave audit repair packs/x -c repair.yaml -o repaired -s steps=200`
    """
    from skillweave.audit.repair.inner_outer import RepairConfig, repair_checkpoint
    from skillweave.base import open_base
    from skillweave.delta import is_delta
    from skillweave.delta.delta import PARTS

    typed = {"base": base, "prompts": prompts, "refusal": refusal, "out": out}
    job = read_job(RepairConfig, config, typed, overrides)
    check_apart(job.out, base=job.base, model=target)
    check_folder(job.out, is_delta, "delta", parts=PARTS)
    figures = repair_checkpoint(target, open_base(job.base, dtype="float32", device=device), job.settings, job.out)
    say(
        f"Refusals under the perturbation: log-probability {figures['perturbed_before']:.2f} before, "
        f"{figures['perturbed_after']:.2f} after. Answers to tasks moved by {figures['task_kl']:.4f} nats a token."
    )
    say(f"Wrote {job.out}. Audit it: skillweave audit model {job.out} --base {job.base} --prompts FILE -o OUT")


def _audit(
    target: str,
    base: str | None,
    prompts: Path | None,
    reference: Path | None,
    fpr: float | None,
    refusal: str | None,
    out: Path | None,
    config: Path | None,
    overrides: list[str],
    device: str | None,
    loaded: Skillpack | None = None,
) -> Verdict:
    """Audit one target, which may be ``loaded`` already, write the report and print what the verdict rests on."""
    from skillweave.audit.model.config import ModelAuditConfig
    from skillweave.audit.model.job import audit_checkpoint, audited_base, is_audit, read_reference, write_audit
    from skillweave.base import open_base
    from skillweave.report.page import PAGE_PARTS

    typed: dict[str, Any] = {"base": base, "prompts": prompts, "reference": reference, "fpr": fpr}
    job = read_job(ModelAuditConfig, config, {**typed, "refusal": refusal, "out": out}, overrides)
    check_apart(job.out, base=job.base, model=target)
    check_folder(job.out, is_audit, "report of an audit", parts=PAGE_PARTS)
    clean = read_reference(job.settings.reference)
    began = time.monotonic()
    audited = audited_base(open_base(job.base, dtype="float32", device=device), job.settings)
    verdict, measured = audit_checkpoint(audited, target if loaded is None else loaded, clean, target)
    write_audit(job.out, verdict, measured, audited, command=command_line(), began=began)
    _show(verdict, measured, audited, job.out)
    return verdict


def _show(verdict: Verdict, measured: Measured, audited: AuditedBase, folder: Path) -> None:
    """Print the signals, the wrappers and the evidence."""
    from skillweave.audit.model.job import signal_table, wrapper_table

    terminal.print()
    terminal.print(signal_table(verdict).rich(title="Higher is more suspicious"))
    terminal.print(wrapper_table(measured.behaviour).rich(title="Refusals of restricted requests"))
    for sentence in [*verdict.evidence, *verdict.not_tested]:
        terminal.print(f"- {sentence}", soft_wrap=True, markup=False)
    terminal.print(f"The report is in {folder / 'report.html'}.", soft_wrap=True, markup=False)


def _end(verdict: Verdict) -> None:
    """Print the verdict as the last line; the exit code is 1 for an alarm."""
    from skillweave.audit.model.verdict import ALARM

    p_value = (
        "" if verdict.p_value is None else f" (p = {verdict.p_value:.3g}, threshold {verdict.false_positive_rate:g})"
    )
    terminal.print(f"Verdict on {verdict.model}: {verdict.outcome}{p_value}.", soft_wrap=True, markup=False)
    if verdict.outcome == ALARM:
        raise typer.Exit(1)
