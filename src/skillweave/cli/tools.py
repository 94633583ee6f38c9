"""``--tools``: what a model may call while it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from skillweave.errors import UserError

if TYPE_CHECKING:  # these import torch, which --help must not wait for
    from skillweave.tasks import Task
    from skillweave.tasks.with_tools import ToolUse
    from skillweave.tools.conversation import OpenTools

NONE = "none"
TOOLS = typer.Option(
    None,
    "--tools",
    help="What the model may call: names separated by commas (`calculator`, `python`, `shop.py:price`), or a YAML file "
    "with `tools`, `max_tool_calls` and other settings. `none`: nothing, even if the task brings tools.",
)


@contextlib.contextmanager
def open_tools(
    given: str | None, task: Task | None = None, *, max_tokens: int | None, batch_size: int | None
) -> Iterator[OpenTools | None]:
    """Open the tools that ``--tools`` names, else those that ``task`` brings; None if there are neither.

    ``max_tokens`` and ``batch_size`` replace those of a YAML file if they are given. Raises :class:`UserError`.
    """
    from skillweave.tasks.with_tools import ToolSettings, agent_of, brings_tools, toolbox_of
    from skillweave.tools.conversation import OpenTools

    if given == NONE or (given is None and (task is None or not brings_tools(task.spec))):
        yield None
        return
    options = {"max_tokens": max_tokens, "batch_size": batch_size}
    use = _read(given).model_copy(update={key: value for key, value in options.items() if value is not None})
    named = use.tools or ToolSettings()
    if task is None and not (named.names or named.functions):
        raise UserError("--tools names no tool: write --tools calculator, or a file with tools: {names: [calculator]}")
    try:
        opened = agent_of(task, use.tools).toolbox if task is not None else toolbox_of(named)
    except UserError as error:
        raise UserError(f"--tools: {error}") from error
    with opened as toolbox:
        yield OpenTools(toolbox, use)


def _read(given: str | None) -> ToolUse:
    """The settings that the value of ``--tools`` stands for: a YAML file, or names with commas between them."""
    from skillweave.config import read_config
    from skillweave.tasks.with_tools import ToolUse

    if given is None:
        return ToolUse()
    if given.endswith((".yaml", ".yml")):
        return read_config(ToolUse, given)
    names = [name.strip() for name in given.split(",") if name.strip()]
    functions = [name for name in names if ":" in name]
    builtin = [name for name in names if name not in functions]
    return read_config(ToolUse, {"tools": {"names": builtin, "functions": functions}})
