"""Packages whose parts are imported when they are first asked for, so that a small part does not cost all of them.

``skillweave inspect`` reads JSON and headers: it need not wait for torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, parts: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` (PEP 562) of a package that offers names of its modules.

    ``parts``: for each module the names that it holds, with spaces between. No name may be that of a module.
    """
    module_of = {name: module for module, names in parts.items() for name in names.split()}

    def found(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return found
