"""Looks at the model while it unlearns, and ends the training where the goal is reached or the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from skillweave.errors import UserError
from skillweave.methods.cku.config import WatchSettings
from skillweave.methods.cku.neurons.freeze import refuse_cut_up
from skillweave.methods.training.processes import Processes

Look = Callable[[Any], dict[str, float]]
"""model -> ``forget``, extraction strength on the forget set, and ``retain``, probability on what is held out."""


class Watch(TrainerCallback):
    """Stops a training, and goes back to the last point where retain was within the budget.

    That point is held in memory: as many bytes again as are trained. The looks stand in the trainer's own log, so that
    a training that goes on knows them; there is one at every checkpoint, and none of what is over the budget is saved.
    """

    def __init__(
        self, look: Look, settings: WatchSettings, *, start: float, goal: float | None, save_every: int,
        processes: Processes,
    ):  # fmt: skip
        self._look, self._settings, self._goal, self._processes = look, settings, goal, processes
        self._floor = start * (1 - settings.budget) if settings.budget is not None else float("-inf")
        self._save_every = save_every
        self._kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self.looks: list[dict[str, float]] = []
        self.ended = "steps"
        """why it ended: ``goal``, ``budget`` or ``steps``"""
        self.kept_step = 0
        """the step whose weights are kept"""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is a point within the budget."""
        refuse_cut_up(kwargs["model"].parameters())
        self.looks = [entry["look"] for entry in state.log_history if "look" in entry]
        self._keep(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time to."""
        step = state.global_step
        if step % self._settings.every and step % self._save_every and step < state.max_steps:
            return
        model = kwargs["model"]
        look = {"step": step, **self._processes.from_first(lambda: self._look(model))}
        self.looks.append(look)
        state.log_history.append({"step": step, "look": look})
        if math.isnan(look["retain"]):
            raise UserError(f"the model gives no numbers any more at step {step}: lower training.learning_rate")
        if look["retain"] < self._floor:
            self.ended = "budget"
        else:
            self._keep(model, step)
            if self._goal is not None and look["forget"] <= self._goal:
                self.ended = "goal"
        if self.ended != "steps":
            control.should_training_stop = True
            control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go back where the budget was spent."""
        if self.ended == "budget":
            with torch.no_grad():
                for parameter, values in self._kept:
                    parameter.copy_(values)
        self._kept.clear()

    def _keep(self, model: Any, step: int) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._kept = [(parameter, parameter.detach().clone()) for parameter in trained]
        self.kept_step = step
