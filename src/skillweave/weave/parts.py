"""The packs of a weave in its folder: which names they may have, how they are put there, how they are read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from skillweave.artefact import write_text
from skillweave.errors import UserError
from skillweave.files.folder import Folder, named_shortly
from skillweave.pack import Skillpack, check_name
from skillweave.pack.card import card_text
from skillweave.pack.stored import AGAIN, CARD_FILE, README_FILE
from skillweave.progress import say_once
from skillweave.weave.card import WeaveCard, check_part, pack_card


def check_names(names: Collection[str]) -> None:
    """Raise :class:`UserError` for what no pack may be called, and for two names that are one where case is ignored."""
    seen: dict[str, str] = {}
    for name in names:
        check_name(name)
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise UserError(f"the packs '{other}' and '{name}' would be one folder where case is ignored: rename one")


def read_pack(folder: Path, card: WeaveCard, name: str) -> Skillpack:
    """A pack of the weave in ``folder``, checked to be the one that it was woven with."""
    check_part(folder, card, pack_card(name))
    pack = Skillpack.from_pretrained(folder / "packs" / name)
    if pack.card.name != name:
        raise UserError(
            f"{folder / pack_card(name)}: name: the pack in the folder '{name}' is called '{pack.card.name}': copy or "
            f"build the weave again"
        )
    return pack


def put_pack(given: str | Path | Skillpack, name: str, fingerprint: str, to: Path) -> None:
    """Put a pack into a weave, under its name there: of a folder the files that its card names, byte for byte."""
    pack = given if isinstance(given, Skillpack) else Skillpack.from_pretrained(given)
    pack.check_base(fingerprint)
    if isinstance(given, Skillpack) or pack.card.name != name:
        pack.check_values()
        card = pack.card.model_copy(update={"name": name})
        Skillpack(card, pack.tensors, pack.carried).save_pretrained(to)
        return
    source = Folder(given, CARD_FILE, AGAIN)
    source.copy(pack.card.files, to)
    write_text(to / README_FILE, card_text(pack.card))
    if left := source.unnamed({*pack.card.files, README_FILE}):
        say_once(f"{given}: {named_shortly(left)} is not named by the pack's card and was not copied")
