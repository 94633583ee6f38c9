"""The micro scale: a base that knows the form of tool calls but not the policy, two task families, and the arms."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

from skillweave.base import Base, Message, open_base
from skillweave.errors import NothingLearnt
from skillweave.files.read import read_json
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir.run import run as warm_up
from skillweave.methods.e3tir.watch import evaluate_agent
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base
from skillweave.tasks.builtin import hops, steps
from skillweave.tasks.expert_traces import Trace, scripted_traces, write_traces
from skillweave.tasks.with_tools import load_agent
from skillweave.tools import Call
from skillweave.tools.turn import call_text

HOPS = "hops"
STEPS = "steps"
HASTY = "hops, hasty experts"
SHAPE = MicroShape(hidden=64, layers=3, heads=4, kv_heads=2, intermediate=128, context=160)
WORDS = (
    '<tool_call>{"name": "search", "arguments": {"query": "',
    '<tool_call>{"name": "calculator", "arguments": {"expression": "',
    '"}}</tool_call>',
)
"""The fixed parts of a call, one token each, so that a micro model writes little more than name and argument."""
WANDERERS = 4000
WORLDS = 200
RIGHT = 0.3
"""How often the wanderers that the base imitates take the right step; otherwise they take a random one."""
BASE_STEPS = 1500
TRACES = 24
TIMES = 10
"""SFT -> RL has this many times the expert traces of E3-TIR."""
BUDGET = 90_000
WARM_SHARE = 1 / 3
RATE = 5e-4
PROMPTS = 8
N = 16

_HOPS = {"style": "short", "people": 20, "places": 0, "least": 2, "most": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    HOPS: _HOPS,
    STEPS: {"style": "expression", "digits": 1, "least": 2, "most": 3, "largest": 99},
    HASTY: _HOPS,
}
HASTE = 0.6
"""The share of the hasty experts' answers that come one search too early, so that imitation is mostly wrong."""


@dataclass(frozen=True)
class Plan:
    """One run of an arm, on a family, with a seed."""

    arm: str
    family: str
    seed: int
    budget: int = BUDGET
    traces: int = TRACES
    rate: float = RATE
    base_steps: int = BASE_STEPS


# -- the base --------------------------------------------------------------------------------------------------------


def agent_base(training_steps: int) -> Path:
    """A micro model trained on conversations of wanderers, who call the tools in the right form and mostly in vain."""
    rng = Random(0)
    turns = [turn for _ in range(WANDERERS // 2) for walk in (_wander_hops, _wander_steps) for turn in walk(rng)]
    return micro_base(
        turns,
        shape=SHAPE,
        training=TrainingSettings(steps=training_steps, batch_size=64, learning_rate=3e-3),
        seed=0,
        name="agent",
        words=WORDS,
    )


Turns = list[tuple[list[Message], str]]
"""Pairs of the messages before a turn and the turn itself."""


def _wander_hops(rng: Random) -> Turns:
    """Conversations in worlds that no seed of the benchmark uses."""
    settings = hops.HopsSettings(**FAMILIES[HOPS], world=1000 + rng.randrange(WORLDS))
    world = hops.world_of(settings)
    prompt, _ = hops.make(rng, settings)
    start, *chain = prompt.removesuffix("?").split(" ")

    def step(seen: list[str], number: int, right: bool) -> tuple[str, str, str]:
        who = seen[-1] if right else rng.choice(seen)
        relation = chain[number] if right else rng.choice([*chain, rng.choice(world.relations)])
        found = world.facts[who, relation]
        return call_text(Call("search", {"query": f"{who} {relation}"})), f"{who}: {who} {relation} {found}", found

    return _wander(rng, prompt, [start], len(chain), step)


def _wander_steps(rng: Random) -> Turns:
    prompt, _ = steps.make(rng, steps.StepsSettings(**FAMILIES[STEPS]))
    numbers = re.findall(r"\d+", prompt)
    signs = re.findall(r"[-+*]", prompt)
    pairs = list(zip(signs, numbers[1:], strict=True))

    def step(seen: list[str], number: int, right: bool) -> tuple[str, str, str]:
        left = seen[-1] if right else rng.choice(seen)
        sign, other = pairs[number] if right else rng.choice(pairs)
        value = {"+": int(left) + int(other), "-": int(left) - int(other), "*": int(left) * int(other)}[sign]
        return call_text(Call("calculator", {"expression": f"{left}{sign}{other}"})), str(value), str(value)

    return _wander(rng, prompt, [numbers[0]], len(pairs), step)


def _wander(rng: Random, prompt: str, seen: list[str], needed: int, step: Callable[..., tuple[str, str, str]]) -> Turns:
    """Up to four calls, each right or random, then an answer that is right or random too."""
    messages: list[Message] = [{"role": "user", "content": prompt}]
    turns: Turns = []
    for number in range(4):
        right = rng.random() < RIGHT
        if number >= needed if right else rng.random() < 1 / 3:
            break
        call, said, found = step(seen, min(number, needed - 1), right)
        turns.append((list(messages), call))
        messages += [{"role": "assistant", "content": call}, {"role": "tool", "content": said}]
        seen.append(found)
    turns.append((messages, seen[-1] if rng.random() < RIGHT else rng.choice(seen)))
    return turns


# -- the arms --------------------------------------------------------------------------------------------------------


def _stages(plan: Plan, expert: dict[str, Any] | None = None, *, whole: bool = False) -> dict[str, Any]:
    """The settings of a warm-up over a third of the budget, then RL. ``whole``: groups have the whole trace."""
    every = _every(plan)
    first = round(WARM_SHARE * plan.budget)
    shares = {"n": N - 1, "m": 1} if whole else {"n": N // 2, "m": N // 2}
    return {
        "traces": plan.traces,
        "warm_up": {**every, **shares, "budget": first},
        "rl": {**every, "n": N, "budget": plan.budget - first},
        "expert": expert or {},
    }


def _every(plan: Plan) -> dict[str, Any]:
    return {"steps": 10_000, "prompts": PROMPTS, "learning_rate": plan.rate, "micro_batch_size": None}


def _rl(plan: Plan, traces: int | None) -> dict[str, Any]:
    """The settings of RL alone on the whole budget, after supervised training on the traces if there are any."""
    alone = {**_every(plan), "n": N, "budget": plan.budget}
    sft = {} if traces is None else {"sft": _SFT, "traces": traces}
    return {"warm_up": {"steps": 0}, "rl": alone, **sft}


_SFT = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-3}
"""[digest] Three epochs."""
E3 = "E3-TIR"
ZERO = "Zero-RL"
SFT = "SFT, 10x"
SFT_RL = "SFT -> RL, 10x"
SFT_RL_FEW = "SFT -> RL, as few"
LUFFY = "LUFFY-style"
LESS = {
    "no branching": lambda plan: _stages(
        plan, {"branch": "whole", "lam": 1.0}, whole=True
    ),  # a tree with one member has no advantage
    "random anchors": lambda plan: _stages(plan, {"branch": "random"}),
    "no filter": lambda plan: _stages(plan, {"filter": False}),
    "no hybrid advantage": lambda plan: _stages(plan, {"lam": 1.0}),
    "no detaching": lambda plan: _stages(plan, {"detach": False}),
    "no detaching, on-policy ratio": lambda plan: _stages(plan, {"detach": False, "ratio": "on_policy"}),
    "sum of SFT and RL losses": lambda plan: _stages(plan, {"mixing": "sum"}, whole=True),
}
"""E3-TIR without each of its parts."""
ARMS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    ZERO: lambda plan: _rl(plan, None),
    SFT: lambda plan: {
        "traces": TIMES * plan.traces,
        "sft": _SFT,
        "warm_up": {"steps": 0},
        "rl": {"steps": 0},
    },
    SFT_RL: lambda plan: _rl(plan, TIMES * plan.traces),
    SFT_RL_FEW: lambda plan: _rl(plan, plan.traces),
    LUFFY: lambda plan: _stages(
        plan, {"branch": "whole", "ratio": "shaped", "filter": False, "detach": False, "lam": 1.0}, whole=True
    ),
    E3: lambda plan: _stages(plan),
    **LESS,
}


def trained(plan: Plan) -> dict[str, Any]:
    """Train an arm to the end of its budget; return its learning curve and its score on the test split."""
    torch.set_num_threads(1)
    base = open_base(agent_base(plan.base_steps), device="cpu")
    name = STEPS if plan.family == STEPS else HOPS
    task = {
        "source": "builtin",
        "name": name,
        "seed": plan.seed,
        "splits": {"train": 300, "calibration": 100},
        "config": {**FAMILIES[plan.family], **({"world": plan.seed} if name == HOPS else {})},
    }
    config = E3tirConfig.model_validate(
        {
            "task": task,
            "seed": plan.seed,
            "bf16": False,
            "max_length": SHAPE.context,
            "save_every": 10_000,
            "evaluate_every": 3,
            "evaluate_on": 100,
            "show_every": 10_000,
            "rollout": {"instruction": "", "max_tokens": 110, "batch_size": 256},
            "reward": {"no_answer": 0, "malformed": 0},
            **ARMS[plan.arm](plan),
        }
    )
    with TemporaryDirectory() as scratch, TemporaryDirectory() as aside:
        if plan.family == HASTY:
            config = config.model_copy(update={"experts": _hasty_experts(config, Path(aside))})
        try:
            model = warm_up(base, config, Path(scratch)).apply(base)
        except NothingLearnt:  # an arm in which no reward differed scores what the base scores
            model = base
        figures = read_json(Path(scratch) / "figures.json")
        curve = _curve(Path(scratch), figures)
        history = Path(scratch) / "warm-up" / "history.json"
        joined = [entry["experts/joined"] for entry in read_json(history)] if history.exists() else []
        score = test_score(model, config)
    return {
        "score": score,
        "before": figures["before"]["success"],
        "curve": curve,
        "mean_on_the_way": area(curve, plan.budget),
        "expert_tokens": figures["expert_tokens"],
        "sampled_tokens": curve[-1][0],
        "joined": sum(joined) / len(joined) if joined else None,
        "entropy": figures["stages"].get("rl", {}).get("entropy"),
        "seconds": sum(stage["seconds"] for stage in figures["stages"].values()),
    }


def _hasty_experts(config: E3tirConfig, folder: Path) -> Path:
    """A file of the experts' traces, many of which leave out the last search and answer with the result before it."""

    def hasty(trace: Trace, rng: Random) -> Trace:
        if rng.random() >= HASTE:
            return trace
        *before, found, _, _, _ = trace.messages
        return replace(trace, messages=[*before, found, {"role": "assistant", "content": found["content"].split()[-1]}])

    return changed_experts(config, folder, hasty)


def changed_experts(config: E3tirConfig, folder: Path, change: Callable[[Trace, Random], Trace | None]) -> Path:
    """A file of the experts' traces for the train prompts after ``change``, which leaves out those that it maps to
    None."""
    rng = Random(config.seed)
    with (agent := load_agent(config.task)).toolbox:
        traces = [change(trace, rng) for trace in scripted_traces(agent, agent.task.split("train"))]
    write_traces(folder / "experts.jsonl", [trace for trace in traces if trace is not None])
    return folder / "experts.jsonl"


def test_score(model: Base, config: E3tirConfig) -> float:
    """The score of greedy answers to all test prompts."""
    with (agent := load_agent(config.task)).toolbox:
        form = config.tool_use.call_format(model.tokenizer, agent.toolbox)
        return evaluate_agent(model.model, agent, form, agent.task.split("test"), config.rollout)["success"]


def _curve(folder: Path, figures: dict[str, Any]) -> list[tuple[int, float]]:
    """Points (tokens written by the policy so far, success); supervised training writes none."""
    start = figures["before"]["success"]
    points, spent = [(0, start)], 0
    for stage in ("warm-up", "rl"):
        path = folder / stage / "curve.json"
        if path.exists():
            looks = read_json(path)
            points += [(spent + look["sampled"], look["success"]) for look in looks]
            spent += looks[-1]["sampled"]
    return points if len(points) > 1 else [*points, (0, figures["after"]["success"])]


def area(curve: Sequence[tuple[int, float]], budget: int) -> float:
    """The mean success over the budget: each evaluation counts until the next one, the last one to the end."""
    total, ends = 0.0, [tokens for tokens, _ in curve[1:]] + [budget]
    for (tokens, value), end in zip(curve, ends, strict=True):
        total += value * max(0, min(end, budget) - min(tokens, budget))
    return total / budget
