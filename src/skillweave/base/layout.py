"""Where the tensors of a file go in a model: transformers renames and joins them while it loads.

For example, the experts of a layer are one matrix each in the files and one tensor with three axes in the model. The
rules are transformers' own (:class:`skillweave.base.names.RenameRules`). They move, stack and transpose numbers and
never compute with them, so what holds for a weight holds for a difference of weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers.core_model_loading import dot_natural_key, revert_weight_conversion

from skillweave.base.names import RenameRules


class Layout:
    """The names and shapes that a model's tensors have in files, and how they get from there into the model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rules = RenameRules(model)
        self._parts: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
        self._stored_names: dict[str, str] = {}
        state = self._rules.state
        stored = revert_weight_conversion(model, state) if self._rules.any else state
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = self._rename(name)
            if pattern is None:
                self._stored_names[target] = name
            else:
                self._parts.setdefault(target, []).append((name, pattern, tuple(stored[name].shape)))

    def stored_name(self, name: str) -> str:
        """The name in files of a tensor of the model; ``name`` itself if the tensor is joined from several."""
        return self._stored_names.get(name, name)

    def place(self, stored: str) -> tuple[str, bool]:
        """(the name in the model of a tensor of the files, whether it is joined with others there).

        If it is joined, the name stands for all tensors that result: see :meth:`joined`.
        """
        target, pattern = self._rename(stored)
        return target, pattern is not None

    def parts(self, target: str) -> Iterable[str]:
        """The names in files of the tensors that are joined into ``target``."""
        return [name for name, _, _ in self._parts.get(target, ())]

    def joined(self, target: str, read: Callable[[str], torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """The tensors of the model, by name, that the parts of ``target`` make.

        ``read`` gives a part by its name in files; None counts as zeros.
        """
        parts = self._parts[target]
        pattern = parts[0][1]
        converter = copy.deepcopy(next(rule for rule in self._rules.converters if pattern in rule.source_patterns))
        for name, source, shape in parts:
            tensor = read(name)
            converter.add_tensor(target, name, source, torch.zeros(shape) if tensor is None else tensor)  # type: ignore[arg-type]
        made = converter.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _rename(self, stored: str) -> tuple[str, str | None]:
        return (stored, None) if stored in self._rules.state else self._rules.rename(stored)


Place = tuple[str, str]
"""A module's name, and the tensor's name in that module."""


def owners(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, list[Place]]]:
    """Every tensor of the model by each of its names, with all places that hold it; a tied tensor has several."""
    places: dict[int, list[Place]] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        module, _, own = name.rpartition(".")
        places.setdefault(id(tensor), []).append((module, own))
    return {name: (tensor, places[id(tensor)]) for name, tensor in named}
