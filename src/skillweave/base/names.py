"""One rule for names: which tensor of the model class a tensor of a file is.

The rule is transformers' own for loading (``core_model_loading``): renamings of older files, the base model's prefix,
and converters, which put several tensors of the files together to one of the class (the experts of a mixture) or cut
one up. Converted tensors keep the name that they have in the files, with the prefix of the class: files of one
architecture share it, and tools outside of transformers know it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from skillweave.errors import UserError


class NameRule:
    """The rule of one model class; ``skeleton`` is a model of it, with or without values."""

    def __init__(self, skeleton: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._known = skeleton.state_dict()
        ignored = [re.compile(pattern) for pattern in getattr(skeleton, "_keys_to_ignore_on_load_missing", None) or ()]
        named = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
        self._parameters = {name for name in named if not any(pattern.search(name) for pattern in ignored)}
        self._prefix = skeleton.base_model_prefix
        rules = get_model_conversion_mapping(skeleton)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

    def of(self, raw: str) -> str | None:
        """The name for a tensor that a file calls ``raw``; None where the class has no place for it."""
        name, converter = self._renamed(raw)
        if name not in self._known:
            return None
        if converter is None:
            return name
        head = f"{self._prefix}."
        return head + raw if self._prefix and name.startswith(head) and not raw.startswith(head) else raw

    def missing(self, raws: Iterable[str], ties: Mapping[str, str]) -> list[str]:
        """The class's parameters that tensors called ``raws`` in the files do not fill, sorted.

        ``ties``: name -> the name whose values it repeats.
        """
        filled = set()
        for raw in raws:
            name, converter = self._renamed(raw)
            filled.add(name)
            for rule in self._converters:
                if converter in rule.source_patterns:
                    first = rule.target_patterns[0]
                    filled.update(name.replace(first, target) for target in rule.target_patterns)
        filled.update([near for far, near in ties.items() if far in filled])
        filled.update([far for far, near in ties.items() if near in filled])
        return sorted(self._parameters - filled)

    def _renamed(self, raw: str) -> tuple[str, str | None]:
        """(name of the tensor that the class makes of ``raw``, the first one of several; the converter's pattern)."""
        from transformers.core_model_loading import rename_source_key

        where: dict[str, Any] = {"base_model_prefix": self._prefix, "meta_state_dict": self._known}
        name, converter = rename_source_key(raw, self._renamings, self._converters, **where)
        if name not in self._known and raw in self._known:
            name, converter = rename_source_key(raw, [], [], **where)
        return name, converter

    def names(self, raws: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
        """(name -> name in the files, names in the files that the class has no place for).

        Raises :class:`UserError` where two tensors of the files would be one of the class.
        """
        names: dict[str, str] = {}
        left = []
        for raw in raws:
            name = self.of(raw)
            if name is None:
                left.append(raw)
            elif name in names:
                raise UserError(
                    f"{where}: '{names[name]}' and '{raw}' are both '{name}' of the model: one of them is left from "
                    f"another save. Save the model again with each tensor once."
                )
            else:
                names[name] = raw
        return names, left

    def converted(self, name: str) -> bool:
        """Whether the class has the tensor ``name`` of the files only as a part of another, or in parts."""
        return name not in self._known
