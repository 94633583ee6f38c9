"""The command line's frame: the app, its commands, and what a person sees when something is wrong."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer

from skillweave import __version__
from skillweave.cli.places import release_places
from skillweave.errors import UserError
from skillweave.progress import console

app = typer.Typer(
    name="skillweave",
    help="One base model, many skills: grow specialists, zip each into a skillpack, serve them all together.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skillweave {__version__}")
        raise typer.Exit


@app.callback()
def _frame(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """The options that stand before any command."""


def main() -> None:
    """Run the command line: a :class:`UserError` is printed and exits with 2, a bug keeps its traceback."""
    _quiet_libraries()
    try:
        app()
    except UserError as error:
        console.print("[bold red]Error:[/bold red]", end=" ")
        console.print(str(error), markup=False, emoji=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # typer's, for Ctrl-C
            console.print("\nStopped. Run the same command again to go on.")
        raise
    finally:
        release_places()


def _quiet_libraries() -> None:
    """Our own progress and messages stand for those of the libraries below; set SKILLWEAVE_DEBUG to see theirs."""
    if os.environ.get("SKILLWEAVE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # The bars of transformers ("Loading weights", "Writing model shards") and gguf. Those of a hub download stay.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
