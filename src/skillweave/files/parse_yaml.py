"""Read YAML from strangers with limits: only plain values, and each alias counts as much as what it refers to."""

from __future__ import annotations

import re
from typing import Any

import yaml

from skillweave.errors import UserError
from skillweave.files.parse_json import DEEPEST, check_characters

_LARGEST = 2**21
"""Most characters of all texts and keys together, with aliases written out. A settings file has at most 2**20."""
_DATE = "tag:yaml.org,2002:timestamp"


class _Plain(yaml.SafeLoader):
    """A loader of texts, numbers, true, false, null, lists and mappings. A date stays a text, as in JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the parent has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._size = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node. Raises ``ComposerError`` if it is too deep, or too large with its aliases written out."""
        mark, before = self.peek_event().start_mark, self._size
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise yaml.composer.ComposerError(None, None, f"*{self._name_of(node)} contains itself", mark)
            self._size += self._sizes[id(node)]
        else:
            self._depth += 1
            if self._depth > DEEPEST:
                raise yaml.composer.ComposerError(
                    None, None, f"lists or mappings are nested more than {DEEPEST} deep", mark
                )
            node = super().compose_node(parent, index)
            self._depth -= 1
            self._size += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
            self._sizes[id(node)] = self._size - before
        if self._size > _LARGEST:
            raise yaml.composer.ComposerError(
                None, None, f"with its aliases written out, this has more than {_LARGEST:,} characters", mark
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """The next mapping. Raises ``ComposerError`` for a repeated key, because one of the values would be lost."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key '{key.value:.60}' appears twice in one mapping: remove one of them"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def _name_of(self, node: Any) -> str:
        return next((name for name, known in self.anchors.items() if known is node), "?")


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; ``where`` names its place in errors. Raises :class:`UserError`."""
    return _read(text, where, "get_single_data")


def yaml_nodes(text: str, where: str) -> Any:
    """The root node of a YAML text, whose nodes know their lines; None for an empty text."""
    return _read(text, where, "get_single_node")


def _read(text: str, where: str, wanted: str) -> Any:
    try:
        loader = _Plain(text)
        try:
            value = getattr(loader, wanted)()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
        # The name of an alias or a tag is what stands behind * or !, which may be meant as a text, and secret.
        problem = re.sub(r"(alias|tag) '.*'", r"\1", problem, flags=re.DOTALL)
        raise UserError(f"{where}{line}: not valid YAML ({problem})") from error
    except RecursionError:
        raise UserError(f"{where}: this YAML cannot be read: it is nested too deep") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML does not catch what its own constructors raise for a number or a tag that is not valid.
        raise UserError(f"{where}: a value in this YAML cannot be read ({error})") from error
    # Only an escape, for example "\\ud800", can express half a character.
    return check_characters(value, where) if wanted == "get_single_data" and "\\" in text else value
