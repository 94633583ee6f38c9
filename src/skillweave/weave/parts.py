"""The parts of a weave's folder: names of packs, packs written and read, and the base opened with its backbone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from skillweave.artefact import write_text
from skillweave.base import Base, open_base
from skillweave.errors import UserError
from skillweave.files.folder import Folder, named_shortly
from skillweave.files.hashes import shortened
from skillweave.files.read import read_bytes
from skillweave.files.whole import read_whole
from skillweave.pack import BaseRef, Skillpack, check_name
from skillweave.pack.card import card_text
from skillweave.pack.find import pack_folder
from skillweave.pack.stored import AGAIN, CARD_FILE, PARTS, README_FILE
from skillweave.progress import say_once
from skillweave.weave.backbone import lay_on
from skillweave.weave.card import ROUTER_FILE, WEAVE_FILE, BackboneRef, WeaveCard, check_part, pack_card
from skillweave.weave.int8_backbone import INT8, is_int8, put_into_int8
from skillweave.weave.router import PARTS as ROUTER_PARTS
from skillweave.weave.router import Router


def check_names(names: Collection[str]) -> None:
    """Raise :class:`UserError` for a name that no pack may have, and for two names that differ only in case."""
    seen: dict[str, str] = {}
    for name in names:
        check_name(name)
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise UserError(
                f"the packs '{other}' and '{name}' would be one folder on a system that ignores case: rename one"
            )


def read_pack(folder: Path, card: WeaveCard, name: str) -> Skillpack:
    """Read a pack of the weave in ``folder``. Raises :class:`UserError` unless it is the pack that the card names."""
    place = folder / "packs" / name

    def read() -> Skillpack:
        check_part(folder, card, pack_card(name))
        return Skillpack.read_once(place)

    pack = read_whole(place, PARTS, read)
    if pack.card.name != name:
        raise UserError(
            f"{folder / pack_card(name)}: name: the pack in the folder '{name}' is called '{pack.card.name}': copy or "
            f"build the weave again"
        )
    return pack


def read_router(folder: Path, card: WeaveCard) -> Router:
    """Read the router of the weave in ``folder``. Raises :class:`UserError` unless it is the card's."""
    place = folder / "router"

    def read() -> Router:
        check_part(folder, card, f"router/{ROUTER_FILE}")
        return Router.load_once(place)

    return read_whole(place, ROUTER_PARTS, read)


@dataclass(frozen=True)
class AddedPack:
    """A pack that is not of the weave's folder, where it lies, and the hash of its card."""

    name: str
    folder: Path
    card_hash: str

    @classmethod
    def of(cls, source: str | Path) -> tuple[AddedPack, Skillpack]:
        """Read the pack in a folder, or in a repository of the hub, which is downloaded. Raises :class:`UserError`."""
        folder = pack_folder(source)

        def read() -> tuple[str, Skillpack]:
            card = read_bytes(Folder(folder, CARD_FILE, AGAIN).file(CARD_FILE))
            return sha256(card).hexdigest(), Skillpack.read_once(folder)

        card_hash, pack = read_whole(folder, PARTS, read)
        return cls(pack.card.name, folder, card_hash), pack

    def check(self) -> None:
        """Raise :class:`UserError` unless the card is still the one that was added."""
        card = read_bytes(Folder(self.folder, CARD_FILE, AGAIN).file(CARD_FILE))
        if sha256(card).hexdigest() != self.card_hash:
            raise UserError(
                f"{self.folder} does not hold the pack '{self.name}' that was added any more: remove the pack and add "
                f"it again"
            )

    def read(self) -> Skillpack:
        """Read the pack. Raises :class:`UserError` if it is not the one that was added."""

        def read() -> Skillpack:
            self.check()
            return Skillpack.read_once(self.folder)

        return read_whole(self.folder, PARTS, read)


def put_pack(given: str | Path | Skillpack, name: str, fingerprint: str, to: Path) -> None:
    """Write a pack into the folder ``to`` of a weave, under the name ``name``.

    From a folder, the files that its card names are copied byte for byte, unless the name changes. Raises
    :class:`UserError` if the pack does not belong on the base with this fingerprint.
    """
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


def open_base_of(
    folder: Path,
    card: WeaveCard,
    base: Base | str | Path | None,
    dtype: str | torch.dtype | None,
    codes: str | None,
    device: str | torch.device | None,
    budget: int | None,
) -> Base:
    """Open the model that the packs of a weave belong on: its base, with the backbone's delta if there is one.

    ``base`` is an open model or a reference, ``codes`` its form ("int8" or "dtype"); None: as the card says. Raises
    :class:`UserError` if it is another model, and if an open model must be in int8 and is not.
    """
    int8 = (codes or card.backbone_codes) == INT8
    if isinstance(base, Base):
        _check_is(base, card.backbone or card.base, folder, card)
        if int8 and not is_int8(base):
            if codes is not None:
                raise UserError(
                    "backbone int8 changes the base's layers, and an open base is used as it is: name the base by its "
                    "reference, or call skillweave.weave.put_into_int8(base) before"
                )
            say_once(f"{folder} is served with an int8 backbone by default; the open base is used as it is")
        return base
    ref = card.base.ref if base is None else base
    try:
        opened = open_base(ref, dtype=dtype or card.dtype, device=device, budget=budget)
    except UserError as error:
        if base is not None:
            raise
        raise UserError(
            f"{folder / WEAVE_FILE} names the base '{ref}', which cannot be opened: {error}\n"
            f"If it is in another place, name it with base=..."
        ) from error
    _check_is(opened, card.base, folder, card)
    if card.backbone is not None:
        opened = lay_on(opened, folder, card, card.backbone.fingerprint)
    if int8:
        put_into_int8(opened)
    return opened


def _check_is(opened: Base, expected: BaseRef | BackboneRef, folder: Path, card: WeaveCard) -> None:
    if opened.fingerprint == expected.fingerprint:
        return
    if expected is card.backbone and opened.fingerprint == card.base.fingerprint:
        raise UserError(
            f"{folder} has a backbone, and {opened.ref} is the plain base without it: name the base by its reference, "
            f"base='{opened.ref}', so that the backbone's delta is added to a copy"
        )
    wanted = "the backbone of " if expected is card.backbone else ""
    own, other = shortened(expected.fingerprint, opened.fingerprint)
    raise UserError(
        f"{folder} was woven for {wanted}{card.base.ref} ({own}), and {opened.ref} has "
        f"the fingerprint {other}: open that base instead"
    )
