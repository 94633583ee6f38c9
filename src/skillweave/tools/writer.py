"""Write the next turn of many conversations: in batches, each row with its own random numbers, prefixes shared.

A row depends only on its context and its seed, not on the other rows of its batch. However rows are batched or
distributed over processes, the result is the same (up to the rounding of sums).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from skillweave.base.batching import by_length, pad_left, pad_right
from skillweave.base.defaults import LEAST_TEMPERATURE
from skillweave.base.ends import stop_tokens
from skillweave.base.generate import check_scores
from skillweave.base.voice import padding_id

_ENOUGH_DONE = 0.25
"""Share of a batch that must have ended before the finished rows are removed, because that copies the caches."""


class Writer:
    """Samples turns from a model.

    - ``temperature``: 0 is greedy
    - ``top_k``: sample among this many most probable tokens; 0: all
    - ``top_p``: and of these, among the most probable tokens that reach this probability together
    - ``repetition_penalty``: makes tokens less probable that are already in the context; 1: no penalty
    - ``batch_size``: most rows of one batch
    - ``share``: compute a context once if it is the beginning of another one, or equal to it. If the model's cache
      holds more than keys and values (a sliding window, a state), each context is computed by itself.
    - ``around()``: a context manager that is entered around the model's calls, for example autocast

    ``stops`` are the token ids that end a turn.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        batch_size: int = 64,
        share: bool = True,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.temperature, self.top_p, self.batch_size = model, temperature, top_p, batch_size
        self.top_k, self.repetition_penalty = top_k, repetition_penalty
        self.share = share
        self._around = around
        self._pad = padding_id(model, tokenizer)
        self.stops = stop_tokens(model, tokenizer)

    def write(
        self, contexts: Sequence[Sequence[int]], room: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield each turn as soon as it is finished: the index of its context, and its tokens.

        - ``contexts``: the token ids before each turn, at least one
        - ``room``: the most tokens of each turn, at least 1; a turn ends with its end token, or is cut off here
        - ``seeds``: the seed of each turn

        Raises :class:`~skillweave.base.generate.NoProbabilities` if the model gives NaN or infinity.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            for rows in by_length([len(context) for context in contexts], self.batch_size):
                turns = self._batch(
                    [contexts[row] for row in rows], [room[row] for row in rows], [seeds[row] for row in rows]
                )
                for at, ids in turns:
                    yield rows[at], ids
        finally:
            self.model.train(was_training)

    def _batch(
        self, contexts: list[Sequence[int]], room: list[int], seeds: list[int]
    ) -> Iterator[tuple[int, list[int]]]:
        device = self.model.device
        with torch.no_grad(), self._around():
            cache, mask = self._prefilled([context[:-1] for context in contexts])
        token = torch.tensor([context[-1] for context in contexts], device=device)
        position = torch.tensor([len(context) - 1 for context in contexts], device=device)
        chance = torch.stack([_stream(seed, max(room)) for seed in seeds]).to(device)
        stops = torch.tensor(self.stops, device=device)
        seen = [torch.tensor(context, device=device) for context in contexts] if self.repetition_penalty != 1 else []
        written: list[list[int]] = [[] for _ in contexts]
        rows, alive = list(range(len(contexts))), [True] * len(contexts)
        for step in range(max(room)):
            with torch.no_grad(), self._around():
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                out = self.model(
                    token[:, None],
                    attention_mask=mask,
                    position_ids=position[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                logits = check_scores(out.logits[:, -1].float())
                for at, row in enumerate(rows if seen else ()):
                    logits[at] = less_likely(logits[at], seen[row], self.repetition_penalty)
                token = choose(logits, chance[:, step], self.temperature, self.top_p, self.top_k)
                for at, row in enumerate(rows if seen else ()):
                    seen[row] = torch.cat([seen[row], token[at : at + 1]])
            position = position + 1
            ends = torch.isin(token, stops).tolist()
            for at, (row, chosen, ended) in enumerate(zip(rows, token.tolist(), ends, strict=True)):
                if not alive[at]:
                    continue
                written[row].append(chosen)
                if ended or len(written[row]) == room[row]:
                    alive[at] = False
                    yield row, written[row]
            if not any(alive):
                return
            if alive.count(True) <= (1 - _ENOUGH_DONE) * len(alive):
                unfinished = torch.tensor([at for at, running in enumerate(alive) if running], device=device)
                cache.batch_select_indices(unfinished)
                token, position, chance, mask = (tensor[unfinished] for tensor in (token, position, chance, mask))
                rows = [row for row, running in zip(rows, alive, strict=True) if running]
                alive = [True] * len(rows)

    # -- the cache of the contexts -----------------------------------------------------------------------------------

    def _prefilled(self, heads: list[Sequence[int]]) -> tuple[Any, Tensor]:
        """The cache of all heads, padded on the left, and its attention mask (N, W)."""
        width = max(map(len, heads))
        if width == 0:
            return DynamicCache(config=self.model.config), torch.ones(
                len(heads), 0, dtype=torch.long, device=self.model.device
            )
        if self.share:
            roots, root_of = longest(heads)
            if len(roots) < len(heads):
                cache = self._forward(*pad_right(roots, self._pad, self.model.device))
                if all(type(layer) is DynamicLayer for layer in cache.layers):
                    return self._spread(cache, root_of, [len(head) for head in heads])
        ids, mask = pad_left(heads, self._pad, self.model.device)
        return self._forward(ids, mask), mask

    def _forward(self, ids: Tensor, mask: Tensor) -> Any:
        position = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        out = self.model(
            ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return out.past_key_values

    def _spread(self, cache: Any, root_of: list[int], lengths: list[int]) -> tuple[Any, Tensor]:
        """Copy the cache of each row from that of its root: the root's first tokens, moved to the right end."""
        device, width = self.model.device, max(lengths)
        ahead = width - torch.tensor(lengths, device=device)
        at = torch.arange(width, device=device) - ahead[:, None]
        mask, at = (at >= 0).long(), at.clamp(min=0)
        root = torch.tensor(root_of, device=device)[:, None]
        spread = DynamicCache(config=self.model.config)
        for number, layer in enumerate(cache.layers):
            # (roots, heads, T, D) -> (rows, W, heads, D)
            keys, values = (stored.transpose(1, 2)[root, at] for stored in (layer.keys, layer.values))
            spread.update(keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous(), number)
        return spread, mask


def less_likely(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Logits (V,) in which those of ``tokens`` are divided by ``penalty`` if positive, and multiplied if negative.

    Source: CTRL (arXiv 1909.05858), as in transformers.
    """
    chosen = logits[tokens]
    return logits.scatter(0, tokens, torch.where(chosen < 0, chosen * penalty, chosen / penalty))


def choose(logits: Tensor, chance: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """One token for each row, int64 (N,), from ``logits`` float32 (N, V).

    It is the token at which the cumulative probability exceeds ``chance`` (N,), a number in [0, 1). With
    ``temperature`` 0 it is the most probable token.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = (logits / max(temperature, LEAST_TEMPERATURE)).softmax(dim=-1)
    if top_p < 1:
        ordered, index = probabilities.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p  # the token that reaches top_p is still included
        probabilities = torch.zeros_like(probabilities).scatter(1, index, ordered.masked_fill(beyond, 0.0))
    ends = probabilities.double().cumsum(dim=-1)
    at = torch.searchsorted(ends, (chance * ends[:, -1])[:, None], right=True)
    return at.squeeze(1).clamp(max=logits.shape[-1] - 1)


def longest(heads: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """The heads that are not the beginning of another one, and for each head the index of one that begins with it."""
    order = sorted(range(len(heads)), key=lambda index: tuple(heads[index]))
    roots: list[Sequence[int]] = []
    root_of = [0] * len(heads)
    after: Sequence[int] | None = None
    for index in reversed(order):  # in this order, the beginning of a head comes right before it
        head = heads[index]
        if after is None or list(after[: len(head)]) != list(head):
            roots.append(head)
        root_of[index] = len(roots) - 1
        after = head
    return roots, root_of


def _stream(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
