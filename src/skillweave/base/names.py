"""Which tensor of the model class a tensor of a file is, by the rules that transformers itself loads with.

There are three kinds of rules (``transformers.core_model_loading``): renamings of older files, the base model's prefix,
and converters, which put several tensors of the files together into one of the class (the experts of a mixture) or
split one. Converted tensors keep the name that they have in the files, with the prefix of the class: the files of one
architecture share it, and tools other than transformers know it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from skillweave.errors import UserError

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "pretrained_model": "a value head of TRL",
    "base_model": "PEFT",
    "base_layer": "PEFT",
}
"""Part of a tensor's name -> what wraps a module and adds that part."""


def wrapper_in(name: str) -> str | None:
    """The first part of a tensor's name that a wrapper has added; None if there is none."""
    return next((part for part in name.split(".") if part in WRAPPERS), None)


class RenameRules:
    """transformers' rules for one model class; ``model`` is a model of it, with or without values.

    Attributes: ``converters`` (put tensors of files together or split them), ``state`` (the model's ``state_dict`` on
    the ``meta`` device), ``any`` (whether the class has any rule).
    """

    def __init__(self, model: Any) -> None:
        rules = get_model_conversion_mapping(model)
        self.any = bool(rules)
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self.state = {name: tensor.detach().to("meta") for name, tensor in model.state_dict().items()}
        self.prefix = model.base_model_prefix
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]

    def rename(self, stored: str, *, by_prefix_alone: bool = False) -> tuple[str, str | None]:
        """(name of the tensor that the class makes of a file's tensor ``stored``, the converter's pattern or None).

        Where a converter splits a tensor, the name is that of the first part. ``by_prefix_alone`` ignores renamings
        and converters.
        """
        renamings, converters = ([], []) if by_prefix_alone else (self._renamings, self.converters)
        return rename_source_key(stored, renamings, converters, self.prefix, self.state)


class NameRule:
    """The names of one model class for the tensors of files; ``skeleton`` is a model of it, with or without values."""

    def __init__(self, skeleton: Any) -> None:
        self._rules = RenameRules(skeleton)
        ignored = [re.compile(pattern) for pattern in getattr(skeleton, "_keys_to_ignore_on_load_missing", None) or ()]
        named = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
        self._parameters = {name for name in named if not any(pattern.search(name) for pattern in ignored)}

    def names(self, stored: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
        """(name -> name in the files, names in the files that the class has no place for).

        ``where`` names the files in messages. Raises :class:`UserError` if two tensors of the files would be one of
        the class, and for names that a wrapper around the model has changed.
        """
        names: dict[str, str] = {}
        left_over = []
        for raw in stored:
            name = self._name_of(raw)
            if name is None:
                left_over.append(raw)
            elif name in names:
                raise UserError(
                    f"{where}: '{names[name]}' and '{raw}' are both '{name}' of the model: one of them is left from "
                    f"another save. Save the model again with each tensor once."
                )
            else:
                names[name] = raw
        self._check_wrapped(left_over, names, where)
        return names, left_over

    def _check_wrapped(self, left_over: Iterable[str], names: Mapping[str, str], where: str) -> None:
        """Raise :class:`UserError` for a tensor whose name fits once the names of wrappers are taken out."""
        for raw in left_over:
            wrapper = wrapper_in(raw)
            inner = self._name_of(".".join(part for part in raw.split(".") if part not in WRAPPERS))
            if wrapper is not None and inner is not None and inner not in names:
                by = WRAPPERS[wrapper]
                fix = f"Save the model inside it, or take '{wrapper}.' out of the names of the tensors."
                if by == "PEFT":
                    fix = "Merge the adapter before you save the model (merge_and_unload), or save the adapter alone."
                raise UserError(f"{where}: '{raw}' is '{inner}' of a model that {by} wrapped when it was saved. {fix}")

    def missing(self, stored: Iterable[str], ties: Mapping[str, str]) -> list[str]:
        """The class's parameters that the files' tensors ``stored`` do not fill, sorted.

        ``ties``: name -> the name whose values it repeats.
        """
        filled = set()
        for raw in stored:
            name, converter = self._rename(raw)
            filled.add(name)
            for rule in self._rules.converters:
                if converter in rule.source_patterns:
                    first = rule.target_patterns[0]
                    filled.update(name.replace(first, target) for target in rule.target_patterns)
        filled.update([near for far, near in ties.items() if far in filled])
        filled.update([far for far, near in ties.items() if near in filled])
        return sorted(self._parameters - filled)

    def _name_of(self, raw: str) -> str | None:
        """The name for a tensor that a file calls ``raw``; None if the class has no place for it."""
        name, converter = self._rename(raw)
        if name not in self._rules.state:
            return None
        if converter is None:
            return name
        head = f"{self._rules.prefix}."
        return head + raw if self._rules.prefix and name.startswith(head) and not raw.startswith(head) else raw

    def _rename(self, raw: str) -> tuple[str, str | None]:
        name, converter = self._rules.rename(raw)
        if name not in self._rules.state and raw in self._rules.state:
            name, converter = self._rules.rename(raw, by_prefix_alone=True)
        return name, converter
