"""The library's cache of prefixes, in which a block also belongs to the pack that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState

_INT32 = 2**32


class ReadTokens(Protocol):
    """A request, as far as it says who reads its tokens: ``pack`` from ``base_tokens`` on, the plain base before."""

    pack: str | None
    base_tokens: int


class Readers:
    """Numbers that tell packs apart in the cache of prefixes.

    The library hashes token ids as int32. A token id plus a number of its reader, times the size of the vocabulary, is
    an id that no other pair has. A pack that is loaded again is another reader, because its bytes may have changed.
    """

    def __init__(self, vocabulary: int) -> None:
        self._size = 1 << max(1, vocabulary - 1).bit_length()
        self._most = _INT32 // self._size
        self._numbers: dict[str | None, int] = {None: 0}
        self._next = 1

    def forget(self, pack: str) -> None:
        """Give a pack another number, if it is used again."""
        self._numbers.pop(pack, None)

    def ids(self, tokens: Sequence[int], row: ReadTokens | None) -> list[int] | None:
        """The tokens of a request as ids of token and reader, or None if there is no number left for its pack."""
        if row is None:
            return None
        number = self._numbers.get(row.pack)
        if number is None:
            if self._next == self._most:
                return None
            number = self._numbers[row.pack] = self._next
            self._next += 1
        by_base = list(tokens[: row.base_tokens])
        return by_base + [self._signed(number * self._size + token) for token in tokens[row.base_tokens :]]

    def _signed(self, value: int) -> int:
        return value - _INT32 if value >= _INT32 // 2 else value


class PackAwareCache(PagedAttentionCache):
    """The library's cache, whose prefixes are shared only between requests that read them with the same pack.

    It is made from a cache of the library by changing its class, because the library's manager makes the cache.
    """

    rows: Mapping[str, ReadTokens]
    readers: Readers

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        ids = self.readers.ids(prompt_ids, self.rows.get(request_id))
        return 0 if ids is None else super().search_prefix_match(request_id, ids)

    def mark_complete_blocks(self, state: RequestState, complete_blocks: dict[str, int]) -> None:
        # The library leaves out requests that have just finished, because with its asynchronous batches they may have
        # lost their blocks. Here they still have them, and a request of one token is often the first with its prompt.
        if not self.allow_block_sharing:
            return
        ids = self.readers.ids(state.initial_tokens + state.generated_tokens, self.rows.get(state.request_id))
        if ids is not None:
            for name, count in complete_blocks.items():
                self.cache_allocators[name].mark_complete_blocks(state.request_id, ids, count)
