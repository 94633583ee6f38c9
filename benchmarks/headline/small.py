"""The small scale: SmolLM2, three built-in tasks, two families of reasoning-gym, and an agent with a calculator."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.headline.questions import ALIKE, EVERYDAY, TWO, Question, share_of_both, unjudged
from benchmarks.headline.scale import ARITHMETIC, DARE, LORA, MERGES, MULTI, SPECIALIST, TEST, TIES, Row, Scale
from skillweave.artefact import atomic_folder
from skillweave.base import Message, Prompt, open_base
from skillweave.base.chat import as_messages
from skillweave.pipeline.evaluate import BACKGROUND
from skillweave.tasks import Entry, Task, load_task
from skillweave.tasks.expert_traces import scripted_traces
from skillweave.tasks.with_tools import AgentTask, agent_of, brings_tools
from skillweave.tools.call_format import tools_instruction
from skillweave.tools.trace import read_trace

_TASKS: dict[str, dict[str, Any]] = {
    "json_calls": {"source": "builtin", "name": "json_calls"},
    "reverse_words": {"source": "builtin", "name": "reverse_words", "config": {"most": 4}},
    "sort_numbers": {"source": "builtin", "name": "sort_numbers", "config": {"order": "ascending", "most": 4}},
    "number_filtering": {
        "source": "reasoning-gym",
        "generator": "number_filtering",
        "config": {"max_numbers": 5, "min_decimals": 0, "max_decimals": 0},
    },
    "word_sorting": {
        "source": "reasoning-gym",
        "generator": "word_sorting",
        "config": {"min_words": 3, "max_words": 4},
    },
    "steps": {"source": "builtin", "name": "steps", "config": {"least": 2, "most": 2, "digits": 1}},
    "extract_contact": {"source": "builtin", "name": "extract_contact"},
}
ADDED = "extract_contact"
"""The skill that is added to a weave of the six others."""
_TWICE_LAYERS = 68
"""With so many layers of its kind in place of 30, and its embedding, SmolLM2 has twice its parameters."""


@dataclass(frozen=True, kw_only=True)
class Small(Scale):
    """SmolLM2 with its skills."""

    def base(self) -> str:
        """Return the reference of SmolLM2-135M-Instruct."""
        return "bundled:smollm2"

    def monolith(self) -> None:
        """Return None: no package has the weights of a model of twice the size."""

    def twice(self, folder: Path) -> str:
        """Return a model with 68 of SmolLM2's layers in place of 30, and random weights, which take time as any."""
        place = folder / "twice"
        if not place.is_dir():
            base = open_base(self.base(), dtype="float32", device="cpu")
            config = copy.deepcopy(base.model.config)
            config.num_hidden_layers = _TWICE_LAYERS
            torch.manual_seed(0)
            with atomic_folder(place) as written:
                AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(written)
                base.tokenizer.save_pretrained(written)
        return str(place)

    def rows(self, skill: str, seed: int) -> list[Row]:
        """Return the training examples; those of the agent are conversations with its calculator."""
        task = self._task(skill, seed)
        if brings_tools(task.spec):
            agent = agent_of(task)
            return [
                {"messages": _as_text(trace.messages, agent)} for trace in scripted_traces(agent, task.split("train"))
            ]
        return [
            {"messages": [*as_messages(entry.prompt), {"role": "assistant", "content": str(entry.answer)}]}
            for entry in task.split("train")
        ]

    def prompts(self, skill: str, seed: int) -> list[Prompt]:
        """Return the first prompts of the training, without the tools, as the router reads them."""
        return [entry.prompt for entry in self._task(skill, seed).split("train")[: self.routed_on]]

    def asked(self, skill: str, seed: int, split: str) -> list[Question]:
        """Return the questions of a skill as its task writes them."""
        task = self._task(skill, seed)
        entries = task.split("test" if split == TEST else "calibration")
        return [_question(task, entry, skill, entry.prompt) for entry in entries]

    def asked_hard(self, kind: str, seed: int) -> list[Question]:
        """Return questions of one kind.

        - look alike: the tasks on numbers, and those on words, with the same words around the same kind of list
        - other words: all skills in words that nothing was trained on
        - two skills: two prompts in one; everyday: the prompts that the router did not learn from
        """
        if kind == EVERYDAY:
            return [Question(prompt, (), unjudged) for prompt in BACKGROUND[1]]
        if kind == TWO:
            return self._twofold(seed)
        chosen = _ALIKE if kind == ALIKE else _REWORDED
        each = -(-self.hard // len(chosen))
        found = []
        for skill, reword in chosen.items():
            task = self._task(skill, seed)
            entries = task.split("test")[:each]
            found += [_question(task, entry, skill, reword(str(entry.prompt))) for entry in entries]
        return found

    def _twofold(self, seed: int) -> list[Question]:
        random = Random(f"two {seed}")
        plain = [skill for skill in self.skills if not brings_tools(self._task(skill, seed).spec)]
        found = []
        for at in range(self.hard):
            both = random.sample(plain, 2)
            entries = [self._task(skill, seed).split("test")[at % self.tested] for skill in both]
            prompt = "\nThen: ".join(str(entry.prompt) for entry in entries)
            golds = (str(entries[0].answer), str(entries[1].answer))
            found.append(Question(prompt, tuple(both), share_of_both(golds)))
        return found

    def background(self) -> Sequence[Prompt]:
        """Return three quarters of the bundled everyday prompts."""
        return BACKGROUND[0]

    def _task(self, skill: str, seed: int) -> Task:
        return _task(skill, seed, self.steps * self.batch, self.tuned, self.tested)


@functools.lru_cache(maxsize=32)
def _task(skill: str, seed: int, train: int, tuned: int, tested: int) -> Task:
    return load_task({**_TASKS[skill], "seed": seed, "splits": {"train": train, "calibration": tuned, "test": tested}})


def _question(task: Task, entry: Entry, skill: str, prompt: Prompt) -> Question:
    return Question(
        prompt, (skill,), lambda answer: task.score(answer, entry), task if brings_tools(task.spec) else None
    )


def _as_text(messages: Sequence[Message], agent: AgentTask) -> list[Message]:
    """Return a conversation with tools as plain messages, in the words in which such conversations are played."""
    prompt, steps = read_trace(messages)
    found: list[Message] = [{"role": "system", "content": tools_instruction(agent.toolbox.schemas)}, *prompt]
    for step in steps:
        found.append({"role": "assistant", "content": step.text})
        found += [{"role": "tool", "content": result} for result in step.results]
    return found


# -- other words -------------------------------------------------------------------------------------------------------


def _parts(pattern: str, prompt: str) -> tuple[str, ...]:
    """Return the groups of a pattern in a prompt."""
    found = re.search(pattern, prompt)
    if found is None:
        raise ValueError(f"no prompt of this skill: {prompt!r}")
    return found.groups()


def _filter_parts(prompt: str) -> tuple[str, ...]:
    return _parts(r"^(Keep|Remove) all numbers (smaller|larger) than (\S+) in this list: (\[.*\])", prompt)


def _sort_parts(prompt: str) -> tuple[str, ...]:
    return _parts(r"words in (\w+) order .* list: (.*)\n", prompt)


def _filter_other(prompt: str) -> str:
    what, side, bound, numbers = _filter_parts(prompt)
    does, which = {"Keep": "leave in only", "Remove": "take out"}[what], {"smaller": "below", "larger": "above"}[side]
    return f"Here is a list: {numbers}. Please {does} the numbers {which} {bound} and write what is left as a list."


def _filter_alike(prompt: str) -> str:
    what, side, bound, numbers = _filter_parts(prompt)
    return f"{what} what is {side} than {bound}: {', '.join(re.findall(r'-?[0-9]+', numbers))}"


def _words_other(prompt: str) -> str:
    order, words = _sort_parts(prompt)
    named = {"ascending": "from A to Z", "descending": "from Z to A"}[order]
    return f"Here are some words: {words}. Write them down alphabetically, {named}, with commas between them."


def _words_alike(prompt: str) -> str:
    order, words = _sort_parts(prompt)
    return f"Sort the words in {order} order: {words.replace(',', '')}"


def _steps_other(prompt: str) -> str:
    start, *rest = _parts(r"^Start with (\d+)\. (.*?\.) (.*?\.) What", prompt)
    first, second = (step.rstrip(".").lower() for step in rest)
    return f"Take {start}, then {first}, and after that {second}. Tell me the result."


_REWORDED: dict[str, Callable[[str], str]] = {
    "json_calls": lambda prompt: (
        f'Which function fits here, with which arguments? Use JSON. "{prompt.split(": ", 1)[1]}"'
    ),
    "reverse_words": lambda prompt: f"Say these words again, the last one first: {prompt.split(': ', 1)[1]}",
    "sort_numbers": lambda prompt: f"Put these into ascending order: {prompt.split(': ', 1)[1]}",
    "number_filtering": _filter_other,
    "word_sorting": _words_other,
    "steps": _steps_other,
}
"""Skill -> the same question in words that no training has seen."""
_ALIKE: dict[str, Callable[[str], str]] = {
    "reverse_words": lambda prompt: f"Reverse the words in this order: {prompt.split(': ', 1)[1]}",
    "word_sorting": _words_alike,
    "sort_numbers": lambda prompt: f"Sort what is smallest to largest: {prompt.split(': ', 1)[1]}",
    "number_filtering": _filter_alike,
}
"""Skill -> the same question in words like those of another skill on the same kind of list."""

SMALL = Small(
    name="small",
    skills=tuple(name for name in _TASKS if name != ADDED),
    added=ADDED,
    steps=60,
    batch=4,
    tokens=40,
    trainable=r"layers\.(1[5-9]|2[0-9])\..*proj",
    targets=r".*layers\.(1[5-9]|2[0-9])\..*proj",
    rates={**dict.fromkeys((SPECIALIST, *MERGES), (3e-4,)), MULTI: (1.5e-4, 3e-4), LORA: (1e-3, 3e-3)},
    factors={ARITHMETIC: (0.2, 0.4, 0.7), TIES: (0.5, 1.0, 2.0), DARE: (0.2, 0.4)},
    lora_tuned_on=("reverse_words", "number_filtering"),
    tested=64,
    tuned=16,
    hard=48,
    routed_on=64,
    judges_everyday=False,
)
