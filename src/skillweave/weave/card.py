"""``weave.json``: the contents of a weave. Reading it imports neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from skillweave.delta.schema import DELTA_FILE, BaseRef
from skillweave.errors import UserError
from skillweave.files.folder import FileHashes, Folder
from skillweave.files.read import is_file, read_card_file
from skillweave.files.recover import settle
from skillweave.files.values import Flag, Line, Size, Version
from skillweave.pack.name import PackName
from skillweave.pack.stored import CARD_FILE

SCHEMA_VERSION = 2
WEAVE_FILE = "weave.json"
ROUTER_FILE = "router.json"
AGAIN = "Copy or build the weave again."


def _check_apart(names: list[str]) -> list[str]:
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in seen:
            raise ValueError(
                f"'{seen[name.casefold()]}' and '{name}' would be one folder on a system that ignores case"
            )
        seen[name.casefold()] = name
    return names


class BackboneRef(BaseModel):
    """The model that the delta in ``backbone/`` makes of the base. The packs belong on its fingerprint."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: Line


class WeaveCard(BaseModel):
    """``weave.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Version = SCHEMA_VERSION
    base: BaseRef
    """The base that the weave was built on, without the backbone's delta."""
    backbone: BackboneRef | None = None
    """None if the packs belong on the base itself."""
    packs: Annotated[list[PackName], Field(max_length=10_000), AfterValidator(_check_apart)]
    router: Flag = False
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = None
    """The dtype in which the base is served by default. None: as its files hold it."""
    backbone_codes: Literal["int8"] | None = None
    """The form of the base's linear layers when it is served by default. None: in ``dtype``."""
    budget: Size | None = None
    """Most bytes that the base and the loaded packs may take together. None: no limit."""
    files: FileHashes = {}
    """SHA-256 of the card of each part; that card holds the hashes of the part's files. Version 1 has none."""

    def parts(self) -> list[str]:
        """The paths of the cards of all parts: of each pack, the router and the backbone."""
        packs = [pack_card(name) for name in self.packs]
        router = [f"router/{ROUTER_FILE}"] if self.router else []
        return [*packs, *router, *([f"backbone/{DELTA_FILE}"] if self.backbone else [])]


def pack_card(name: str) -> str:
    """The path of a pack's card in a weave."""
    return f"packs/{name}/{CARD_FILE}"


def is_weave(folder: str | Path) -> bool:
    """Whether a folder is a weave."""
    settle(folder)
    return is_file(Path(folder) / WEAVE_FILE)


def read_card(folder: str | Path) -> WeaveCard:
    """Read ``weave.json``. Raises :class:`UserError` if it is missing, damaged, or of a newer version."""
    settle(folder)
    path = Path(folder) / WEAVE_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} is not a weave: it has no {WEAVE_FILE}. Name the folder that `skillweave build` wrote."
        )
    card = read_card_file(Folder(folder, WEAVE_FILE, AGAIN).file(WEAVE_FILE), WeaveCard, SCHEMA_VERSION, AGAIN)
    if card.schema_version > 1 and (odd := sorted(set(card.files) ^ set(card.parts()))):
        raise UserError(f"{path}: files: '{odd[0]}' is not the card of one part, each named once. {AGAIN}")
    return card


def check_part(folder: str | Path, card: WeaveCard, part: str) -> None:
    """Raise :class:`UserError` unless the card of a part is a regular file with the hash that ``weave.json`` names.

    ``part`` is one of :meth:`WeaveCard.parts`. For a weave of version 1, which names no hashes, only the kind of the
    file is checked.
    """
    reader = Folder(folder, WEAVE_FILE, AGAIN)
    try:
        if card.schema_version > 1:
            reader.matches(part, card.files[part])
        else:
            reader.file(part)
    except UserError as error:
        if _was_replaced(folder, card):
            raise UserError(f"{folder} was replaced by another weave after it was opened: open it again") from error
        raise


def _was_replaced(folder: str | Path, card: WeaveCard) -> bool:
    """Whether ``folder`` is a weave with another card."""
    try:
        return read_card(folder) != card
    except UserError:
        return False
