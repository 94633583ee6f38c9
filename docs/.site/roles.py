"""For the site: Sphinx roles of our docstrings, as :func:`name`, become plain code, which Markdown knows."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|mod|data|exc):(?=`)")


class Roles(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Strip the roles of one object's docstring."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub("", obj.docstring.value)
