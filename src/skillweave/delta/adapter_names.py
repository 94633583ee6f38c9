"""Map the names in an adapter file to those of the base, and match the patterns of its config in limited time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from skillweave.base.checkpoint import Checkpoint
from skillweave.errors import UserError
from skillweave.patterns import TooSlow, bounded_fullmatch

PREFIX = "base_model.model."
"""PEFT's prefix for the name of every tensor of the base."""
SAVED = ".modules_to_save."
"""What PEFT puts into the names of the tensors of a module that was trained as a whole."""

_LITERAL = re.compile(r"[\w.\-]+")


class Names:
    """The names of a base's tensors and modules, looked up by the names that adapters use.

    An adapter may leave out the base model's prefix (``model.``), have it twice, or have the ``language_model.`` of a
    multimodal model that contains this one. It may also lack the ``language_model.`` of a multimodal base, or have it
    in another place, as older transformers named it. A name that is not found is returned unchanged.
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
        return next((variant for variant in self._variants(name) if variant in self._tensors), name)

    def module(self, name: str) -> str:
        """The base's name of a module."""
        return next((variant for variant in self._variants(name) if variant in self._modules), name)

    def _variants(self, name: str) -> Iterable[str]:
        yield name
        start = f"{self._prefix}."
        bare = name
        while bare.startswith(start):
            bare = bare.removeprefix(start)
        text = bare.removeprefix("language_model.")
        for variant in (bare, text, text.removeprefix("model.")):
            yield f"{start}{variant}"
            yield variant
        yield f"{start}language_model.{text.removeprefix('model.')}"


def value_for(module: str, patterns: Mapping[str, Any] | None, default: Any, where: str) -> Any:
    """The value of the first pattern that matches a module's name, as in PEFT's ``rank_pattern``; else ``default``.

    A pattern is a regular expression for the end of the name, after a dot. Raises :class:`UserError`, which begins with
    ``where``, for a pattern that is not a valid expression or takes too long.
    """
    for pattern, value in (patterns or {}).items():
        if matches(pattern, module, where, start=r"(.*\.)?"):
            return value
    return default


def matches(pattern: str, name: str, where: str, start: str = "") -> bool:
    """Whether a pattern matches the whole ``name``, or with ``start`` its end, within a time limit."""
    if _LITERAL.fullmatch(pattern) and (name == pattern or (start and name.endswith(f".{pattern}"))):
        return True
    try:
        return bounded_fullmatch(rf"{start}({pattern})", name) is not None
    except (ValueError, TooSlow) as error:
        raise UserError(f"{where}: {error}. Or name the modules instead.") from error
