"""Prove, before an engine takes requests, that the steps of a model give what the model itself gives.

Continuous batching computes positions and attention outside of the model's own code. Some models have an attention of
their own that it passes by without an error, and would answer wrongly. So a few answers are written in shared steps,
and their log-probabilities are compared with those of the plain model along the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from skillweave.engine.interface import CountedReply

ROOM = 3
"""The tokens of each probe's answer."""
_LENGTHS = (45, 7, 20)
"""The tokens of the probes. One is longer than a block of the cache."""
_NEAR, _NEAR_ROUNDED = 2e-3, 0.5
"""The largest difference of a log-probability, in float32, and where weights or activations are rounded.

Seen on the micro families of the tests in float32: at most 1e-3 where continuous batching is right, at least 1 where it
is not. SmolLM2 differs by 0.09 in bfloat16 and by 0.20 on an int8 backbone, because batches of another size are rounded
in another way.
"""


def probes(vocabulary: int) -> list[list[int]]:
    """Return prompts of token ids that are valid in every vocabulary of this size."""
    source = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=source).tolist() for length in _LENGTHS]


@torch.no_grad()
def largest_difference(model: Any, prompts: Sequence[Sequence[int]], replies: Sequence[CountedReply]) -> float:
    """Return the largest difference between the log-probabilities of the replies' tokens and the plain model's."""
    worst = 0.0
    for prompt, reply in zip(prompts, replies, strict=True):
        written = [token.id for token in reply.tokens]
        if not written:
            continue
        ids = torch.tensor([[*prompt, *written]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        plain = logits.log_softmax(-1).gather(1, torch.tensor(written, device=model.device)[:, None])[:, 0]
        found = torch.tensor([token.logprob for token in reply.tokens], device=model.device)
        worst = max(worst, float((plain - found).abs().max().nan_to_num(torch.inf)))
    return worst


def near(model: Any, difference: float) -> bool:
    """Whether a difference can come from rounding alone."""
    exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    rounded = any(not buffer.is_floating_point() and buffer.dtype == torch.int8 for buffer in model.buffers())
    return difference <= (_NEAR if exact and not rounded else _NEAR_ROUNDED)
