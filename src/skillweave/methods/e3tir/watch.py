"""Watch a training stage: evaluations on held-out prompts, trees of conversations, and the means of the log."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree
from transformers import TrainerCallback

from skillweave.artefact import write_json, write_text
from skillweave.base.chat import as_messages
from skillweave.files.read import read_json
from skillweave.methods.e3tir.config import GroupSettings
from skillweave.methods.e3tir.group import Group, Member
from skillweave.progress import console
from skillweave.tasks import Entry
from skillweave.tasks.with_tools import AgentTask
from skillweave.terminal import printable
from skillweave.tools.call import POLICY, TOOL
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import ConversationSettings, begin, converse

SAMPLED = "rollout/tokens"
"""Key of the trainer's log: the number of tokens that the policy wrote, per prompt."""
EQUAL = "groups/equal"
"""Key of the trainer's log: the share of groups in which all advantages are 0, so that they teach nothing."""
CUT_OFF = "agent/cut_off"
"""Key of the trainer's log: the share of the policy's own conversations that were cut off at the token limit."""
_LONGEST = 400
"""The most characters that are shown of one piece of a conversation."""


def evaluate_agent(
    model: Any,
    agent: AgentTask,
    call_format: CallFormat,
    entries: Sequence[Entry],
    settings: ConversationSettings,
    *,
    around: Callable[[], Any] = nullcontext,
) -> dict[str, float]:
    """Play each entry once with greedy decoding; return the means over all conversations. Needs at least one entry.

    * ``success``: the verifier's score, 0 without an answer
    * ``answered``: the share of conversations with an answer
    * ``calls``, ``failed_calls``: calls of tools in a conversation
    * ``tokens``: tokens that the policy wrote in a conversation
    """
    starts = begin(model, call_format, [entry.prompt for entry in entries])
    episodes = converse(model, call_format, agent.toolbox, starts, settings, around=around)
    scores = [agent.task.score(episode.answer, entry) for episode, entry in zip(episodes, entries, strict=True)]
    return {
        "success": fmean(scores),
        "answered": fmean(episode.answer is not None for episode in episodes),
        "calls": fmean(episode.calls for episode in episodes),
        "failed_calls": fmean(episode.failures for episode in episodes),
        "tokens": fmean(episode.writers.count(POLICY) for episode in episodes),
    }


class StageWatch(TrainerCallback):
    """Watches one stage. In its folder ``curve.json`` holds the evaluations, ``trees/`` the groups that were drawn."""

    trainer: Any = None

    def __init__(
        self, run: Any, call_format: CallFormat, held_out: Sequence[Entry], folder: Path, stage: GroupSettings
    ) -> None:
        self._run, self._call_format, self._held_out = run, call_format, held_out
        self._stage, self._folder = stage, folder
        self._curve: list[dict[str, float]] = []
        self.sampled = 0
        """The number of tokens that the policy has written so far."""
        self.seconds = 0.0
        """Wall time of the steps so far, with rollouts and without evaluations."""
        self.means: dict[str, float] = {}
        """Means over all batches so far: of the reward, of :data:`EQUAL` and of :data:`CUT_OFF`."""

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The trainer's arguments with a rounded ``save_steps``: a run can only resume between two batches of rollouts.

        One batch of rollouts serves ``updates`` optimiser steps.
        """
        updates = self._stage.updates
        every = -(-arguments["save_steps"] // updates) * updates
        return {**arguments, "save_steps": every}

    # -- callbacks ----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        path = self._folder / "curve.json"
        if path.exists():
            self._curve = [point for point in read_json(path) if point["step"] <= state.global_step]
        self._read_log(state)
        if self._run.policy.trained is not None and state.global_step == 0 and not self._curve:
            self._evaluate(0)  # what the stage before left; the stage `before` has the run's own beginning

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        self._read_log(state)
        step = state.global_step
        spent = (
            self._stage.budget is not None
            and self.sampled >= self._stage.budget
            and step % self._stage.updates == 0  # all updates on the batch are done
        )
        if spent:
            control.should_training_stop = True
            # Do not save a checkpoint of this step: a run that resumed from it would not know that the budget is spent
            # and would train on. A run that resumes from the checkpoint before repeats this step and then ends too.
            control.should_save = False
        if spent or step % (self._run.config.evaluate_every * self._stage.updates) == 0 or step == args.max_steps:
            self._evaluate(step)

    def _read_log(self, state: Any) -> None:
        """Update the figures from the trainer's log, which a resumed run has too, even if no step is left to do."""
        tokens = sum(entry.get(SAMPLED, 0.0) for entry in state.log_history)
        self.sampled = round(tokens * self._stage.prompts)
        self.seconds = sum(entry.get("step_time", 0.0) for entry in state.log_history)
        for key in ("reward", EQUAL, CUT_OFF):  # with several updates a batch, only its first step logs them
            values = [entry[key] for entry in state.log_history if entry.get(key) is not None]
            if values:
                self.means[key] = sum(values) / len(values)

    def _evaluate(self, step: int) -> None:
        run = self._run
        if not run.processes.first:
            return
        point: dict[str, float] = {"step": step, "sampled": self.sampled, "seconds": round(self.seconds, 1)}
        if self._held_out:
            accelerator = self.trainer.accelerator
            model = accelerator.unwrap_model(self.trainer.model)
            point |= evaluate_agent(
                model,
                run.data.agent,
                self._call_format,
                self._held_out,
                run.config.rollout,
                around=accelerator.autocast,
            )
            run.say(f"step {step}: success {point['success']:.1%} on {len(self._held_out)} held-out prompts")
        self._curve.append(point)
        write_json(self._folder / "curve.json", self._curve)

    def show(self, groups: Sequence[Group], step: int) -> None:
        """Draw one group, the one whose rewards differ most, if it is time to (``show_every``)."""
        batch = step // self._stage.updates
        if not self._run.processes.first or batch % self._run.config.show_every:
            return
        tree = group_tree(max(groups, key=Group.spread), self._call_format.text)
        console.print(tree)
        page = Console(file=io.StringIO(), width=200, record=True)
        page.print(tree)
        write_text(self._folder / "trees" / f"step-{step}.txt", page.export_text())


# -- a group as a tree ------------------------------------------------------------------------------------------------


def group_tree(group: Group, text: Callable[[list[int]], str]) -> Tree:
    """A tree for the terminal: the prompt, the policy's own conversations, and the branches below each anchor.

    ``text`` turns tokens into text. The text of tools is dim, the text of experts is in italics. Markup in a text is
    shown as it is, and control characters are escaped: a model or a tool cannot control the terminal.
    """
    prompt, answer = as_messages(group.entry.prompt)[-1]["content"], str(group.entry.answer)
    tree = Tree(Text.assemble((_printable(prompt), "bold"), "  answer: ", _printable(answer)))
    own = tree.add("self")
    for member in group.pool(False):
        own.add(_conversation(member, text, 0))
    branches = group.pool(True)
    if not branches:
        return tree
    joined = "joined" if branches[0].joined else "not joined: no better than the policy's own"
    experts = tree.add(f"expert ({joined})")
    for cut in sorted({member.prefix for member in branches}):
        siblings = [member for member in branches if member.prefix == cut]
        prefix = _pieces(siblings[0], text, 0, cut)
        prefix.stylize("italic")
        anchor = experts.add(prefix)
        for member in siblings:
            anchor.add(_conversation(member, text, cut))
    return tree


def _conversation(member: Member, text: Callable[[list[int]], str], start: int) -> Text:
    """The reward, the advantage, and the tokens from ``start`` on."""
    colour = "green" if member.score == 1 else "red"
    reward = (f"{member.reward:+.2f}", colour)
    return Text.assemble(reward, f" (A {member.advantage:+.2f})  ", _pieces(member, text, start))


def _pieces(member: Member, text: Callable[[list[int]], str], start: int, end: int | None = None) -> Text:
    """The tokens from ``start`` to ``end`` as text, in alternating pieces of the model and of tools."""
    ids, writers = member.episode.ids[start:end], member.episode.writers[start:end]
    by_tool = [writer == TOOL for writer in writers]
    pieces, at = [], 0
    while at < len(ids):
        stop = next((index for index in range(at, len(ids)) if by_tool[index] != by_tool[at]), len(ids))
        pieces.append(Text(_printable(text(ids[at:stop])), "dim" if by_tool[at] else ""))
        at = stop
    return Text(" ").join(pieces)


def _printable(text: str) -> str:
    """The text on one line, cut to ``_LONGEST`` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
