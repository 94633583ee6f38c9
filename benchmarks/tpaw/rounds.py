"""Rounds of self-play on :mod:`~benchmarks.tpaw.worked`, without the files of a run: a cell takes seconds.

The losses, the team and what a round remembers are those of the library's ``tpaw`` settings. Ours here: every arm draws
``SAMPLES`` answers a prompt in each round, and trains on equally many sequences.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.tpaw.arms import REJECTION, SETTINGS, equal_steps
from benchmarks.tpaw.worked import END, Numbers, answer, log_probs, padded, prompts, right
from skillweave.methods.tpaw import TpawConfig
from skillweave.methods.tpaw.trainer import objective

SAMPLES = 2
BATCH = 40
WARMUP = 0.1
HORIZON = 3
"""A round's schedule is that of a training so many times as long, stopped early."""

BatchLoss = Callable[[list[int]], Tensor]
"""The indices of a batch -> its loss."""


@dataclass(frozen=True)
class Data:
    """Prompts with the answers that are learnt, and held-out prompts with theirs."""

    train: list[Numbers]
    targets: list[list[int]]
    held_out: list[Numbers]
    held_out_targets: list[list[int]]


def fit(
    model: LlamaForCausalLM,
    loss: BatchLoss,
    rows: int,
    *,
    steps: int,
    batch: int,
    rate: float,
    rng: Random,
    horizon: float = 1.0,
) -> None:
    """Train ``model`` for so many steps of AdamW: a warmup, then a cosine that reaches 0 after ``horizon * steps``.

    Without rows there is nothing to learn, and the model stays as it was.
    """
    if not rows:
        return
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    order: list[int] = []
    while len(order) < steps * batch:
        order += rng.sample(range(rows), rows)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * scale(step, steps, horizon)
        optimiser.zero_grad()
        loss(order[step * batch : (step + 1) * batch]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def scale(step: int, steps: int, horizon: float) -> float:
    """The share of the highest rate at a step (from 0)."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (horizon * steps - warm)))


def supervised(
    model: LlamaForCausalLM,
    asked: Sequence[Numbers],
    answers: Sequence[list[int]],
    *,
    steps: int,
    batch: int,
    rate: float,
    rng: Random,
    horizon: float = 1.0,
) -> None:
    """Train on answers to prompts: the mean loss of a token."""
    x, y = prompts(asked), padded(answers)

    def loss(rows: list[int]) -> Tensor:
        return -log_probs(model, x[rows], y[rows]).sum() / (y[rows] != 0).sum()

    fit(model, loss, len(x), steps=steps, batch=batch, rate=rate, rng=rng, horizon=horizon)


def score(model: LlamaForCausalLM, asked: Sequence[Numbers]) -> float:
    """The share of prompts to which the greedy answer is right."""
    answers = answer(model, prompts(asked))
    return fmean(right(numbers, one) for numbers, one in zip(asked, answers, strict=True))


def mean_log_prob(model: LlamaForCausalLM, asked: Sequence[Numbers], answers: Sequence[list[int]]) -> float:
    """The mean log-probability of the answers in nats."""
    with torch.no_grad():
        return log_probs(model, prompts(asked), padded(answers)).mean().item()


@dataclass(frozen=True)
class Pairs:
    """Pairs that a round trains on: the index of the prompt, the target and the generation of each."""

    at: list[int]
    targets: list[list[int]]
    generated: list[list[int]]


def pairs_of(data: Data, drawn: Sequence[list[list[int]]], *, labels: bool, rng: Random) -> Pairs:
    """The usable pairs of a round: ``drawn`` has the answers of each sample to all prompts.

    - Without ``labels``: the data's answer against each ended sample that is not the same.
    - With ``labels`` (DPO): a right sample, or the data's answer if it is right, against each ended wrong sample.
    """
    found = Pairs([], [], [])
    for at, (numbers, target) in enumerate(zip(data.train, data.targets, strict=True)):
        ended = [one[at] for one in drawn if one[at][-1] == END]
        good = [target]
        if labels:
            good = [one for one in ended if right(numbers, one)] or [one for one in good if right(numbers, one)]
            ended = [one for one in ended if not right(numbers, one)]
        for one in ended:
            if good and one != target:
                found.at.append(at)
                found.targets.append(rng.choice(good))
                found.generated.append(one)
    return found


def play(
    start: LlamaForCausalLM, data: Data, arm: str, *, rate: float, lam: float, rounds: int, steps: int, seed: int
) -> dict[str, list[float]]:
    """Play the rounds of an arm from ``start``, each of ``steps`` steps over pairs or as many sequences.

    Returns the figures:

    - of each player, the start first: ``score`` (greedy, held out), ``held_out`` (log-probability of the held-out
      targets), ``target`` (of the targets that are trained on) and ``generated`` (of what the start drew), in nats.
    - of each round: ``generated_score``, the share of the drawn answers that are right, and ``left``, the share that
      makes a pair.
    """
    config = TpawConfig.model_validate({"task": "builtin:micro_add", "lam": lam, "bf16": False, **SETTINGS[arm]})
    rng = Random(f"play {seed}")
    model = copy.deepcopy(start)
    players = [copy.deepcopy(start)]
    remembered: list[Pairs] = []
    training: dict[str, Any] = {"batch": BATCH, "rate": rate, "rng": rng, "horizon": HORIZON}
    training["steps"] = equal_steps(arm, steps)
    first = draw_answers(start, data, seed, 0)[0]
    figures: dict[str, list[float]] = {}
    _look(start, data, first, figures)
    for number in range(rounds):
        drawn = draw_answers(model, data, seed, number)
        pairs = pairs_of(data, drawn, labels=config.loss == "dpo", rng=rng)
        asked = [(numbers, one) for each in drawn for numbers, one in zip(data.train, each, strict=True)]
        good = [pair for pair in asked if right(*pair)]
        figures.setdefault("generated_score", []).append(len(good) / len(asked))
        figures.setdefault("left", []).append(len(pairs.at) / len(asked))
        if arm == REJECTION:
            supervised(model, [numbers for numbers, _ in good], [one for _, one in good], **training)
        elif config.loss == "sft":
            supervised(model, data.train, data.targets, **training)
        else:
            remembered = [pairs, *remembered][: config.remembered]
            fallback = first if config.loss == "tspin" else None
            _against_team(model, data, players[: config.players], _joined(remembered), fallback, config, training)
        players = [copy.deepcopy(model), *players][: config.players]
        _look(model, data, first, figures)
    return figures


def draw_answers(model: LlamaForCausalLM, data: Data, seed: int, number: int) -> list[list[list[int]]]:
    """``SAMPLES`` answers of a player to every training prompt; in round 0 the same for all arms of a seed."""
    source = torch.Generator().manual_seed(1000 * seed + number)
    return [answer(model, prompts(data.train), source) for _ in range(SAMPLES)]


def _joined(rounds: Sequence[Pairs]) -> Pairs:
    """The pairs of several rounds, the newest first."""
    return Pairs(
        [at for each in rounds for at in each.at],
        [one for each in rounds for one in each.targets],
        [one for each in rounds for one in each.generated],
    )


def _against_team(
    model: LlamaForCausalLM,
    data: Data,
    players: Sequence[LlamaForCausalLM],
    pairs: Pairs,
    first: list[list[int]] | None,
    config: TpawConfig,
    training: dict[str, Any],
) -> None:
    """Train on pairs against the players; ``first`` has what the start drew, for ``tspin``."""
    x = prompts([data.train[at] for at in pairs.at])
    sides = [padded(pairs.targets), padded(pairs.generated)]
    if first is not None:  # a faulty first answer teaches nothing, and the generation stands in its place
        usable = [one[-1] == END and one != target for one, target in zip(first, data.targets, strict=True)]
        both = zip(pairs.at, pairs.generated, strict=True)
        sides.append(padded([first[at] if usable[at] else generation for at, generation in both]))
    loss_of_batch = objective(config)

    def loss(rows: list[int]) -> Tensor:
        asked, answers = torch.cat([x[rows]] * len(sides)), torch.cat([side[rows] for side in sides])
        policy = log_probs(model, asked, answers).view(len(sides), -1)
        with torch.no_grad():
            pair = 2 * len(rows)
            columns = torch.stack([log_probs(each, asked[:pair], answers[:pair]).view(2, -1) for each in players])
        return loss_of_batch(policy, columns)[0].mean()

    fit(model, loss, len(x), **training)


def _look(model: LlamaForCausalLM, data: Data, generated: list[list[int]], figures: dict[str, list[float]]) -> None:
    """Add the figures of a player."""
    found = {
        "score": score(model, data.held_out),
        "held_out": mean_log_prob(model, data.held_out, data.held_out_targets),
        "target": mean_log_prob(model, data.train, data.targets),
        "generated": mean_log_prob(model, data.train, generated),
    }
    for key, value in found.items():
        figures.setdefault(key, []).append(value)
