"""``--tools``: what a model may call while it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.base import Prompt, Sampling
    from skillweave.engine import LocalEngine
    from skillweave.tasks import Task
    from skillweave.tasks.agents.load import ToolUse
    from skillweave.weave import Reply

NONE = "none"
TOOLS = typer.Option(
    None,
    "--tools",
    help="What the model may call: names with commas between (`calculator`, `python`, `shop.py:price`), or a YAML file "
    "with `tools`, `max_tool_calls` and the like. `none`: not even what the task brings.",
)


def read_tools(
    given: str | None, task: Task | None = None, *, max_tokens: int | None, batch_size: int | None
) -> ToolUse | None:
    """How to ask with the tools that ``--tools`` names, else with those that ``task`` brings; None: without any.

    The last two, where given, win over a file's. Raises :class:`UserError`.
    """
    from skillweave.config import read_config
    from skillweave.tasks.agents.load import ToolUse, brings_tools

    if given == NONE or (given is None and (task is None or not brings_tools(task.spec))):
        return None
    if given is None:
        use = ToolUse()
    elif given.endswith((".yaml", ".yml")):
        use = read_config(ToolUse, given)
    else:
        named = [name.strip() for name in given.split(",") if name.strip()]
        names = [name for name in named if ":" not in name]
        use = read_config(
            ToolUse, {"tools": {"names": names, "functions": [name for name in named if name not in names]}}
        )
    if task is None and (use.tools is None or not (use.tools.names or use.tools.functions)):
        raise UserError("--tools names no tool: write --tools calculator, or a file with tools: {names: [calculator]}")
    also = {"max_tokens": max_tokens, "batch_size": batch_size}
    return use.model_copy(update={key: value for key, value in also.items() if value is not None})


def answered(
    engine: LocalEngine, prompts: Sequence[Prompt], packs: Sequence[str | None], sampling: Sampling,
    use: ToolUse | None, task: Task | None = None,
) -> Sequence[Reply]:  # fmt: skip
    """Every prompt's answer, with tools where ``use`` says so: those it names, else those of ``task``."""
    from skillweave.tasks.agents.load import ToolSettings, agent_of, toolbox_of

    if use is None:
        return engine.generate(prompts, packs, sampling, label="answer")
    with agent_of(task, use.tools).toolbox if task else toolbox_of(use.tools or ToolSettings()) as toolbox:
        return engine.converse(
            prompts, packs, toolbox, use, temperature=sampling.temperature, seed=sampling.seed, label="answer"
        )
