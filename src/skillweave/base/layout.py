"""How a model's parameters lie in its files: transformers renames and joins tensors while it loads them.

The experts of a layer, say, are one matrix each in the files and one tensor of three axes in the model. The rules are
transformers' own (``transformers.conversion_mapping``). They move, stack and turn numbers and never compute with them,
so what is true of a weight is true of a difference of weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch


class Layout:
    """The names and shapes that a model's tensors have in files, and the way from there into the model."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
            revert_weight_conversion,
        )

        self._model = model
        state = {name: tensor.detach().to("meta") for name, tensor in model.state_dict().items()}
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

        def renamed(name: str) -> tuple[str, str | None]:
            if name in state:
                return name, None
            return rename_source_key(name, renamings, self._converters, model.base_model_prefix, state)

        self._renamed = renamed
        self._parts: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
        stored = revert_weight_conversion(model, state) if rules else state
        self._stored_of: dict[str, str] = {}
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = renamed(name)
            if pattern is None:
                self._stored_of[target] = name
            else:
                self._parts.setdefault(target, []).append((name, pattern, tuple(stored[name].shape)))

    def stored_name(self, name: str) -> str:
        """The name in files of a tensor of the model; the same where it is joined of several."""
        return self._stored_of.get(name, name)

    def place(self, stored: str) -> tuple[str, bool]:
        """Where a tensor of the files goes: the name in the model, and whether it is joined with others there.

        Where it is, the name stands for all that comes of them: see :meth:`joined`.
        """
        target, pattern = self._renamed(stored)
        return target, pattern is not None

    def parts(self, target: str) -> Iterable[str]:
        """The names in files of what is joined into ``target``."""
        return [name for name, _, _ in self._parts.get(target, ())]

    def joined(self, target: str, read: Callable[[str], torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """The tensors of the model, by name, that the parts of ``target`` make; a part that is None counts as zeros."""
        parts = self._parts[target]
        pattern = parts[0][1]
        converter = copy.deepcopy(next(rule for rule in self._converters if pattern in rule.source_patterns))
        for name, source, shape in parts:
            tensor = read(name)
            converter.add_tensor(target, name, source, torch.zeros(shape) if tensor is None else tensor)  # type: ignore[arg-type]
        made = converter.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
