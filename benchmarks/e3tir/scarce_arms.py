"""The arms of the benchmark of scarce traces: their world, their base, and experts whose words cannot be imitated."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch

from benchmarks.e3tir.arms import FAMILIES, STEPS, WORDS, Turns, changed_experts, test_score
from skillweave.base import Message, open_base
from skillweave.errors import NothingLearnt
from skillweave.files.read import read_json
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir.config import PRESETS
from skillweave.methods.e3tir.run import run as warm_up
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base
from skillweave.tasks.builtin import steps
from skillweave.tasks.expert_traces import Trace
from skillweave.tools import Call
from skillweave.tools.turn import call_text

SHAPE = MicroShape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, context=112)
WANDERERS = 4
"""Conversations of wanderers for each step of the base's training."""
RIGHT = 0.2
"""How often the wanderers go on from the last result. Otherwise they begin with the first number again."""
CAREFUL = 0.95
"""How often they take the right operation, make all calls, and answer with the last result."""
BASE_STEPS = 1200
BATCHES = 20
PROMPTS = 4
N = 16
UPDATES = 4
"""Optimiser steps on each batch."""
LENGTH = 4
"""Operations of the longest prompt."""
LARGEST = 99
"""The largest number of a chain."""
FAMILY = {**FAMILIES[STEPS], "most": LENGTH, "largest": LARGEST}


@dataclass(frozen=True)
class Cell:
    """One run: an arm with its tuned settings, in one condition, with a seed.

    * ``traces``: expert traces
    * ``hidden``: the share of the experts' calls in which a name that only they know stands for the last result
    * ``least``: operations of the shortest prompt; the longest has :data:`LENGTH`, in RL and in the test
    * ``longest``: operations of the longest prompt that has a trace
    * ``rate``: learning rate of RL; ``sft``: learning rate and epochs of supervised training
    """

    arm: str
    seed: int
    traces: int = 16
    hidden: float = 1.0
    least: int = LENGTH
    longest: int = LENGTH
    rate: float = 5e-4
    sft: tuple[float, int] = (1e-3, 10)
    batches: int = BATCHES
    base_steps: int = BASE_STEPS


# -- the base --------------------------------------------------------------------------------------------------------


def scarce_base(training_steps: int) -> Path:
    """A micro model trained on conversations of wanderers, who call in the right form and nearly always in vain."""
    rng = Random(0)
    _, calculate, end = WORDS
    return micro_base(
        [turn for _ in range(WANDERERS * training_steps) for turn in wander(rng)],
        shape=SHAPE,
        training=TrainingSettings(steps=training_steps, batch_size=64, learning_rate=3e-3),
        seed=0,
        name="scarce",
        words=(calculate, end),
    )


def wander(rng: Random) -> Turns:
    """A conversation whose calls mostly begin with the first number of the prompt, whatever came out since."""
    prompt, _ = steps.make(rng, steps.StepsSettings(**FAMILY))
    first, *numbers = re.findall(r"\d+", prompt)
    pairs = list(zip(re.findall(r"[-+*]", prompt), numbers, strict=True))
    messages: list[Message] = [{"role": "user", "content": prompt}]
    turns: Turns = []
    result = first
    for pair in pairs if rng.random() < CAREFUL else pairs[:-1]:
        left = result if rng.random() < RIGHT else first
        sign, other = pair if rng.random() < CAREFUL else rng.choice(pairs)
        result = str({"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(other)))
        call = call_text(Call("calculator", {"expression": f"{left}{sign}{other}"}))
        turns.append((list(messages), call))
        messages += [{"role": "assistant", "content": call}, {"role": "tool", "content": result}]
    turns.append((messages, result if rng.random() < CAREFUL else first))
    return turns


# -- the experts -----------------------------------------------------------------------------------------------------


def experts(config: E3tirConfig, folder: Path, cell: Cell) -> Path:
    """A file of expert traces. In a hidden call another number stands for the last result, and the result is the usual.

    It is as if the experts had a memory with names of their own: nobody else can predict the number, and the policy's
    own calculator gives something wrong for it.
    """

    def change(trace: Trace, rng: Random) -> Trace | None:
        if operations(trace) > cell.longest:
            return None
        messages = [_hidden(message, rng) if rng.random() < cell.hidden else message for message in trace.messages]
        return replace(trace, messages=messages)

    return changed_experts(config, folder, change)


def operations(trace: Trace) -> int:
    """The number of operations in the trace's prompt."""
    return len(re.findall(r"[-+*]", trace.messages[0]["content"]))


def _hidden(message: Message, rng: Random) -> Message:
    """The message with a random number as the left one, if it is a call."""
    if not message.get("tool_calls"):
        return message
    (call,) = message["tool_calls"]
    _, rest = parts(call["function"]["arguments"]["expression"])
    arguments = {"expression": f"{rng.randint(1, LARGEST)}{rest}"}
    return {**message, "tool_calls": [{**call, "function": {**call["function"], "arguments": arguments}}]}


def parts(expression: str) -> tuple[str, str]:
    """The left number of a call's expression, and the rest: its sign and the right number."""
    match = re.fullmatch(r"(-?\d+)([-+*]\d+)", expression)
    assert match is not None
    return match[1], match[2]


# -- the arms --------------------------------------------------------------------------------------------------------


def _rl(cell: Cell, batches: int, n: int = N, m: int = 0) -> dict[str, Any]:
    return {
        "steps": batches,
        "n": n,
        "m": m,
        "prompts": PROMPTS,
        "updates": UPDATES,
        "learning_rate": cell.rate,
        "micro_batch_size": None,
    }


def _sft(cell: Cell) -> dict[str, Any]:
    rate, epochs = cell.sft
    return {"learning_rate": rate, "epochs": epochs, "batch_size": min(8, cell.traces)}


def _mixed(expert: dict[str, Any], n: int = N // 2, m: int = N // 2) -> Callable[[Cell], dict[str, Any]]:
    """Groups with experts in the first half of the batches, RL alone in the second."""

    def settings(cell: Cell) -> dict[str, Any]:
        first = cell.batches // 2
        return {"warm_up": _rl(cell, first, n, m), "rl": _rl(cell, cell.batches - first), "expert": expert}

    return settings


def _rl_after(sft: bool, batches: Callable[[Cell], int]) -> Callable[[Cell], dict[str, Any]]:
    """RL alone, after supervised training if ``sft``."""
    return lambda cell: {
        "warm_up": {"steps": 0},
        "rl": _rl(cell, batches(cell)),
        **({"sft": _sft(cell)} if sft else {}),
    }


_PAPER = PRESETS["paper"]["expert"]
ZERO = "Zero-RL"
SFT = "SFT"
SFT_RL = "SFT -> RL"
PAPER = "E3-TIR, paper"
ANNEALED = "E3-TIR, annealed"
AFTER_SFT = "SFT -> E3-TIR, annealed"
SUM = "E3-TIR, sum of losses"
BREAD = "BREAD-like"
PREFIX_RFT = "Prefix-RFT-like"
TREE = "Tree-GRPO-like"
_PLAIN = {"detach": False, "ratio": "on_policy", "lam": 1.0}
"""As in GRPO: the tokens of a prefix are as good as the policy's own."""
ARMS: dict[str, Callable[[Cell], dict[str, Any]]] = {
    ZERO: _rl_after(False, lambda cell: cell.batches),
    SFT: _rl_after(True, lambda cell: 0),
    SFT_RL: _rl_after(True, lambda cell: cell.batches),
    PAPER: _mixed(_PAPER),
    ANNEALED: _mixed({**_PAPER, "branch": "annealed"}),
    AFTER_SFT: lambda cell: {**_mixed({**_PAPER, "branch": "annealed"})(cell), "sft": _sft(cell)},
    SUM: _mixed({**_PAPER, "mixing": "sum"}, N - 1, 1),
    BREAD: _mixed({**_PAPER, **_PLAIN, "ask": "failed"}),
    PREFIX_RFT: _mixed({**_PAPER, **_PLAIN, "branch": "annealed", "uncertain": 0.2, "filter": False}, N - 1, 1),
    TREE: _mixed({**_PAPER, "branch": "own", "filter": False}),
}
VARIANTS = (PAPER, ANNEALED, AFTER_SFT, SUM)
"""The settings of E3-TIR among which the grid chooses."""
USES_SFT = (SFT, SFT_RL, AFTER_SFT)
"""The arms whose supervised training is tuned."""
NO_EXPERT = (ZERO, TREE)
"""The arms for which all experts are the same."""


# -- a run -----------------------------------------------------------------------------------------------------------


def settings(cell: Cell) -> E3tirConfig:
    """The settings of a cell, without the file of its experts."""
    values = {
        "task": {
            "source": "builtin",
            "name": "steps",
            "seed": cell.seed,
            "splits": {"train": 600, "calibration": 1, "test": 200},
            "config": {**FAMILY, "least": cell.least},
        },
        "seed": cell.seed,
        "traces": cell.traces,
        "bf16": False,
        "max_length": SHAPE.context,
        "save_every": 10_000,
        "evaluate_on": 0,
        "show_every": 10_000,
        "rollout": {"instruction": "", "max_tokens": 84, "max_tool_calls": LENGTH, "batch_size": 256},
        "reward": {"no_answer": 0, "malformed": 0},
    }
    return E3tirConfig.model_validate({**values, **ARMS[cell.arm](cell)})


def trained(cell: Cell) -> dict[str, Any]:
    """Train the arm of a cell; return the score of greedy answers to the test prompts, and what the run cost."""
    torch.set_num_threads(1)
    began = process_time()
    base = open_base(scarce_base(cell.base_steps), device="cpu")
    config = settings(cell)
    with TemporaryDirectory() as scratch, TemporaryDirectory() as aside:
        if config.asks_experts:
            config = config.model_copy(update={"experts": experts(config, Path(aside), cell)})
        try:
            model = warm_up(base, config, Path(scratch)).apply(base)
        except NothingLearnt:  # an arm in which no reward differed scores what the base scores
            model = base
        figures = read_json(Path(scratch) / "figures.json")
        curve = [
            entry["agent/success"]
            for stage in ("warm-up", "rl")
            if (Path(scratch) / stage / "history.json").exists()
            for entry in read_json(Path(scratch) / stage / "history.json")
            if "agent/success" in entry
        ]
    return {
        "score": test_score(model, config),
        "curve": curve,
        "expert_tokens": figures["expert_tokens"],
        "sampled_tokens": sum(stage.get("sampled_tokens", 0) for stage in figures["stages"].values()),
        "seconds": round(process_time() - began, 1),
    }
