"""The list of methods: a name, the config it reads, the function that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from skillweave.config import Config
from skillweave.errors import UserError, nearest

if TYPE_CHECKING:
    from skillweave.base import Base
    from skillweave.delta import Delta
    from skillweave.tasks.agents.load import ToolUse

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """A way to make a delta: ``run(base, config, out_dir)`` saves it in ``out_dir/"delta"`` and returns it.

    ``run`` resumes: called again with the same settings and folder it goes on where it was cut off.
    ``tool_use(config)``: how the skill is asked that it makes, where that is with tools.
    """

    name: str
    config: type[Config]
    run: Callable[[Base, Any, Path], Delta]
    tool_use: Callable[[Any], ToolUse | None] = lambda config: None


METHODS: dict[str, Method] = {}


def register(
    name: str, config_class: type[Config], tool_use: Callable[[Any], ToolUse | None] = Method.tool_use
) -> Callable[[F], F]:
    """Decorate a method's ``run`` to make it known under ``name``."""

    def decorate(run: F) -> F:
        if name in METHODS:
            raise ValueError(f"two methods are called '{name}'")
        METHODS[name] = Method(name, config_class, run, tool_use)
        return run

    return decorate


def get_method(name: str) -> Method:
    """The method of that name, or a :class:`UserError` with the nearest one."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'; {nearest(name, METHODS)}")
    return METHODS[name]
