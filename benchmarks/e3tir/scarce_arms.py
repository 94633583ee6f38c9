"""The arms of the benchmark of scarce traces: their world, their base, and experts whose words cannot be imitated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from string import ascii_lowercase
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch

from benchmarks.e3tir.arms import FAMILIES, HOPS, WORDS, WORLDS, Turns, changed_experts, test_score
from skillweave.base import Message, open_base
from skillweave.errors import NothingLearnt
from skillweave.files.read import read_json
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir.run import run as warm_up
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base
from skillweave.tasks.builtin import hops
from skillweave.tasks.builtin.names import short_relations
from skillweave.tasks.expert_traces import Trace
from skillweave.tools import Call
from skillweave.tools.turn import call_text

SHAPE = MicroShape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, context=144)
SYLLABLES = 102
"""Names and relations of all worlds are made of these syllables, one token each, so that a search is eight tokens."""
WANDERERS = 2000
RIGHT = 0.15
"""How often the wanderers ask about the person that they found last. Otherwise they ask about the first one again."""
CAREFUL = 0.9
"""How often they ask for the right relation, stop in time, and answer with what they found last."""
BASE_STEPS = 500
BATCHES = 20
PROMPTS = 4
N = 16
UPDATES = 4
"""Optimiser steps on each batch."""
CODE = 1
"""Letters of a word that only the experts' own index knows."""


@dataclass(frozen=True)
class Cell:
    """One run: an arm with its tuned settings, in one condition, with a seed.

    * ``traces``: expert traces
    * ``hidden``: the share of the experts' searches whose words only the experts know
    * ``least``: hops of the shortest question; the longest has three, in RL and in the test
    * ``longest``: hops of the longest question that has a trace
    * ``rate``: learning rate of RL; ``sft``: learning rate and epochs of supervised training
    """

    arm: str
    seed: int
    traces: int = 16
    hidden: float = 1.0
    least: int = 3
    longest: int = 3
    rate: float = 1e-3
    sft: tuple[float, int] = (1e-3, 10)
    batches: int = BATCHES
    base_steps: int = BASE_STEPS


# -- the base --------------------------------------------------------------------------------------------------------


def scarce_base(training_steps: int) -> Path:
    """A micro model trained on conversations of wanderers, who search in the right form and nearly always in vain."""
    rng = Random(0)
    search, _, end = WORDS
    return micro_base(
        [turn for _ in range(WANDERERS) for turn in wander(rng)],
        shape=SHAPE,
        training=TrainingSettings(steps=training_steps, batch_size=64, learning_rate=3e-3),
        seed=0,
        name="scarce",
        words=(search, end, *short_relations(0, SYLLABLES)),
    )


def wander(rng: Random) -> Turns:
    """A conversation whose searches mostly ask about the person in the question, whatever was found since."""
    settings = hops.HopsSettings(**FAMILIES[HOPS], world=1000 + rng.randrange(WORLDS))
    world = hops.world_of(settings)
    prompt, _ = hops.make(rng, settings)
    start, *chain = prompt.removesuffix("?").split(" ")
    messages: list[Message] = [{"role": "user", "content": prompt}]
    turns: Turns = []
    found = start
    for relation in chain if rng.random() < CAREFUL else chain[:-1]:
        who = found if rng.random() < RIGHT else start
        asked = relation if rng.random() < CAREFUL else rng.choice(world.relations)
        found = world.facts[who, asked]
        call = call_text(Call("search", {"query": f"{who} {asked}"}))
        turns.append((list(messages), call))
        result = f"{who}: {who} {asked} {found}"
        messages += [{"role": "assistant", "content": call}, {"role": "tool", "content": result}]
    turns.append((messages, found if rng.random() < CAREFUL else start))
    return turns


# -- the experts -----------------------------------------------------------------------------------------------------


def experts(config: E3tirConfig, folder: Path, cell: Cell) -> Path:
    """A file of expert traces. A hidden search asks for a code of random letters and gets the result all the same.

    The experts have an index of their own. The policy's search does not know the codes, and finds nothing for them.
    """

    def change(trace: Trace, rng: Random) -> Trace | None:
        if hops_of(trace) > cell.longest:
            return None
        messages = [_in_code(message, rng) if rng.random() < cell.hidden else message for message in trace.messages]
        return replace(trace, messages=messages)

    return changed_experts(config, folder, change)


def hops_of(trace: Trace) -> int:
    """The number of hops that the trace's question asks for."""
    return len(trace.messages[0]["content"].split()) - 1


def _in_code(message: Message, rng: Random) -> Message:
    """The message with a code in place of the words that it searches for, if it is a call."""
    if not message.get("tool_calls"):
        return message
    (call,) = message["tool_calls"]
    query = {"query": "".join(rng.choice(ascii_lowercase) for _ in range(CODE))}
    return {**message, "tool_calls": [{**call, "function": {**call["function"], "arguments": query}}]}


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
    """Groups with experts in the first three quarters of the batches, RL alone in the last one."""

    def settings(cell: Cell) -> dict[str, Any]:
        first = 3 * cell.batches // 4
        return {"warm_up": _rl(cell, first, n, m), "rl": _rl(cell, cell.batches - first), "expert": expert}

    return settings


def _rl_after(sft: bool, batches: Callable[[Cell], int]) -> Callable[[Cell], dict[str, Any]]:
    """RL alone, after supervised training if ``sft``."""
    return lambda cell: {
        "warm_up": {"steps": 0},
        "rl": _rl(cell, batches(cell)),
        **({"sft": _sft(cell)} if sft else {}),
    }


_PAPER = {"branch": "anchors", "filter": True, "lam": 0.5, "detach": True, "ratio": "mixture", "mixing": "group"}
ZERO = "Zero-RL"
SFT = "SFT"
SFT_RL = "SFT -> RL"
PAPER = "E3-TIR, paper"
SUM = "E3-TIR, sum of losses"
SILENT = "E3-TIR, silent prefix"
TURNS = "E3-TIR, branches at turns"
AFTER_SFT = "SFT -> E3-TIR"
BREAD = "BREAD-like"
PREFIX_RFT = "Prefix-RFT-like"
TREE = "Tree-GRPO-like"
ARMS: dict[str, Callable[[Cell], dict[str, Any]]] = {
    ZERO: _rl_after(False, lambda cell: cell.batches),
    SFT: _rl_after(True, lambda cell: 0),
    SFT_RL: _rl_after(True, lambda cell: cell.batches),
    PAPER: _mixed(_PAPER),
    SUM: _mixed({**_PAPER, "mixing": "sum"}, N - 1, 1),
    SILENT: _mixed({**_PAPER, "uncertain": 0.0}),
    TURNS: _mixed({**_PAPER, "branch": "turns"}),
    AFTER_SFT: lambda cell: {**_mixed(_PAPER)(cell), "sft": _sft(cell)},
    BREAD: _mixed({**_PAPER, "ask": "failed", "detach": False, "ratio": "on_policy", "lam": 1.0}),
    PREFIX_RFT: _mixed(
        {**_PAPER, "branch": "annealed", "uncertain": 0.2, "filter": False, "detach": False, "ratio": "on_policy",
         "lam": 1.0},
        N - 1,
        1,
    ),
    TREE: _mixed({**_PAPER, "branch": "own", "filter": False}),
}  # fmt: skip
USES_SFT = (SFT, SFT_RL, AFTER_SFT)
"""The arms whose supervised training is tuned."""
NO_EXPERT = (ZERO, TREE)
"""The arms for which all experts are the same."""
MAIN = PAPER
"""The arm that stands for E3-TIR in the claims: its defaults."""


# -- a run -----------------------------------------------------------------------------------------------------------


def settings(cell: Cell) -> E3tirConfig:
    """The settings of a cell, without the file of its experts."""
    world = {**FAMILIES[HOPS], "least": cell.least, "most": 3, "world": cell.seed}
    values = {
        "task": {
            "source": "builtin",
            "name": "hops",
            "seed": cell.seed,
            "splits": {"train": 600, "calibration": 1, "test": 200},
            "config": world,
        },
        "seed": cell.seed,
        "traces": cell.traces,
        "bf16": False,
        "max_length": SHAPE.context,
        "save_every": 10_000,
        "evaluate_on": 0,
        "show_every": 10_000,
        "rollout": {"instruction": "", "max_tokens": 110, "batch_size": 256},
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
