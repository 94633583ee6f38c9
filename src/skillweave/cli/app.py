"""The app of the command line, and what a user sees if something goes wrong."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from typing import NoReturn

import typer
from rich.text import Text

from skillweave import __version__
from skillweave.cli.places import release_places
from skillweave.errors import UserError
from skillweave.files.read import unreadable
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
    """The options before the name of a command."""


def main() -> None:
    """Run the typed command. A :class:`UserError` is printed and exits with 2; a bug keeps its traceback."""
    import skillweave.cli.commands  # noqa: F401 - the commands import this module

    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not be able to show all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except BrokenPipeError:
        _end_of_pipe()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer reports it in this way
            _end_of_pipe()
        raise
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        _refuse(
            f"there is not enough memory ({str(error).partition(chr(10))[0] or type(error).__name__}): try a smaller "
            "--batch-size, fewer --max-new-tokens, --dtype bfloat16, or a machine with more memory"
        )
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        _refuse(str(unreadable(error.filename or "a file", error, "another place")))
    finally:
        release_places()


_OF_THE_MACHINE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
    errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
)  # fmt: skip
"""Errors of the system that are no bug of the program. A missing file may be a bug, so ENOENT is not among them."""


def _refuse(message: str) -> NoReturn:
    console.print(Text("Error: ", style="bold red"), end="")
    console.print(message, soft_wrap=True)
    sys.exit(2)


def _end_of_pipe() -> NoReturn:
    """End silently with exit code 141: the reader of the output is gone (``skillweave ... | head``)."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nothing, number)  # Python writes the rest of its buffers when it ends
    sys.exit(141)


def _is_memory(error: Exception) -> bool:
    """Whether an error of Python, torch or a device means that memory ran out."""
    phrases = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
    )


def _quiet_libraries() -> None:
    """Silence the progress and warnings of libraries, in favour of our own; SKILLWEAVE_DEBUG=1 shows them."""
    if os.environ.get("SKILLWEAVE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # The bars of transformers ("Loading weights", "Writing model shards") and gguf. The bars of hub downloads stay.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
