"""A griffe extension: turns the Sphinx roles in docstrings (:func:`name`) into plain code, which Markdown can show."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|mod|data|exc):(?=`)")


class Roles(griffe.Extension):
    """Removes the roles from every docstring when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Remove the roles from the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub("", obj.docstring.value)
