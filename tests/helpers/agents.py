"""Shared by the tests of E3-TIR: a small world of questions, settings of runs, expert traces, and made-up groups."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch

from helpers.micro import micro_tokenizer
from skillweave.delta import Delta
from skillweave.files.read import read_json
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir.group import Group, Member
from skillweave.methods.e3tir.rollouts import Rollouts
from skillweave.methods.e3tir.trace_tokens import EncodedTrace, encode_trace
from skillweave.tasks import Entry
from skillweave.tasks.expert_traces import scripted_traces
from skillweave.tasks.with_tools import AgentTask, load_agent
from skillweave.tools.call import EXPERT, POLICY, TOOL
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Episode

WORDS = ('<tool_call>{"name": "search", "arguments": {"query": "', '"}}</tool_call>')
"""Texts that are one token each in the micro base, so that a call needs only seven more tokens."""
CONTEXT = 96
TASK: dict[str, Any] = {
    "source": "builtin",
    "name": "hops",
    "config": {"style": "short", "people": 6, "relations": 2, "least": 2, "most": 2, "places": 0},
    "splits": {"train": 10, "calibration": 4, "test": 2},
}
SETTINGS: dict[str, Any] = {
    "task": TASK,
    "bf16": False,
    "max_length": CONTEXT,
    "rollout": {"instruction": "", "max_tokens": 70, "max_tool_calls": 3, "temperature": 1.3},
    "reward": {"no_answer": -0.2, "malformed": -0.2},
    "warm_up": {"steps": 3, "n": 3, "m": 3, "prompts": 2, "learning_rate": 1e-3},
    "rl": {"steps": 3, "n": 4, "prompts": 2, "learning_rate": 1e-3},
    "evaluate_every": 2,
    "evaluate_on": 2,
    "show_every": 2,
    "save_every": 2,
}


SFT = {"steps": 2, "batch_size": 4, "learning_rate": 1e-4}
SHORT: dict[str, Any] = {"warm_up": {"steps": 1, "n": 2, "m": 2}, "rl": {"steps": 0}, "evaluate_on": 0}
"""Settings for one step of the warm-up and nothing else."""


@dataclass
class UnbrokenRun:
    """An unbroken run, and the groups that it played: (stage, step, groups)."""

    out: Path
    before: dict[str, torch.Tensor]
    delta: Delta | None = None
    played: list[tuple[str, int, list[Group]]] = field(default_factory=list)

    def figures(self, stage: str = "") -> dict[str, Any]:
        return read_json(self.out / stage / "figures.json")


def note_groups(patch: pytest.MonkeyPatch, played: list[tuple[str, int, list[Group]]]) -> None:
    """Record each batch of rollouts in ``played``."""
    play = Rollouts.groups

    def playing(self, ids, model, around, step):
        groups = play(self, ids, model, around, step)
        played.append((self._name, step, groups))
        return groups

    patch.setattr(Rollouts, "groups", playing)


def merged(**changes) -> dict[str, Any]:
    """The settings of a short run with changes; a change that is a dict is merged into the existing dict."""
    values = dict(SETTINGS)
    for key, value in changes.items():
        values[key] = {**(values.get(key) or {}), **value} if isinstance(value, dict) else value
    return values


def settings(**changes) -> E3tirConfig:
    return E3tirConfig.model_validate(merged(**changes))


def agent() -> AgentTask:
    return load_agent(TASK)


def call_format_of(agent: AgentTask) -> CallFormat:
    return CallFormat(micro_tokenizer(words=WORDS), agent.toolbox, instruction="")


def expert_traces(agent: AgentTask) -> dict[str, EncodedTrace]:
    """Id of each train entry -> the expert's trace."""
    call_format = call_format_of(agent)
    return {trace.id: encode_trace(call_format, trace) for trace in scripted_traces(agent, agent.task.split("train"))}


# -- groups that nobody played ----------------------------------------------------------------------------------------


def made_up(pattern: str, rng: random.Random, *, prompt: Sequence[int], reward: float) -> Member:
    """A conversation of random tokens. In the pattern ``e`` is a token of the expert, ``t`` of a tool, ``p`` of the
    policy."""
    writers = [{"e": EXPERT, "t": TOOL, "p": POLICY}[letter] for letter in pattern]
    ids = [rng.randrange(10, 100) for _ in pattern]
    prefix = pattern.rfind("e") + 1
    episode = Episode(list(prompt), ids, writers, answer="?", ended="answer")
    return Member(episode, prefix, prefix > 0, max(reward, 0.0), {"answer": reward})


def group_of(name: str, config: E3tirConfig, *conversations: tuple[str, float]) -> Group:
    """A group with its advantages: conversations with these patterns and rewards, on their own prompt."""
    rng = random.Random(name)
    prompt = [2, *(rng.randrange(10, 100) for _ in range(3 + len(name))), 1, 3]
    members = [made_up(pattern, rng, prompt=prompt, reward=reward) for pattern, reward in conversations]
    group = Group(Entry(name, name, "?"), members)
    group.set_advantages(config)
    return group


def standard(rewards: Sequence[float]) -> list[float]:
    """Each reward minus the mean, divided by the standard deviation (plus 1e-4)."""
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    return [(reward - mean(rewards)) / (stdev(rewards) + 1e-4) for reward in rewards]


def slow_log_probs(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """Log-probability of each of ``ids``: (T,) float64 with gradient, unpadded, from the logits of a float64 model."""
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(ids)), list(ids)]
