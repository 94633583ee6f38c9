"""``--tools``: what a model may call while it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.base import Prompt, Sampling
    from skillweave.engine import LocalEngine
    from skillweave.tasks import Task
    from skillweave.tasks.with_tools import ToolUse
    from skillweave.tools import Toolbox
    from skillweave.weave import Reply

NONE = "none"
TOOLS = typer.Option(
    None,
    "--tools",
    help="What the model may call: names with commas between (`calculator`, `python`, `shop.py:price`), or a YAML file "
    "with `tools`, `max_tool_calls` and the like. `none`: not even what the task brings.",
)


@dataclass(frozen=True)
class OpenTools:
    """Tools that are ready, and how a model is asked with them."""

    use: ToolUse
    toolbox: Toolbox


@contextlib.contextmanager
def open_tools(
    given: str | None, task: Task | None = None, *, max_tokens: int | None, batch_size: int | None
) -> Iterator[OpenTools | None]:
    """The tools that ``--tools`` names, else those that ``task`` brings; None where there are none.

    The last two, where given, win over a file's. Raises :class:`UserError`.
    """
    from skillweave.tasks.with_tools import ToolSettings, agent_of, brings_tools, toolbox_of

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
        yield OpenTools(use, toolbox)


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


def answered(
    engine: LocalEngine, prompts: Sequence[Prompt], packs: Sequence[str | None], sampling: Sampling,
    tools: OpenTools | None, *, label: str = "answer",
) -> Sequence[Reply]:  # fmt: skip
    """Every prompt's answer, with tools where there are some."""
    if tools is None:
        return engine.generate(prompts, packs, sampling, label=label)
    return engine.converse(
        prompts, packs, tools.toolbox, tools.use, temperature=sampling.temperature, top_p=sampling.top_p,
        seed=sampling.seed, model_defaults=sampling.model_defaults, label=label,
    )  # fmt: skip
