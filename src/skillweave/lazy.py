"""Packages whose modules are imported when one of their names is first used, so using a small part stays fast.

``skillweave inspect`` reads JSON and headers, for example, and does not have to wait for torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, parts: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` (PEP 562) of a package that offers names from its modules.

    ``parts`` maps each module to its names, separated by spaces. A name must not equal the name of a module.
    """
    module_of = {name: module for module, names in parts.items() for name in names.split()}

    def get_name(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return get_name
