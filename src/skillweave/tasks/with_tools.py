"""A task together with the tools that solve it, and the settings of these tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from skillweave.base.chat import Message, as_messages, tools_of
from skillweave.config import Config, read_config
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.tasks.builtin import BUILTINS
from skillweave.tasks.builtin.family import Family
from skillweave.tasks.load import load_task
from skillweave.tasks.spec import AnySpec, BuiltinSpec
from skillweave.tasks.task import Entry, Task
from skillweave.tools.builtin import add_tools
from skillweave.tools.conversation import ConversationSettings
from skillweave.tools.own_code import import_function
from skillweave.tools.toolbox import Toolbox


class ToolSettings(Config):
    """The tools of a task that brings none: some of the built-in tools, and functions of your own.

    ``functions`` run your own code in this process with all its rights: the module when the task is loaded, the
    function whenever the model calls it. Only code inside the tool ``python`` runs in the sandbox.
    """

    names: tuple[str, ...] = Field(default=(), description="built-in tools: calculator, python, search")
    corpus: Path | None = Field(
        default=None, description='the texts for search: a JSONL file with rows {"title": ..., "text": ...}'
    )
    functions: tuple[str, ...] = Field(
        default=(),
        description="your own functions, as package.module:function or path/to/file.py:function; they need type hints "
        "and a docstring, and run in this process with all its rights, outside the sandbox",
    )
    timeout: float = Field(
        default=5.0, gt=0, le=3600, allow_inf_nan=False, description="the most seconds that a call may take"
    )

    @property
    def digests(self) -> list[str]:
        """What the schemas do not show: digests of the corpus and of your own files."""
        modules = [function.rpartition(":")[0] for function in self.functions]
        files = [Path(module) for module in modules if module.endswith(".py")]
        return [sha256_file(path) for path in ([self.corpus] if self.corpus else []) + files]


class ToolUse(ConversationSettings):
    """The tools that a model may call while it answers a task, and how its conversations are played."""

    tools: ToolSettings | None = Field(
        default=None, description="tools that the model may call; None: the task's own tools"
    )


@dataclass(frozen=True)
class AgentTask:
    """A task, the tools that solve it, and its scripted expert or None.

    ``solve(entry)`` returns an expert's messages after the prompt: assistant messages with ``tool_calls``, the real
    result of each call, and last the answer.
    """

    task: Task
    toolbox: Toolbox
    solve: Callable[[Entry], list[Message]] | None


def load_agent(
    task_spec: AnySpec | Mapping[str, Any] | str | Path, tools_settings: ToolSettings | None = None
) -> AgentTask:
    """Load a task and its tools.

    Raises :class:`UserError` for every mistake, as :func:`load_task` and :func:`agent_of` do.
    """
    return agent_of(load_task(task_spec), tools_settings)


def agent_of(task: Task, tools_settings: ToolSettings | None = None) -> AgentTask:
    """A task with its tools: a family's own, else those that ``tools_settings`` name.

    Raises :class:`UserError` if a family is given tools, if a task has none, if a tool is unknown, if only one of
    ``search`` and the corpus is given, or if a function cannot be imported.
    """
    settings = tools_settings or ToolSettings()
    if (misfit := tools_misfit(task.spec, settings, f"task '{task.name}'")) is not None:
        raise UserError(misfit)
    if isinstance(task.spec, BuiltinSpec) and isinstance(family := BUILTINS[task.spec.name], Family):
        return _family_task(task, family, task.spec)
    entries = (entry for split in task.splits.values() for entry in split)
    with_own_tools = next((entry for entry in entries if tools_of(entry.prompt)), None)
    if with_own_tools is not None:
        raise UserError(
            f"task '{task.name}': {with_own_tools.metadata.get('where', 'a row')} lists tools of its own, which cannot "
            "be run: remove its 'tools' (columns: {tools: null} ignores them), or use the task without tools"
        )
    return AgentTask(task, toolbox_of(settings), None)


def brings_tools(spec: AnySpec) -> bool:
    """Whether a task brings its own tools."""
    return isinstance(spec, BuiltinSpec) and isinstance(BUILTINS.get(spec.name), Family)


def tools_misfit(spec: AnySpec, tools: ToolSettings, called: str = "the task") -> str | None:
    """Why these tools do not fit the task, as far as the settings alone can tell; None if they fit.

    An unknown builtin is ignored here: :func:`load_task` names the nearest one.
    """
    if isinstance(spec, BuiltinSpec) and brings_tools(spec):
        own = f"builtin:{spec.name} brings its own tools: leave the settings of tools out"
        return None if tools == ToolSettings() else own
    if tools.names or tools.functions or (isinstance(spec, BuiltinSpec) and spec.name not in BUILTINS):
        return None
    return f"{called} brings no tools: name some, for example tools: {{names: [calculator]}}"


def _family_task(task: Task, family: Family, spec: BuiltinSpec) -> AgentTask:
    """A task with the tools and the expert of its family."""
    settings = read_config(family.settings, spec.config, called=f"config of builtin:{spec.name}")
    toolbox = family.toolbox(settings)

    def solve(entry: Entry) -> list[Message]:
        return family.solve(as_messages(entry.prompt)[-1]["content"], settings, toolbox.open())

    return AgentTask(task, toolbox, solve)


def toolbox_of(settings: ToolSettings) -> Toolbox:
    """A toolbox with the tools that the settings name, the built-in ones first. Raises :class:`UserError`."""
    if settings.corpus is not None and "search" not in settings.names:
        raise UserError(
            f"the corpus {settings.corpus} is given without the tool search: add search to the tools' names"
        )
    toolbox = Toolbox(timeout=settings.timeout)
    add_tools(toolbox, settings.names, settings.corpus)
    for function in settings.functions:
        toolbox.register(import_function(function))
    return toolbox
