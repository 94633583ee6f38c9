"""The packs of an exported folder, for engines that keep them in memory themselves."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from typing import NoReturn

from skillweave.errors import UserError
from skillweave.serve.residency import PackStatus

_FIXED = "the engine's own servers hold the packs: export the weave again to add or remove one, and restart the server"


class ExportedPacks:
    """Packs that are always there, because the engine loads them where it needs them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names: Collection[str] = list(names)
        self._in_use: Counter[str] = Counter()
        self._hits: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[None]:
        """Count a use of a pack."""
        self._in_use[name] += 1
        self._hits[name] += 1
        try:
            yield
        finally:
            self._in_use[name] -= 1

    async def add(self, folder: str) -> NoReturn:
        """Raise :class:`UserError`: the packs are fixed."""
        raise UserError(_FIXED)

    async def remove(self, name: str) -> NoReturn:
        """Raise :class:`UserError`: the packs are fixed."""
        raise UserError(_FIXED)

    async def pin(self, name: str) -> NoReturn:
        """Raise :class:`UserError`: the packs are fixed."""
        raise UserError(_FIXED)

    def unpin(self, name: str) -> NoReturn:
        """Raise :class:`UserError`: the packs are fixed."""
        raise UserError(_FIXED)

    def status(self) -> list[PackStatus]:
        """Return every pack with its uses; its bytes are not known here."""
        return [
            PackStatus(
                name=name, level="memory", bytes=None, pinned=False, in_use=self._in_use[name], hits=self._hits[name],
                loads=0, load_seconds=None, evictions=0, proof=None, error=None,
            )
            for name in self.names
        ]  # fmt: skip
