"""The names that a pack may have. A name is a folder in a weave, and a model in requests to a server."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from skillweave.errors import UserError

_FORM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_RESERVED = {"base": "the plain base", "auto": "the router's choice"}


def check_name(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` is allowed as the name of a pack."""
    if not re.fullmatch(_FORM, name):
        raise UserError(
            f"{name[:100]!r} cannot name a pack: use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if name.casefold() in _RESERVED:
        raise UserError(f"'{name}' cannot name a pack: it stands for {_RESERVED[name.casefold()]}")


def as_pack_name(name: str) -> str:
    """Return ``name``. Raises ValueError, as a validator does, if no pack may have it."""
    try:
        check_name(name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


PackName = Annotated[str, AfterValidator(as_pack_name)]
"""The name of a pack, checked when a card is read."""
