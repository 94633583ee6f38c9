"""Prove that a resident pack acts: record what a model with it says about a text, and check it when it is loaded.

The texts of :data:`TEXTS` are the only ones. Prompts of a task or of a user never come onto a card, because token ids
can be read by anyone who has the pack. A text is tried as it is and as a chat prompt, and the one that the pack changes
most is kept, cut after the last place that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from skillweave.base.chat import plain_ids, prompt_ids
from skillweave.base.sizes import context_length, has_experts
from skillweave.base.template import has_template
from skillweave.errors import UserError
from skillweave.pack.probe import MOST_PLACES, MOST_TOKENS, Outcome, PackProbe, Proof, compare, shortened
from skillweave.pack.stored import CARD_FILE
from skillweave.progress import say_once
from skillweave.weave.int8 import has_int8
from skillweave.weave.kept import ReadPack
from skillweave.weave.packed_model import PackedModel

TEXTS = (
    "Sort: 9, 4, 7. Reverse: one two.",
    "Why is the sea blue? 12 + 30 =",
    '{"name": "weather", "city": "Paris"}',
    "def add(a, b): return a + b",
)
"""Texts of many kinds in ASCII, which nearly every tokenizer can write."""


def record(packed_model: PackedModel, name: str, tokenizer: Any) -> PackProbe | None:
    """Return the probe of a resident pack: of all texts the one that the pack changes most.

    ``tokenizer`` is the base's. Returns None if no text can be written with it, or if the log-probabilities are not
    finite numbers.
    """
    best: tuple[float, PackProbe] | None = None
    longest = min(MOST_TOKENS, context_length(packed_model.model) or MOST_TOKENS)
    for ids in _texts(tokenizer, packed_model.shared_tokens(name), longest):
        found = _strongest(packed_model, name, ids)
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    return None if best is None else best[1]


class Proofs:
    """What was proven in this process: a pack is put to the proof once, as long as its files stay the same.

    ``base``: the reference of the base, for messages.
    """

    def __init__(self, packed_model: PackedModel, base: str) -> None:
        self._packed_model = packed_model
        self._fix = f"Zip it again on {base}, or copy the weave and the base again."
        self.outcomes: dict[str, Outcome | None] = {}
        """pack -> what its proof said when it was loaded the last time; None: its card has no probe"""
        self._proven: dict[str, Outcome] = {}
        """by the hashes of the packs' cards; a card has the hash of all other files"""

    def must_prove(self, read: ReadPack) -> bool:
        """Whether :meth:`prove` will run the model: the pack has a probe, and its files were not proven before."""
        return read.probe is not None and (read.card_hash is None or read.card_hash not in self._proven)

    def base_says(self, read: ReadPack) -> list[float]:
        """Return what the plain base says about the probe of a pack that must be proven: one short forward pass.

        It runs between batches; the pack need not be resident. Raises :class:`UserError` if the probe has tokens that
        the model lacks.
        """
        assert read.probe is not None
        self._check_tokens(read.name, read.probe, self._packed_model.tokens_of_base)
        return _at_places(self._packed_model, None, read.probe)

    def prove(self, read: ReadPack, base: Sequence[float] | None = None) -> None:
        """Put a resident pack to the proof of its card, and say so once if that cannot tell whether the pack acts.

        ``base`` is what :meth:`base_says` gave, if it is known. Raises :class:`UserError` if the pack acts otherwise
        than when it was zipped, and if the backbone cannot read its prompts though its card says that it does.
        """
        self._check_prefill(read)
        self.outcomes[read.name] = self._outcome(read, base)

    def _outcome(self, read: ReadPack, base: Sequence[float] | None) -> Outcome | None:
        if read.probe is None:
            say_once(
                f"the card of the pack '{read.name}' has no probe, so nothing proves that it acts: packs that are "
                "zipped by this version have one"
            )
            return None
        if not self.must_prove(read):
            return self._proven[read.files[CARD_FILE]]
        self._check_tokens(read.name, read.probe, self._packed_model.shared_tokens(read.name))
        proof = distance(self._packed_model, read.name, read.probe, base)
        if proof.outcome == "differs":
            raise UserError(
                f"the pack '{read.name}' does not act as it did when it was zipped. On the probe text of its card it "
                f"must change log-probabilities by {proof.change:.3g} nats; the change that was found, "
                f"{proof.found:.3g} nats, has the distance {proof.distance:.2f} from that (0: equal, 1: a pack that "
                f"does nothing, up to {proof.allowed:.2f}: rounding). Its card or its factors are those of another "
                f"pack, or this base applies them wrongly. {self._fix}"
            )
        if proof.outcome == "too small":
            say_once(
                f"it cannot be proven that the pack '{read.name}' acts: it changes the log-probabilities of its probe "
                f"text by {proof.change:.2g} nats, and the rounding of this base changes them by {proof.noise:.2g} nats"
            )
        if read.card_hash is not None:
            self._proven[read.card_hash] = proof.outcome
        return proof.outcome

    def _check_prefill(self, read: ReadPack) -> None:
        """Raise :class:`UserError` if the backbone cannot read the prompts of a pack that was made for that."""
        why = self._packed_model.why_own_steps(read.name) if read.prefill == "backbone" else None
        if why is not None:
            raise UserError(
                f"the card of the pack '{read.name}' says that the backbone reads its prompts, which is impossible "
                f"here, because {why}: zip the skill again without prefill"
            )

    def _check_tokens(self, name: str, probe: PackProbe, tokens: int) -> None:
        if (largest := max(*probe.ids, *probe.tokens)) >= tokens:
            raise UserError(
                f"the probe on the card of the pack '{name}' has the token {largest}, and the model has {tokens} "
                f"tokens. {self._fix}"
            )


def distance(packed_model: PackedModel, name: str, probe: PackProbe, base: Sequence[float] | None = None) -> Proof:
    """Return how what a resident pack says compares with a probe, whose tokens the model must have."""
    base = _at_places(packed_model, None, probe) if base is None else base
    model = packed_model.model
    rerouted = has_int8(model) and has_experts(model.config)
    return compare(probe, _at_places(packed_model, name, probe), base, rerouted=rerouted)


def _texts(tokenizer: Any, tokens: int, longest: int) -> list[list[int]]:
    """Return the texts as at most ``longest`` token ids below ``tokens``.

    Each is there as it is and, if there is a chat template, as a prompt.
    """
    written = []
    for text in TEXTS:
        written.append(plain_ids(tokenizer, text))
        if has_template(tokenizer):
            written.append(prompt_ids(tokenizer, text))
    return [ids[:longest] for ids in written if ids and max(ids[:longest]) < tokens]


def _strongest(packed_model: PackedModel, name: str, ids: list[int]) -> tuple[float, PackProbe] | None:
    """Return the probe of one text at the places that the pack changes most, and the square sum of the change.

    At each place the token is the one that one of the two finds likely and the other does not: it has the largest
    probability times difference of log-probabilities.
    """
    shared = packed_model.shared_tokens(name)
    base, pack = (_log_probs(packed_model, one, ids)[:, :shared] for one in (None, name))
    weight = torch.maximum(base, pack).exp() * (pack - base).abs()
    weights, tokens = weight.nan_to_num(0.0).max(dim=-1)
    at = weights.topk(min(MOST_PLACES, len(ids))).indices.sort().values
    places = (at, tokens[at])
    if not (base[places].isfinite().all() and pack[places].isfinite().all()):
        return None
    probe = PackProbe(
        ids=tuple(ids[: int(at[-1]) + 1]),
        at=tuple(at.tolist()),
        tokens=tuple(tokens[at].tolist()),
        pack=shortened(pack[places].tolist()),
        base=shortened(base[places].tolist()),
    )
    return probe.change * len(at) ** 0.5, probe


def _at_places(packed_model: PackedModel, name: str | None, probe: PackProbe) -> list[float]:
    """Return the log-probabilities at the places of a probe with a pack, or with the plain base for None."""
    found: list[float] = _log_probs(packed_model, name, list(probe.ids))[list(probe.at), list(probe.tokens)].tolist()
    return found


@torch.no_grad()
def _log_probs(packed_model: PackedModel, name: str | None, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities after each token with a pack, or with the plain base for None: float32 (T, tokens).

    Base and pack run in passes of one shape, so the rounding of the base moves both nearly alike.
    """
    model: Any = packed_model.model
    with packed_model.every_row(name):
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits.float().log_softmax(dim=-1).cpu()
