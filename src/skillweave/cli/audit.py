"""``skillweave audit``: look for signs of a backdoor in RLVR data, in rollouts, in a checkpoint and in a pack."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.options import named_values
from skillweave.cli.output import out as console_out
from skillweave.cli.output import say
from skillweave.cli.places import check_apart, check_folder

group = typer.Typer(
    help="Audit: look for signs of a backdoor in RLVR data, in rollouts, in a checkpoint and in a pack.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(group, name="audit")


@group.command()
def data(
    data: Path = typer.Argument(
        ..., metavar="FILE", help="JSONL (or .gz), Parquet, JSON, CSV, a folder of them, or a saved dataset's folder."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="The folder of the audit; an older audit there is replaced."),
    clean: Path = typer.Option(
        None, "--clean", help="Records that you trust and that are like the data: the thresholds then follow from them."
    ),
    fpr: float = typer.Option(0.01, "--fpr", help="Share of clean records that may be flagged by mistake."),
    columns: list[str] = typer.Option(
        [],
        "--columns",
        metavar="OURS=THEIRS",
        help="Where prompt, answer, id or source stand: `answer=reward_model.ground_truth`. Repeatable.",
    ),
    split: str = typer.Option(None, "--split", help="The split of a dataset's folder that has several [train]."),
    workers: int = typer.Option(None, "--workers", min=1, help="Processes [one for each core]."),
    shown: int = typer.Option(50, "--shown", min=0, help="So many of the most suspicious records are on the page."),
) -> None:
    """Audit RLVR data before training: score each record, with the reasons and their places in the prompt.

    Looks for the structure of a poisoned record: several requests of which the gold answer covers one, conditional
    rules, demonstrations of refusing and accepting, a part that few records share, and so on. Writes `report.html`,
    `report.json`, `records.jsonl` and `malformed.jsonl`. Exit code 0: every record was read, and none is flagged. 1:
    some are flagged, or could not be read.

    **Examples**

    `skillweave audit data train.jsonl -o runs/audit`

    `skillweave audit data train.parquet --clean trusted.jsonl -o runs/audit`

    `skillweave audit data train.jsonl --fpr 0.001 -o runs/audit`

    `skillweave audit data rows.jsonl --columns prompt=task -o runs/audit`
    """
    from skillweave.audit.data.page import PARTS, is_data_audit

    check_folder(out, is_data_audit, "report of an audit of data", parts=PARTS)
    check_apart(out, data=data, clean=clean)
    from skillweave.audit.data.config import DataAuditConfig
    from skillweave.audit.data.job import audit_data
    from skillweave.audit.data.page import suspect_table
    from skillweave.config import read_config

    typed = {
        "data": str(data),
        "out": str(out),
        "clean": None if clean is None else str(clean),
        "fpr": fpr,
        "columns": named_values(columns, "--columns", "OURS=THEIRS, for example answer=solution"),
        **({} if split is None else {"split": split}),
        "workers": workers,
        "shown": shown,
    }
    audit = audit_data(read_config(DataAuditConfig, typed, called="audit data"))
    if audit.flagged:
        console_out.print(suspect_table(audit).rich("The most suspicious records"))
    for bad in audit.first_malformed[:5]:
        say(f"{bad.file}, line {bad.line} was not audited: {bad.reason}")
    for note in audit.notes():
        say(f"- {note}")
    say(f"The signals and the reasons are in {out / 'report.html'}, all records in {out / 'records.jsonl'}")
    say(f"Verdict: {audit.verdict()}.")
    if audit.flagged or audit.malformed:
        raise typer.Exit(1)
