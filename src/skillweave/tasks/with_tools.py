"""One door to a task and the tools it is solved with."""

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
    """The tools of a task that brings none: some of the built-in ones, and functions of your own."""

    names: tuple[str, ...] = ()
    """Of ``calculator``, ``python``, ``search``."""
    corpus: Path | None = None
    """What ``search`` searches: JSONL, a row ``{"title": ..., "text": ...}`` each."""
    functions: tuple[str, ...] = ()
    """``package.module:function`` or ``path/to/file.py:function``: typed, with a docstring.

    This runs your own code, in this process and with all its rights: the module when the task is loaded, the
    function whenever the model calls it. Only code inside the tool ``python`` is kept in the sandbox.
    """
    timeout: float = Field(5.0, gt=0, le=3600, allow_inf_nan=False)
    """Seconds a call may take."""

    @property
    def digests(self) -> list[str]:
        """What the schemas do not tell of the tools: digests of the text that is searched and of your own files."""
        own = [Path(place) for place in (named.rpartition(":")[0] for named in self.functions) if place.endswith(".py")]
        return [sha256_file(path) for path in ([self.corpus] if self.corpus else []) + own]


class ToolUse(ConversationSettings):
    """What a model may call while it answers a task, and how it is asked."""

    tools: ToolSettings | None = Field(default=None, description="what may be called; None: the task's own tools")


@dataclass(frozen=True)
class AgentTask:
    """A task, the tools it is solved with, and its scripted expert where there is one.

    ``solve(entry)`` gives an expert's messages after the prompt: assistant messages with ``tool_calls``, the result
    of each as the tool really gave it, and last the answer.
    """

    task: Task
    toolbox: Toolbox
    solve: Callable[[Entry], list[Message]] | None


def load_agent(
    task_spec: AnySpec | Mapping[str, Any] | str | Path, tools_settings: ToolSettings | None = None
) -> AgentTask:
    """:func:`agent_of` a task that is loaded here. Raises :class:`UserError` for what :func:`load_task` refuses too."""
    return agent_of(load_task(task_spec), tools_settings)


def agent_of(task: Task, tools_settings: ToolSettings | None = None) -> AgentTask:
    """A task with its tools: a family's own, else those that ``tools_settings`` name.

    Raises :class:`UserError` for a family that is given tools, a task that has none, an unknown tool, a corpus without
    ``search`` and the reverse, and a function that cannot be imported.
    """
    settings = tools_settings or ToolSettings()
    if (misfit := tools_misfit(task.spec, settings, f"task '{task.name}'")) is not None:
        raise UserError(misfit)
    if isinstance(task.spec, BuiltinSpec) and isinstance(family := BUILTINS[task.spec.name], Family):
        return _family_task(task, family, task.spec)
    told = next((entry for split in task.splits.values() for entry in split if tools_of(entry.prompt)), None)
    if told is not None:
        raise UserError(
            f"task '{task.name}': {told.metadata.get('where', 'a row')} tells the model of tools of its own, which "
            "cannot be run: remove its 'tools' (columns: {tools: null} passes them over), or ask it without tools"
        )
    return AgentTask(task, toolbox_of(settings), None)


def brings_tools(spec: AnySpec) -> bool:
    """Whether a task comes with tools of its own."""
    return isinstance(spec, BuiltinSpec) and isinstance(BUILTINS.get(spec.name), Family)


def tools_misfit(spec: AnySpec, tools: ToolSettings, called: str = "the task") -> str | None:
    """Why these tools do not go with that task, as far as the settings alone tell; None where they do.

    An unknown builtin is passed over: :func:`load_task` names the nearest.
    """
    if isinstance(spec, BuiltinSpec) and brings_tools(spec):
        own = f"builtin:{spec.name} brings its own tools: leave the settings of tools out"
        return None if tools == ToolSettings() else own
    if tools.names or tools.functions or (isinstance(spec, BuiltinSpec) and spec.name not in BUILTINS):
        return None
    return f"{called} brings no tools: name some, for example tools: {{names: [calculator]}}"


def _family_task(task: Task, family: Family, spec: BuiltinSpec) -> AgentTask:
    settings = read_config(family.settings, spec.config, called=f"config of builtin:{spec.name}")
    toolbox = family.toolbox(settings)

    def solve(entry: Entry) -> list[Message]:
        return family.solve(as_messages(entry.prompt)[-1]["content"], settings, toolbox.open())

    return AgentTask(task, toolbox, solve)


def toolbox_of(settings: ToolSettings) -> Toolbox:
    """The tools that the settings name, the built-in ones first. Raises :class:`UserError`."""
    if settings.corpus is not None and "search" not in settings.names:
        raise UserError(f"the corpus {settings.corpus} is given, but no search in it: add search to the tools' names")
    toolbox = Toolbox(timeout=settings.timeout)
    add_tools(toolbox, settings.names, settings.corpus)
    for named in settings.functions:
        toolbox.register(import_function(named))
    return toolbox
