"""The option ``--tools``: what a model may call while it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.tasks import Task
    from skillweave.tasks.with_tools import ToolUse
    from skillweave.tools.conversation import OpenTools

NONE = "none"
TOOLS = typer.Option(
    None,
    "--tools",
    help="What the model may call: names with commas between (`calculator`, `python`, `shop.py:price`), or a YAML file "
    "with `tools`, `max_tool_calls` and the like. `none`: not even what the task brings.",
)


@contextlib.contextmanager
def open_tools(
    given: str | None, task: Task | None = None, *, max_tokens: int | None, batch_size: int | None
) -> Iterator[OpenTools | None]:
    """Open the tools that ``--tools`` names, or else those that ``task`` brings; None if there are none.

    ``max_tokens`` and ``batch_size`` replace the values of a file, if they are given. Raises :class:`UserError`.
    """
    from skillweave.tasks.with_tools import ToolSettings, agent_of, brings_tools, toolbox_of
    from skillweave.tools.conversation import OpenTools

    if given == NONE or (given is None and (task is None or not brings_tools(task.spec))):
        yield None
        return
    also = {"max_tokens": max_tokens, "batch_size": batch_size}
    use = _read(given).model_copy(update={key: value for key, value in also.items() if value is not None})
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
    from skillweave.config import read_config
    from skillweave.tasks.with_tools import ToolUse

    if given is None:
        return ToolUse()
    if given.endswith((".yaml", ".yml")):
        return read_config(ToolUse, given)
    named = [name.strip() for name in given.split(",") if name.strip()]
    own = [name for name in named if ":" in name]
    return read_config(ToolUse, {"tools": {"names": [name for name in named if name not in own], "functions": own}})
