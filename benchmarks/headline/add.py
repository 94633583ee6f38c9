"""One more skill: what it changes in a weave of six, and in a multi-task model that is trained further."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.headline.lab import Lab, added
from benchmarks.headline.questions import Question, replies, scores
from benchmarks.headline.scale import TEST
from skillweave.base.batching import pad_left
from skillweave.base.generate import encode_prompts
from skillweave.weave import Weave


def added_skill(own: Lab, rate: float, multi_rate: float) -> dict[str, Any]:
    """Return what changes for six skills when a seventh is added, by two ways that train on its examples alone.

    - the weave gets the pack of a specialist; answers and logits of the other packs are compared bit for bit
    - the multi-task model is trained further; its answers to the same prompts are compared
    """
    scale = own.scale
    asked = {skill: scale.asked(skill, own.seed, TEST) for skill in scale.skills}
    new = scale.asked(scale.added, own.seed, TEST)

    six, seven = own.weave(rate), own.weave(rate, [scale.added])
    before, after = (_answers(weave, asked, own) for weave in (six, seven))
    bits = [
        torch.equal(_logits(six, questions, skill), _logits(seven, questions, skill))
        for skill, questions in asked.items()
    ]
    everything = [question for questions in asked.values() for question in questions]
    routes = [[route.pack for route in weave.route([q.prompt for q in everything])] for weave in (six, seven)]
    learnt = scores(new, replies(seven, new, [scale.added] * len(new), scale.tokens))
    weave_figures = {
        "changed": _changed(before, after),
        "logits_equal": all(bits),
        "routes_changed": _changed(*routes),
        "new_score": _mean(learnt),
    }

    base = own.tuned_base(own.multi_task(multi_rate), "multi-task")
    plain = Weave.of(base)
    texts_before, score_before = _one_model(plain, asked, own)
    further = own.trained(base, [scale.added], multi_rate, f"multi-{multi_rate:g}-further")
    with added(base, further) as weave:
        texts_after, score_after = _one_model(weave, asked, own)
        learnt = scores(new, replies(weave, new, [None] * len(new), scale.tokens))
    multi_figures = {
        "changed": _changed(texts_before, texts_after),
        "score_before": score_before,
        "score_after": score_after,
        "new_score": _mean(learnt),
    }
    return {"weave": weave_figures, "multi": multi_figures, "prompts": len(everything)}


def _answers(weave: Weave, asked: dict[str, list[Question]], own: Lab) -> list[str]:
    """Return the answers to all prompts, each by the pack that is named for it."""
    return [
        reply.text
        for skill, questions in asked.items()
        for reply in replies(weave, questions, [skill] * len(questions), own.scale.tokens)
    ]


def _one_model(weave: Weave, asked: dict[str, list[Question]], own: Lab) -> tuple[list[str], float]:
    """Return the answers of one model to all prompts, and its mean score over the skills."""
    texts: list[str] = []
    means = []
    for questions in asked.values():
        given = replies(weave, questions, [None] * len(questions), own.scale.tokens)
        texts += [reply.text for reply in given]
        means.append(_mean(scores(questions, given)))
    return texts, statistics.fmean(means)


@torch.no_grad()
def _logits(weave: Weave, questions: Sequence[Question], pack: str) -> torch.Tensor:
    """Return the logits after each prompt with a pack (B, V); tools are not described."""
    base = weave.base
    encoded = encode_prompts(base.model, base.tokenizer, [question.prompt for question in questions])
    ids, mask = pad_left(encoded, 0, base.model.device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with weave.packed_model.every_row(pack):
        return base.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1).logits[:, -1]


def _changed(before: Sequence[str | None], after: Sequence[str | None]) -> float:
    """Return the share of places at which two lists differ."""
    return sum(one != other for one, other in zip(before, after, strict=True)) / len(before)


def _mean(values: Sequence[float | None]) -> float:
    return statistics.fmean(value for value in values if value is not None)
