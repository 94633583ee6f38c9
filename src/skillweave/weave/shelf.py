"""The packs that a weave knows, in memory or not: where they lie, and how they are read, checked and prepared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skillweave.base import Base
from skillweave.errors import UserError, nearest, shown_value
from skillweave.files.folder import Folder
from skillweave.pack import Skillpack
from skillweave.pack.stored import AGAIN, CARD_FILE
from skillweave.weave.card import WeaveCard, check_part, pack_card
from skillweave.weave.kept import KeptPacks, ReadPack
from skillweave.weave.packed_model import PackedModel
from skillweave.weave.parts import AddedPack, check_names, read_pack


class PackShelf:
    """The packs of a weave's folder, or those given to a weave in memory, and the packs that were added to it.

    - ``folder``: of the weave; None: its packs are ``in_memory``
    - ``base``, ``packed_model``: the model that packs are checked against and prepared for
    - ``require_audit``: refuse a pack without an audit on its card, or with an alarm
    """

    def __init__(
        self,
        folder: Path | None,
        card: WeaveCard,
        in_memory: Mapping[str, Skillpack],
        base: Base,
        packed_model: PackedModel,
        require_audit: bool,
    ) -> None:
        self._folder = folder
        self.where = "this weave" if folder is None else f"the weave in {folder}"
        self._card = card
        self._in_memory = in_memory
        self._base = base
        self._packed_model = packed_model
        self._require_audit = require_audit
        self._added: dict[str, AddedPack] = {}
        self._kept = KeptPacks()

    @property
    def names(self) -> list[str]:
        """The names of all packs of the weave, and of those that were added to it."""
        return [*self._card.packs, *self._added]

    def check_known(self, name: str) -> None:
        """Raise :class:`UserError` for a name that the weave does not have."""
        if name not in self.names:
            raise UserError(f"{self.where} has no pack {shown_value(name)}; {nearest(name, self.names)}")

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, name: str, *, keep: bool = False) -> ReadPack:
        """Return a pack, read, checked and prepared for :meth:`skillweave.weave.Weave.put`.

        It may be called in any thread while batches run, after ``packed_model.watch()``. ``keep``: write a copy of what
        was prepared into the cache folder (:mod:`skillweave.weave.kept`). As long as the pack's files have the same
        hashes, later calls read this copy, which takes milliseconds. Raises :class:`UserError` for a name that the
        weave does not have, a pack that is damaged or made for another base, and for one without the audit that was
        required.
        """
        self.check_known(name)
        if self._unchanged(name) and (kept := self._kept.read(name)) is not None:
            return kept
        pack = self._skillpack(name)
        pack.check_base(self._base.fingerprint, self._base.model.config)
        if self._require_audit:
            pack.check_audit()
        voice = pack.voice(self._base)
        if pack.carried.has_tokenizer and (self._folder is not None or name in self._added):
            voice.tokenizer.travels_with = f"the pack '{name}' of {self.where}"  # what errors call the template
        ready = self._packed_model.prepare(name, pack)
        card_hash = self._card_hash(name)
        files = {} if card_hash is None else {CARD_FILE: card_hash, **pack.card.files}
        read = ReadPack(ready, voice, pack.card.probe, files, pack.carried.has_tokenizer, pack.card.prefill)
        if keep:
            self._kept.keep(read)
        return read

    def digest(self, name: str) -> str:
        """The :attr:`Skillpack.digest` of a pack, which is read for it.

        Raises :class:`UserError` for a name that the weave does not have, and for a pack whose files have changed.
        """
        self.check_known(name)
        return self._skillpack(name).digest

    def _skillpack(self, name: str) -> Skillpack:
        if name in self._added:
            return self._added[name].read()
        return self._in_memory[name] if self._folder is None else read_pack(self._folder, self._card, name)

    def _unchanged(self, name: str) -> bool:
        """Whether a pack has a copy in the cache folder, and all its files still have the hashes of that time."""
        files = self._kept.files(name)
        if files is None:
            return False
        try:
            self._check_card(name)
            Folder(self._pack_folder(name), CARD_FILE, AGAIN).verified(files)
        except UserError:  # reading the pack says what is wrong with it
            self._kept.drop(name)
            return False
        return True

    def _pack_folder(self, name: str) -> Path:
        if name in self._added:
            return self._added[name].folder
        assert self._folder is not None
        return self._folder / "packs" / name

    def _check_card(self, name: str) -> None:
        """Raise :class:`UserError` unless the card of a pack, which lies in a folder, is the one that was named."""
        if name in self._added:
            self._added[name].check()
        elif self._folder is not None:
            check_part(self._folder, self._card, pack_card(name))

    def _card_hash(self, name: str) -> str | None:
        """The hash of the card that a pack's files were checked by; None if no file names one."""
        return self._added[name].card_hash if name in self._added else self._card.files.get(pack_card(name))

    # -- packs that come and go ----------------------------------------------------------------------------------

    def add(self, source: str | Path) -> str:
        """Make a pack known that is not of the weave, and return its name. It is not loaded; no file is written.

        ``source`` is the folder of a pack, or a hub id (``owner/name``), whose pack is downloaded. Raises
        :class:`UserError` if its name is taken, if it is damaged, or made for another base.
        """
        added, pack = AddedPack.of(source)
        pack.check_base(self._base.fingerprint)
        check_names([*self.names, added.name])
        if added.name in self.names:
            raise UserError(
                f"{self.where} has a pack '{added.name}' already: give the pack in {added.folder} another name"
            )
        self._added[added.name] = added
        return added.name

    def check_added(self, name: str) -> None:
        """Raise :class:`UserError` unless :meth:`add` made the pack known."""
        self.check_known(name)
        if name not in self._added:
            raise UserError(f"the pack '{name}' belongs to {self.where}: only packs that were added can be forgotten")

    def forget(self, name: str) -> None:
        """Forget a pack that :meth:`add` made known. Its files stay.

        Raises :class:`UserError` for other packs, and for one that is loaded.
        """
        self.check_added(name)
        if name in self._packed_model.packs:
            raise UserError(f"the pack '{name}' is loaded: unload it before it is forgotten")
        del self._added[name]
        self._kept.drop(name)
