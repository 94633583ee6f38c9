"""``weave.json``: what a weave holds. Reading it needs none of what a weave answers with."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from skillweave.delta.schema import BaseRef
from skillweave.errors import UserError
from skillweave.files.read import read_card_file
from skillweave.files.recover import settle

SCHEMA_VERSION = 1
WEAVE_FILE = "weave.json"


class BackboneRef(BaseModel):
    """What the delta in ``backbone/`` makes of the base: the fingerprint that the packs belong on."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str


class WeaveCard(BaseModel):
    """``weave.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    base: BaseRef
    """The base that the weave was built on, before any backbone is laid on it."""
    backbone: BackboneRef | None = None
    """None: the packs belong on the base itself."""
    packs: list[str]
    router: bool = False
    dtype: str | None = None
    """In which the base is served unless the caller says otherwise (None: as its files hold it)."""
    budget: int | None = None
    """Bytes that the base and the packs in memory may take together, where the builder set a limit."""


def is_weave(folder: str | Path) -> bool:
    """Whether a folder holds a weave."""
    settle(folder)
    return (Path(folder) / WEAVE_FILE).is_file()


def read_card(folder: str | Path) -> WeaveCard:
    """Read ``weave.json``. Raises :class:`UserError` where it is missing, damaged or newer."""
    settle(folder)
    path = Path(folder) / WEAVE_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no weave: it has no {WEAVE_FILE}. Name the folder that `skillweave build` wrote.")
    return read_card_file(path, WeaveCard, SCHEMA_VERSION, "Build the weave again.")
