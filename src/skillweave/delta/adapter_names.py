"""The names in an adapter file, brought to those of the base; the patterns of its config, matched within a limit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from skillweave.base.checkpoint import Checkpoint
from skillweave.errors import UserError
from skillweave.patterns import TooSlow, bounded_fullmatch

PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor of the base."""

_LITERAL = re.compile(r"[\w.\-]+")


class Names:
    """Names of a base's tensors and modules, found under the forms that adapters give them.

    An adapter may leave out the base model's prefix (``model.``), have it twice, or carry the ``language_model.`` of
    a model with images around this one. A name that is not found is returned as it is.
    """

    def __init__(self, tensors: Iterable[str], modules: Iterable[str] = (), prefix: str = "model") -> None:
        self._tensors = set(tensors)
        self._modules = {name.rpartition(".")[0] for name in self._tensors} | set(modules)
        self._prefix = prefix

    @classmethod
    def of(cls, base: Checkpoint) -> Names:
        """The names of ``base``: those of its files, and those of its model class."""
        skeleton = base.skeleton
        tensors = {*base.names(), *base.tied, *skeleton.state_dict()}
        modules = dict(skeleton.named_modules(remove_duplicate=False))
        return cls(tensors, modules, getattr(skeleton, "base_model_prefix", "") or "model")

    @property
    def modules(self) -> set[str]:
        """The base's names of all its modules."""
        return self._modules

    @property
    def tensors(self) -> set[str]:
        """The base's names of all its tensors, in its files and in its model class."""
        return self._tensors

    def tensor(self, name: str) -> str:
        """The base's name of a tensor."""
        return next((form for form in self._forms(name) if form in self._tensors), name)

    def module(self, name: str) -> str:
        """The base's name of a module."""
        return next((form for form in self._forms(name) if form in self._modules), name)

    def _forms(self, name: str) -> Iterable[str]:
        yield name
        start = f"{self._prefix}."
        bare = name
        while bare.startswith(start):
            bare = bare.removeprefix(start)
        for form in (bare, bare.removeprefix("language_model."), bare.removeprefix("language_model.model.")):
            yield f"{start}{form}"
            yield form


def value_for(module: str, patterns: Mapping[str, Any] | None, default: Any, where: str) -> Any:
    """The value of the first pattern that matches a module's name, as PEFT finds it in ``rank_pattern`` and its like.

    A pattern is a regular expression for the end of the name, from a dot on. Raises :class:`UserError` that begins
    with ``where`` for one that is no expression or takes too long.
    """
    for pattern, value in (patterns or {}).items():
        if matches(pattern, module, where, start=r"(.*\.)?"):
            return value
    return default


def matches(pattern: str, name: str, where: str, start: str = "") -> bool:
    """Whether a stranger's pattern matches the whole ``name``, or with ``start`` the end of it, within a time limit."""
    if _LITERAL.fullmatch(pattern) and (name == pattern or (start and name.endswith(f".{pattern}"))):
        return True
    try:
        return bounded_fullmatch(rf"{start}({pattern})", name) is not None
    except (ValueError, TooSlow) as error:
        raise UserError(f"{where}: {error}. Or name the modules instead.") from error
