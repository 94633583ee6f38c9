"""Expert traces as tokens, and the anchors: the positions at which branches leave a trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skillweave.tasks.expert_traces import Trace
from skillweave.tools.call import EXPERT, TOOL, Call
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Episode, Start


@dataclass(frozen=True)
class EncodedTrace:
    """An expert's trace in tokens.

    * ``id``: the id of the task's entry
    * ``prompt``: the tokens of the prompt
    * ``ids``: (T,) the tokens after the prompt
    * ``writers``: (T,) who wrote each of them, ``EXPERT`` or ``TOOL``
    * ``calls``: for each turn with calls, the position at which their results end, and the calls
    * ``answer``: the text of the last turn
    """

    id: str
    prompt: list[int]
    ids: list[int]
    writers: list[int]
    calls: list[tuple[int, list[Call]]]
    answer: str

    @property
    def eligible(self) -> Tensor:
        """(T,) bool: the tokens at which a branch may begin.

        These are all tokens that the expert wrote except its first one, which no token of the expert precedes.
        """
        eligible = self.written
        eligible[:1] = False
        return eligible

    @property
    def turn_starts(self) -> Tensor:
        """(T,) bool: the first token of each of the expert's turns after its first turn."""
        written = self.written
        return written & ~torch.cat([torch.ones(1, dtype=torch.bool), written[:-1]])

    @property
    def written(self) -> Tensor:
        """(T,) bool: the tokens that the expert wrote."""
        return torch.tensor(self.writers) == EXPERT

    @property
    def expert_tokens(self) -> int:
        """The number of tokens that the expert wrote."""
        return int(self.written.sum())

    @property
    def names(self) -> list[str]:
        """The name of the tool of each call."""
        return [call.name for _, calls in self.calls for call in calls]

    def start(self, at: int, seed: int) -> Start:
        """The conversation up to token ``at``, for the policy to continue."""
        calls = [turn for end, turn in self.calls if end <= at]
        return Start(self.prompt, seed, self.ids[:at], self.writers[:at], calls)

    def episode(self) -> Episode:
        """The whole trace as a finished conversation. Its calls are assumed to have given the results in the trace."""
        return Episode(
            self.prompt,
            list(self.ids),
            list(self.writers),
            calls=len(self.names),
            names=self.names,
            answer=self.answer,
            ended="answer",
        )


def encode_trace(call_format: CallFormat, trace: Trace) -> EncodedTrace:
    """The tokens of a trace, as the model itself would have written and read them."""
    prompt, ids, writers = call_format.trace(trace.messages)
    last = next((at + 1 for at in range(len(writers) - 1, -1, -1) if writers[at] == TOOL), 0)
    answer = call_format.read(call_format.text(ids[last:-1])).answer or ""  # without the end token
    return EncodedTrace(trace.id, prompt, ids, writers, calls_of(call_format, ids, writers), answer)


def calls_of(call_format: CallFormat, ids: Sequence[int], writers: Sequence[int]) -> list[tuple[int, list[Call]]]:
    """For each turn of a conversation that called tools: the position at which their results end, and the calls."""
    calls: list[tuple[int, list[Call]]] = []
    start = 0
    while (end := next((at for at in range(start, len(ids)) if writers[at] == TOOL), len(ids))) < len(ids):
        turn = call_format.read(call_format.text(ids[start : end - 1]))  # without the end token
        start = next((at for at in range(end, len(ids)) if writers[at] != TOOL), len(ids))
        calls.append((start, [call for call in turn.calls if isinstance(call, Call)]))
    return calls


def supervised_rows(traces: Sequence[EncodedTrace]) -> list[dict[str, list[int]]]:
    """One row for each trace: ``input_ids`` and ``labels``, both (T,); only what the expert wrote has a loss."""
    rows = []
    for trace in traces:
        pairs = zip(trace.ids, trace.writers, strict=True)
        labels = [token if writer == EXPERT else -100 for token, writer in pairs]
        rows.append({"input_ids": trace.prompt + trace.ids, "labels": [-100] * len(trace.prompt) + labels})
    return rows


# -- anchors ----------------------------------------------------------------------------------------------------------


def pick_anchors(entropy: Tensor, eligible: Tensor, k: int) -> list[int]:
    """The ``k`` eligible positions at which the policy is least sure, in ascending order [digest].

    * ``entropy``: (T,), nats, any float dtype; the policy's own entropy at each token of the expert's trace
    * ``eligible``: (T,) bool; the tokens at which a branch may begin

    Of equal entropies the earlier position is taken [ours]. There are fewer than ``k`` anchors if fewer positions are
    eligible, and none for ``k`` 0. A position whose entropy is NaN is never chosen.

    Raises ``ValueError`` for shapes or dtypes that do not fit and for a ``k`` below 0.
    """
    if entropy.dim() != 1 or eligible.shape != entropy.shape or eligible.dtype != torch.bool:
        raise ValueError(
            f"entropy and eligible (bool) must both be (T,), not {tuple(entropy.shape)} and "
            f"{eligible.dtype} {tuple(eligible.shape)}"
        )
    _check_not_negative("k", k)
    candidates = (eligible & ~entropy.isnan()).nonzero()[:, 0]
    # The sort is stable, so ties stay in the order of the trace; topk does not promise an order.
    order = entropy[candidates].sort(descending=True, stable=True).indices
    return sorted(candidates[order[:k]].tolist())


def annealed_share(batch: int, batches: int) -> float:
    """The share of a trace that is its prefix: a cosine from 95% in the first batch to 5% in the last.

    Source: Prefix-RFT, arXiv 2507.01679 [relative]. ``batch`` counts from 0. With a single batch it is 95%. Raises
    ``ValueError`` for a batch outside the stage.
    """
    if not 0 <= batch < batches:
        raise ValueError(f"batch must lie within 0 and {batches - 1}, not {batch}")
    progress = batch / (batches - 1) if batches > 1 else 0.0
    return 0.05 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


def nearest_eligible(eligible: Tensor, share: float) -> list[int]:
    """The eligible position nearest to ``share`` of the trace, as a list of one; an empty list if none is eligible.

    Of two positions that are equally near the earlier one is taken [ours]. ``eligible`` is (T,) bool.
    """
    candidates = eligible.nonzero()[:, 0].tolist()
    return [min(candidates, key=lambda at: abs(at - share * len(eligible)))] if candidates else []


def certain_positions(entropy: Tensor, written: Tensor, share: float) -> list[int]:
    """The positions of a prefix that get no gradient: all that the expert wrote but the ``share`` of highest entropy.

    Prefix-RFT (arXiv 2507.01679) has a share of 0.2 [relative]. The number of tokens with a gradient is rounded
    up; of equal entropies the earlier token keeps it [ours].

    * ``entropy``: (T,), nats; ``written``: (T,) bool, the tokens that the expert wrote
    * ``share``: within [0, 1]
    """
    candidates = written.nonzero()[:, 0]
    kept = math.ceil(share * len(candidates))
    order = entropy[candidates].sort(descending=True, stable=True).indices
    return sorted(candidates[order[kept:]].tolist())


def split_branches(m: int, anchors: Sequence[int]) -> list[int]:
    """How many of ``m`` branches begin at each of ``anchors``: one number for each anchor; they add up to ``m``.

    The numbers are as even as possible; the remainder goes to the first anchors, one each [ours]. With ``anchors`` in
    ascending order these are the earliest, where the policy still has most of the trace to write. Without anchors the
    list is empty. Raises ``ValueError`` for an ``m`` below 0.
    """
    _check_not_negative("m", m)
    if not anchors:
        return []
    each, remainder = divmod(m, len(anchors))
    return [each + (place < remainder) for place in range(len(anchors))]


def _check_not_negative(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
