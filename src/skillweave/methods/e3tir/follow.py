"""Follow a training: looks at the held-out prompts, trees of what was played, what the rewards could teach."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from skillweave.artefact import write_json, write_text
from skillweave.files.read import read_json
from skillweave.methods.e3tir.config import GroupSettings
from skillweave.methods.e3tir.judge import success
from skillweave.methods.e3tir.rollouts import Group
from skillweave.methods.e3tir.show import group_tree
from skillweave.progress import console
from skillweave.tasks import Entry
from skillweave.tools.call_format import CallFormat

SAMPLED = "rollout/tokens"
"""In the trainer's log: tokens that the policy wrote, a prompt."""
EQUAL = "groups/equal"
"""In the trainer's log: share of the groups whose conversations all have the advantage 0, and so teach nothing."""
CUT_OFF = "agent/cut_off"
"""In the trainer's log: share of the policy's own conversations that did not end by themselves."""


class Follow(TrainerCallback):
    """Watches one stage. ``curve.json`` in its folder holds the looks, ``trees/`` the groups that were drawn."""

    trainer: Any = None

    def __init__(
        self, run: Any, form: CallFormat, held_out: Sequence[Entry], folder: Path, stage: GroupSettings
    ) -> None:
        self._run, self._form, self._held_out, self._stage, self._folder = run, form, held_out, stage, folder
        self._curve: list[dict[str, float]] = []
        self.sampled = 0
        """Tokens that the policy wrote so far."""
        self.seconds = 0.0
        """Wall time of the steps so far, rollouts included, looks not."""
        self.means: dict[str, float] = {}
        """Over all batches so far: of the rewards, of :data:`EQUAL` and of :data:`CUT_OFF`."""

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The trainer's arguments: a batch of rollouts serves ``updates`` steps, so that is where a run may stop and
        go on."""
        updates = self._stage.updates
        every = -(-arguments["save_steps"] // updates) * updates
        return {**arguments, "save_steps": every}

    # -- what is called along the way --------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        path = self._folder / "curve.json"
        if path.exists():
            self._curve = [look for look in read_json(path) if look["step"] <= state.global_step]
        self._count(state)
        if self._run.policy.trained is not None and state.global_step == 0 and not self._curve:
            self._look(0)  # what the stage before it left; the run's own beginning stands in `before`

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        self._count(state)
        step = state.global_step
        spent = (
            self._stage.budget is not None
            and self.sampled >= self._stage.budget
            and step % self._stage.updates == 0  # what was written is learnt from
        )
        if spent:
            control.should_training_stop = True
            # No checkpoint of this step: a run that went on from one would not know that the end is reached, and
            # train on. From the one before, it does this step again and ends as it did.
            control.should_save = False
        if spent or step % (self._run.config.evaluate_every * self._stage.updates) == 0 or step == args.max_steps:
            self._look(step)

    def _count(self, state: Any) -> None:
        """From the log, which a run that goes on has as well, even where no step is left to do."""
        tokens = sum(entry.get(SAMPLED, 0.0) for entry in state.log_history)
        self.sampled = round(tokens * self._stage.prompts)
        self.seconds = sum(entry.get("step_time", 0.0) for entry in state.log_history)
        for key in ("reward", EQUAL, CUT_OFF):  # with several updates a batch, they stand at its first step only
            values = [entry[key] for entry in state.log_history if entry.get(key) is not None]
            if values:
                self.means[key] = sum(values) / len(values)

    def _look(self, step: int) -> None:
        run = self._run
        if not run.processes.first:
            return
        look: dict[str, float] = {"step": step, "sampled": self.sampled, "seconds": round(self.seconds, 1)}
        if self._held_out:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            look |= success(
                model, run.data.agent, self._form, self._held_out, run.config.rollout,
                around=self.trainer.accelerator.autocast,
            )  # fmt: skip
            run.say(f"step {step}: success {look['success']:.1%} on {len(self._held_out)} held-out prompts")
        self._curve.append(look)
        write_json(self._folder / "curve.json", self._curve)

    def show(self, groups: Sequence[Group], step: int) -> None:
        """Draw one group now and then: that whose rewards differ most."""
        batch = step // self._stage.updates
        if not self._run.processes.first or batch % self._run.config.show_every:
            return
        tree = group_tree(max(groups, key=Group.spread), self._form.text)
        console.print(tree)
        page = Console(file=io.StringIO(), width=200, record=True)
        page.print(tree)
        write_text(self._folder / "trees" / f"step-{step}.txt", page.export_text())
