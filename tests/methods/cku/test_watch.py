"""The watch ends a training at the goal or before the budget is exceeded, and a resumed training knows both."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from helpers.micro import micro_model, micro_tokenizer
from helpers.tiny import cpu_arguments
from helpers.unlearning import reference_model, rows_of
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku.config import ForgetSettings, WatchSettings
from skillweave.methods.cku.trainer import UnlearnTrainer
from skillweave.methods.cku.watch import Watch
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import TrainingSettings
from skillweave.methods.training.trainer import fit, latest_checkpoint

NAN = float("nan")


class Played:
    """A training in which only the watch is real: every step moves the model, and the evaluations are prescribed."""

    def __init__(
        self,
        evaluations: dict[int, tuple[float, float]],
        steps: int,
        *,
        every=1,
        save_every=100,
        start=0.8,
        budget: float | None = 0.1,
        goal: float | None = None,
        log=None,
        at: int = 0,
    ):
        self.model = torch.nn.Linear(2, 2)
        self.model.bias.requires_grad_(False)
        self.state = TrainerState(global_step=at, max_steps=steps, log_history=log or [])
        self.evaluated: list[int] = []
        self.weights, self.saved = {at: self._now()}, []

        def evaluate(model):
            self.evaluated.append(self.state.global_step)
            forget, retain = evaluations.get(self.state.global_step, (1.0, 0.8))
            return {"forget": forget, "retain": retain}

        self.watch = Watch(
            evaluate,
            WatchSettings(every=every, budget=budget),
            start=start,
            goal=goal,
            save_every=save_every,
            processes=Processes(),
        )
        self.watch.on_train_begin(None, self.state, None, model=self.model)
        while self.state.global_step < steps:
            self.state.global_step += 1
            with torch.no_grad():
                self.model.weight.add_(1.0)
            self.weights[self.state.global_step] = self._now()
            last = self.state.global_step == steps
            control = TrainerControl(should_save=last or self.state.global_step % save_every == 0)
            self.watch.on_step_end(None, self.state, control, model=self.model)
            if control.should_save:
                self.saved.append(self.state.global_step)
            if control.should_training_stop:
                break
        self.watch.on_train_end(None, self.state, None, model=self.model)

    def _now(self) -> torch.Tensor:
        return self.model.weight.detach().clone()

    @property
    def ended(self) -> tuple[str, int, int]:
        """Why, at which step, and whose weights are left."""
        left = [step for step, weight in self.weights.items() if torch.equal(weight, self.model.weight)]
        assert left == [self.watch.kept_step]
        return self.watch.ended, self.state.global_step, self.watch.kept_step


def test_over_the_budget_it_goes_back_to_the_last_evaluation_within_it():
    # 0.8 may lose a tenth: 0.72 is within, anything less is not; what was within once may come again.
    assert Played({2: (1.0, 0.73), 3: (1.0, 0.719)}, 6).ended == ("budget", 3, 2)
    assert Played({4: (0.0, 0.7)}, 9, every=2).ended == ("budget", 4, 2)
    assert Played({1: (0.0, 0.0)}, 9).ended == ("budget", 1, 0)
    assert Played({6: (0.5, 0.1)}, 6).ended == ("budget", 6, 5)
    assert Played({3: (1.0, 0.8 * 0.9)}, 5).ended == ("steps", 5, 5)


@pytest.mark.parametrize("budget", [0.1, None])
def test_a_model_that_outputs_nan_is_an_error(budget):
    with pytest.raises(UserError, match=r"outputs NaN at step 3: lower training\.learning_rate"):
        Played({3: (NAN, NAN)}, 5, budget=budget)


def test_the_goal_ends_it_there():
    assert Played({3: (0.2, 0.8)}, 6, goal=0.2).ended == ("goal", 3, 3)
    assert Played({3: (0.21, 0.8)}, 6, goal=0.2).ended == ("steps", 6, 6)
    assert Played({3: (0.0, 0.1)}, 6, goal=0.2).ended == ("budget", 3, 2)  # reached at too high a price
    assert Played({3: (0.0, 0.1)}, 6, goal=0.2, budget=None).ended == ("goal", 3, 3)
    assert Played({3: (NAN, 0.8)}, 4, goal=0.2).ended == ("steps", 4, 4)
    assert Played({3: (0.0, 0.8)}, 4).ended == ("steps", 4, 4)


def test_it_evaluates_every_so_often_at_every_checkpoint_and_at_the_end():
    assert Played({}, 11, every=4, save_every=3).evaluated == [3, 4, 6, 8, 9, 11]
    assert Played({}, 5, every=10).evaluated == [5]


def test_no_checkpoint_is_written_of_what_is_over_the_budget_or_at_the_goal():
    """A training resumed from the goal would train past it."""
    assert Played({6: (1.0, 0.1)}, 12, every=4, save_every=3).saved == [3]
    assert Played({6: (0.0, 0.8)}, 12, every=4, save_every=3, goal=0.1).saved == [3]
    assert Played({12: (0.0, 0.1)}, 12, every=4, save_every=5).saved == [5, 10]
    assert Played({}, 12, every=4, save_every=5).saved == [5, 10, 12]


def test_a_resumed_training_knows_the_evaluations_and_may_go_back_to_where_it_resumed():
    first = Played({3: (0.9, 0.75)}, 4, every=3)
    assert [evaluation["step"] for evaluation in first.watch.evaluations] == [3, 4]
    again = Played({5: (0.5, 0.1)}, 6, log=first.state.log_history, at=4)
    assert again.ended == ("budget", 5, 4)
    assert again.watch.evaluations == [*first.watch.evaluations, {"step": 5, "forget": 0.5, "retain": 0.1}]


def test_nothing_is_held_after_the_end():
    assert not Played({}, 2).watch._kept


# -- in a real training ----------------------------------------------------------------------------------------------


def watched_training(folder, evaluations, *, steps=6, stop_after=None):
    """A real training of the micro model with prescribed evaluations: its trainer, watch, and weights by step."""
    rows = rows_of(2 * steps)
    settings = TrainingSettings(steps=steps, batch_size=2, learning_rate=1e-3, warmup=0.0)
    arguments = cpu_arguments(settings, folder, steps=steps, save_every=2)
    model, weights = micro_model(), {}

    def evaluate(model):
        step = trainer.state.global_step
        weights[step] = copy.deepcopy(model.state_dict())
        if step == stop_after:
            raise KeyboardInterrupt
        return dict(zip(("forget", "retain"), evaluations.get(step, (1.0, 0.8)), strict=True))

    budget = WatchSettings(every=1, budget=0.1)
    watch = Watch(evaluate, budget, start=0.8, goal=0.1, save_every=2, processes=Processes())
    trainer = UnlearnTrainer(
        model,
        micro_tokenizer(),
        arguments,
        rows,
        ForgetSettings(),
        reference_model=reference_model(),
        control=None,
        layer=0,
        callbacks=[watch],
    )
    return SimpleNamespace(
        fit=lambda: fit(trainer, "unlearn", Processes()), model=model, watch=watch, weights=weights, trainer=trainer
    )


def same(one, other) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_in_a_training_the_last_good_point_comes_back_bit_for_bit(tmp_path):
    run = watched_training(tmp_path, {4: (0.5, 0.1)})
    figures = run.fit()
    assert figures["steps"] == 4
    assert (run.watch.ended, run.watch.kept_step) == ("budget", 3)
    assert same(run.model.state_dict(), run.weights[3])
    assert not same(run.model.state_dict(), run.weights[4])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]  # 4 is over the budget
    log = read_json(tmp_path / "checkpoint-2" / "trainer_state.json")["log_history"]
    assert [entry["look"] for entry in log if "look" in entry] == run.watch.evaluations[:2]


@pytest.mark.parametrize("evaluations", [{5: (0.5, 0.1)}, {}])
def test_a_training_that_was_broken_off_ends_as_the_unbroken_one(tmp_path, evaluations):
    whole = watched_training(tmp_path / "whole", evaluations)
    figures = whole.fit()
    broken = watched_training(tmp_path / "broken", evaluations, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    assert latest_checkpoint(tmp_path / "broken").name == "checkpoint-2"
    again = watched_training(tmp_path / "broken", evaluations)
    assert again.fit() == figures
    assert again.watch.evaluations == whole.watch.evaluations
    assert (again.watch.ended, again.watch.kept_step) == (whole.watch.ended, whole.watch.kept_step)
    assert same(again.model.state_dict(), whole.model.state_dict())
    # And once more from a training that was done, but not put away.
    once_more = watched_training(tmp_path / "broken", evaluations)
    assert once_more.fit() == figures
    assert (once_more.watch.ended, once_more.watch.kept_step) == (whole.watch.ended, whole.watch.kept_step)
    assert same(once_more.model.state_dict(), whole.model.state_dict())
