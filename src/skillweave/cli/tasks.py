"""``skillweave tasks``: check a task before training on it, and list the built-in tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from skillweave.cli.app import app
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.tasks.check import TaskReport

group = typer.Typer(
    help="Tasks: check one before training on it, or list the built-in ones.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(group, name="tasks")

JSON = typer.Option(False, "--json", help="Print JSON, for programs.")
_LONGEST_SHOWN = 4000


@group.command()
def check(
    task: str = typer.Argument(
        ..., metavar="TASK", help="A data file, YAML file, `builtin:...`, `reasoning-gym:...` or `dataset:...`."
    ),
    base: str = typer.Option(
        None,
        "--base",
        "-b",
        help="Count tokens as this base does: folder, hub id, GGUF file or bundled:smollm2.",
    ),
    max_length: int = typer.Option(
        None, "--max-length", min=1, help="Longest row in tokens, as in training (default: the base's context)."
    ),
    as_json: bool = JSON,
) -> None:
    """Show rows, splits, repeats and lengths of a task, whether its gold answers pass its own verifier, and one row.

    In the row, the part that is learnt (that has a loss) is marked. Exit code 0: all is well. 1: something would be
    trained wrongly, for example a gold answer that fails its verifier. 2: the task cannot be read.

    **Examples**

    `skillweave tasks check data.jsonl --base bundled:smollm2`

    `skillweave tasks check task.yaml -b ./my-model --max-length 512`

    `skillweave tasks check builtin:json_calls --json`
    """
    from skillweave.base.open import open_tokenizer
    from skillweave.tasks import load_task
    from skillweave.tasks.check import check_task

    if base is None and max_length is not None:
        raise UserError("--max-length counts tokens, and every base counts its own: name one with --base")
    tokenizer = None if base is None else open_tokenizer(base)
    limits = [limit for limit in (max_length, None if base is None else _context(base)) if limit is not None]
    report = check_task(load_task(task), tokenizer, min(limits, default=None))
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        _show(report)
    if report.problems:
        raise typer.Exit(1)


@group.command("list")
def list_(as_json: bool = JSON) -> None:
    """List the built-in tasks, each with an example.

    Any generator of reasoning-gym is a task too: `reasoning-gym:NAME`.

    **Examples**

    `skillweave tasks list`

    `skillweave tasks list --json`
    """
    from random import Random

    from rich.table import Table

    from skillweave.cli.output import out
    from skillweave.tasks.builtin import BUILTINS

    rows = []
    for name, builtin in sorted(BUILTINS.items()):
        prompt, answer = builtin.make(Random(0), builtin.settings())
        rows.append({"task": f"builtin:{name}", "verifier": builtin.verifier, "prompt": prompt, "answer": answer})
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table(show_lines=True)
    for column in ("task", "verifier", "prompt", "answer"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    out.print(table)
    out.print("Any generator of reasoning-gym is a task too: reasoning-gym:NAME, for example reasoning-gym:chain_sum.")


def _context(base: str) -> int | None:
    from skillweave.base.architecture import read_config_json
    from skillweave.base.open import resolve
    from skillweave.base.sizes import context_of

    return context_of(read_config_json(resolve(base)))


def _show(report: TaskReport) -> None:
    from rich.text import Text

    from skillweave.cli.output import out
    from skillweave.tasks.check import gold_line, lengths_line
    from skillweave.terminal import printable

    read = f", {report.read} rows read, {report.duplicates} dropped as exact repeats" if report.read else ""
    out.print(f"{report.name}: verifier {report.verifier}{read}", soft_wrap=True)
    for name, count in report.rows.items():
        prompts = report.prompts[name]
        out.print(f"  {name}: {count} rows" + (f", {prompts} prompts" if prompts != count else ""))
    for what, count in (("tools", report.with_tools), ("a rejected answer", report.with_rejected)):
        if count:
            out.print(f"  {count} rows have {what}")
    if report.several:
        out.print(f"  {report.several} prompts have several rows")
    out.print(lengths_line(report), soft_wrap=True)
    out.print(gold_line(report), soft_wrap=True)
    for failure in report.failures:
        out.print(f"  {failure.where}: score {failure.score:.2g}: {printable(failure.answer)[:200]}", soft_wrap=True)
    for note in report.notes:
        out.print(f"Note: {note}", soft_wrap=True)
    for problem in report.problems:
        out.print(f"Wrong: {problem}", soft_wrap=True)
    out.print(f"One row; what is learnt {'is green' if out.is_terminal else 'is between ⟦ and ⟧'}:")
    shown = Text()
    for text, learnt in report.example:
        lines = "\n".join(printable(line) for line in _shortened(text).split("\n"))
        marked = f"⟦{lines}⟧" if learnt and not out.is_terminal else lines
        shown.append(marked, style="bold green" if learnt else "dim")
    out.print(shown, soft_wrap=True)


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_SHOWN:
        return text
    half = _LONGEST_SHOWN // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} more characters ...]\n{text[-half:]}"
