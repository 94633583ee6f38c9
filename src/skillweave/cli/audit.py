"""``skillweave audit``: look for signs of a backdoor in RLVR data, in rollouts, in a checkpoint and in a pack."""

from __future__ import annotations

import typer

from skillweave.cli.app import app

group = typer.Typer(
    help="Audit: look for signs of a backdoor in RLVR data, in rollouts, in a checkpoint and in a pack.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(group, name="audit")
