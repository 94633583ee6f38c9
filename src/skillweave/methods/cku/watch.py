"""Evaluates the model while it unlearns, and ends the training at the goal or before the retain budget is exceeded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from skillweave.errors import UserError
from skillweave.methods.cku.config import WatchSettings
from skillweave.methods.cku.neurons.freeze import check_whole
from skillweave.methods.training.processes import Processes

Evaluate = Callable[[Any], dict[str, float]]
"""model -> ``forget``: extraction strength on the forget set; ``retain``: probability of the held-out answers."""

LOG_KEY = "look"
"""The key of an evaluation in the trainer's log. Checkpoints hold it, so it must not change: an older run resumes."""


class RecordedEvaluations(TrainerCallback):
    """Evaluations of a model in training, recorded in the trainer's log, so that a resumed training knows them."""

    rate = "training.learning_rate"
    """the setting to lower if the model outputs NaN"""

    def __init__(self, evaluate: Evaluate, processes: Processes):
        self._evaluate, self._processes = evaluate, processes
        self.evaluations: list[dict[str, float]] = []
        """``step``, ``forget`` and ``retain`` of every evaluation"""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the earlier evaluations."""
        self.evaluations = [entry[LOG_KEY] for entry in state.log_history if LOG_KEY in entry]

    def evaluated(self, model: Any, state: Any) -> dict[str, float]:
        """Evaluate the model at the step of ``state``, and record it.

        Raises UserError if the model outputs NaN.
        """
        evaluation = {"step": state.global_step, **self._processes.from_first(lambda: self._evaluate(model))}
        if math.isnan(evaluation["retain"]):
            raise UserError(f"the model outputs NaN at step {state.global_step}: lower {self.rate}")
        self.evaluations.append(evaluation)
        state.log_history.append({"step": state.global_step, LOG_KEY: evaluation})
        return evaluation

    def end(self, control: Any) -> None:
        """End the training at this step. It gets no checkpoint, so a run that is cut off here evaluates it again."""
        control.should_training_stop = True
        control.should_save = False


class Watch(RecordedEvaluations):
    """Stops a training at its goal, or returns to the last evaluation at which retain was within the budget.

    - The weights of that evaluation are kept in memory. This doubles the memory of the trained weights.
    - There is an evaluation at every checkpoint, so no checkpoint is over the budget.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        settings: WatchSettings,
        *,
        start: float,
        goal: float | None,
        save_every: int,
        processes: Processes,
    ):
        """``start``: probability of the held-out answers before the training. ``goal``: extraction strength to stop at,
        or None. ``save_every``: steps between two checkpoints."""
        super().__init__(evaluate, processes)
        self._settings, self._goal = settings, goal
        self._floor = start * (1 - settings.budget) if settings.budget is not None else float("-inf")
        self._save_every = save_every
        self._kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self.ended = "steps"
        """why the training ended: ``goal``, ``budget`` or ``steps``"""
        self.kept_step = 0
        """the step whose weights are kept"""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the earlier evaluations and keep the weights: a checkpoint is within the budget."""
        check_whole(kwargs["model"].parameters())
        super().on_train_begin(args, state, control, **kwargs)
        self._keep(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate if this step is due, and stop the training at the goal or over the budget."""
        step = state.global_step
        if step % self._settings.every and step % self._save_every and step < state.max_steps:
            return
        model = kwargs["model"]
        evaluation = self.evaluated(model, state)
        if evaluation["retain"] < self._floor:
            self.ended = "budget"
        else:
            self._keep(model, step)
            if self._goal is not None and evaluation["forget"] <= self._goal:
                self.ended = "goal"
        if self.ended != "steps":
            self.end(control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the kept weights if the training ended over the budget."""
        if self.ended == "budget":
            with torch.no_grad():
                for parameter, values in self._kept:
                    parameter.copy_(values)
        self._kept.clear()

    def _keep(self, model: Any, step: int) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._kept = [(parameter, parameter.detach().clone()) for parameter in trained]
        self.kept_step = step
