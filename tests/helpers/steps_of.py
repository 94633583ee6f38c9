"""Steps of the trainer on made-up groups, and the same steps computed directly from the formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

from helpers.agents import settings, slow_log_probs, standard
from helpers.micro import micro_model, micro_tokenizer
from skillweave.methods.e3tir.config import E3tirConfig
from skillweave.methods.e3tir.group import Group, Member
from skillweave.methods.e3tir.trainer import AgentTrainer
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.trainer import trainer_arguments
from skillweave.tools import EXPERT, TOOL

TOKENIZER = micro_tokenizer()
TIMES = {"steps": 1, "n": 2, "m": 2, "prompts": 4, "learning_rate": 1e-2, "max_grad_norm": 1e9, "weight_decay": 0.0}


def sharp() -> Any:
    """A random model that is nearly sure of many tokens, so that ratios fall on both sides of each clip."""
    model = micro_model()
    with torch.no_grad():
        model.model.norm.weight.mul_(6)
    return model


class PreparedGroups:
    """Replaces the rollouts by prepared groups."""

    left_behind = 3

    def __init__(self, groups: Sequence[Group]):
        self._groups = {group.entry.id: group for group in groups}

    def groups(self, ids, model, around, step) -> list[Group]:
        return [self._groups[id] for id in ids]


class Watch(TrainerCallback):
    """Records for each optimiser step the weights before it, the gradients, the loss and the rows of the batch."""

    def __init__(self):
        self.weights: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.rows: list[list[tuple[int, ...]]] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        self.losses.append(0.0)
        self.rows.append([])

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    def watch_loss_of(self, trainer: Any) -> None:
        """Record the loss and the rows of each call of the trainer's loss."""
        compute = trainer._compute_loss

        def computing(model, inputs):
            loss = compute(model, inputs)
            self.losses[-1] += loss.item()
            for side in zip(*(inputs[name] for name in ("prompt_ids", "completion_ids", "prompt_mask",
                                                        "completion_mask")), strict=True):  # fmt: skip
                prompt, ids, prompt_mask, mask = side
                self.rows[-1].append((*prompt[prompt_mask.bool()].tolist(), *ids[mask.bool()].tolist()))
            return loss

        trainer._compute_loss = computing


def arguments_of(folder, config: E3tirConfig) -> dict[str, Any]:
    stage = config.warm_up
    arguments = trainer_arguments(
        stage.training, Processes(), folder=folder, steps=stage.steps * stage.updates, seed=0, bf16=False,
        device="cpu", save_every=100, gradient_checkpointing=False,
    )  # fmt: skip
    return {**arguments, "save_strategy": "no"}


def agent_trainer(folder, config: E3tirConfig, groups: Sequence[Group], model=None, callbacks=()) -> AgentTrainer:
    trainer = AgentTrainer(
        model or sharp(), TOKENIZER, arguments_of(folder, config), [group.entry.id for group in groups],
        PreparedGroups(groups), config, config.warm_up, shown=lambda *_: None, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def watched(folder, config: E3tirConfig, groups: Sequence[Group]) -> Watch:
    seen = Watch()
    trainer = agent_trainer(folder, config, groups, callbacks=[seen])
    seen.watch_loss_of(trainer)
    trainer.train()
    assert [entry["loss"] for entry in trainer.state.log_history[:-1]] == pytest.approx(seen.losses, abs=1e-4)
    return seen


def plan(*, updates: int = 1, micro: int | None = None, temperature: float = 1.0, stage=None, **changes) -> E3tirConfig:
    stage = {**TIMES, "updates": updates, "micro_batch_size": micro, **(stage or {})}
    return settings(warm_up=stage, rollout={"temperature": temperature}, **changes)


# -- the same, slowly: float64, one conversation and one token at a time ----------------------------------------------


def slow_advantage(config: E3tirConfig, group: Group) -> list[float]:
    """The advantage of each member, from the rewards."""
    own, tree = ([member.reward for member in group.pool(branch)] for branch in (False, True))
    if config.expert.mixing == "sum":
        return [*standard(own), *[config.expert.weight] * len(tree)]
    if tree and (not config.expert.filter or max(tree) > max(own)):
        over_all, lam = standard([*own, *tree]), config.expert.lam
        within = zip(over_all[len(own) :], standard(tree), strict=True)
        return [*over_all[: len(own)], *(lam * one + (1 - lam) * other for one, other in within)]
    return [*standard(own), *[0.0] * len(tree)]


def counts(member: Member) -> int:
    """The number of its tokens that are in the loss."""
    return sum(writer != TOOL for writer in member.episode.writers) if member.joined else 0


def at_temperature(weights: dict[str, torch.Tensor], temperature: float) -> Any:
    model = sharp().double()
    model.load_state_dict({name: tensor.double() for name, tensor in weights.items()})
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden) / temperature
    return model


def slow_step(config: E3tirConfig, groups: Sequence[Group], seen: Watch, step: int) -> tuple[float, dict, set[str]]:
    """Loss and gradients of a step directly from the formula, and the kinds of tokens that occurred."""
    model, old = (at_temperature(seen.weights[at], config.rollout.temperature) for at in (step, 0))
    kind = "on_policy" if config.expert.mixing == "sum" else config.expert.ratio
    members = {}
    for group in groups:
        for member, advantage in zip(group.members, slow_advantage(config, group), strict=True):
            members[(*member.episode.prompt, *member.episode.ids)] = (member, advantage)
    tokens = sum(counts(member) for group in groups for member in group.members)
    total, sorts = torch.zeros((), dtype=torch.float64), set()
    for row in seen.rows[step]:
        member, advantage = members.get(row, (None, 0.0))  # None: a free place in the group
        if member is None or not member.joined:
            continue
        episode = member.episode
        logps = slow_log_probs(model, episode.prompt, episode.ids)
        with torch.no_grad():
            olds = slow_log_probs(old, episode.prompt, episode.ids)
        for at, writer in enumerate(episode.writers):
            if writer == TOOL:
                continue
            pi, pi_old = logps[at].exp(), olds[at].exp()
            prefix = writer == EXPERT
            if not prefix:
                ratio = pi / pi_old
            elif kind == "mixture":
                ratio = pi / (0.5 * pi_old + 0.5)
            elif kind == "shaped":
                ratio = pi / (pi + 0.1)
            else:
                ratio = pi / pi.detach()
            clipped = min(max(float(ratio.detach()), 0.8), 1.2) * advantage
            free = ratio * advantage
            learns = float(free.detach()) <= clipped
            sorts.add(f"{'prefix' if prefix else 'own'} {'+' if advantage > 0 else '-'} {learns}")
            if prefix and advantage < 0 and config.expert.detach:
                continue
            total = total - (free if learns else clipped)
    loss = total / (tokens / config.warm_up.updates)
    gradients = {}
    if loss.requires_grad:
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, sorts


def assert_equal(ours, expected, tolerance=1e-4):
    assert set(ours) == set(expected)
    for name, grad in expected.items():
        error = (ours[name].double() - grad.double()).norm() / grad.double().norm().clamp(min=1e-9)
        assert error < tolerance, (name, float(error))


def assert_follows_the_formula(config: E3tirConfig, groups: Sequence[Group], seen: Watch) -> list[set[str]]:
    found = []
    for step in range(config.warm_up.updates):
        loss, gradients, sorts = slow_step(config, groups, seen, step)
        assert seen.losses[step] == pytest.approx(loss, rel=1e-4, abs=1e-6)
        assert_equal(seen.gradients[step], gradients)
        found.append(sorts)
    return found
