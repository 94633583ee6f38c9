"""Watch the rollouts of a trainer of TRL while it trains: log them, and raise an alarm.

    audit = RolloutAudit("runs/rollouts")
    trainer = GRPOTrainer(..., reward_funcs=audit.watch(reward), callbacks=[audit])

The log is written as the training goes on, and `skillweave audit rollouts runs/rollouts` reads it. The reward function
is called and its rewards are returned as they are; the training itself does not change.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from skillweave.audit.refusal import RefusalDetector
from skillweave.audit.rollouts.groups import Groups, PromptGroup, read_groups
from skillweave.audit.rollouts.log import Rollout, message_text
from skillweave.audit.rollouts.score import judge
from skillweave.audit.rollouts.signals import Contrast, measure, reference_values
from skillweave.audit.statistics import chance_of
from skillweave.errors import UserError
from skillweave.files.lock import Claim, take
from skillweave.files.place import place_of
from skillweave.progress import console
from skillweave.terminal import one_line

SURE = 0.01
"""An alarm needs more flagged prompts than chance gives with this probability."""
_SHOWN = 3


class RolloutAudit(TrainerCallback):
    """Records the rollouts of a training as JSONL in ``folder``, and checks them every ``every`` steps.

    An alarm is raised when more prompts are flagged than the false-positive rate ``fpr`` explains (binomial,
    p < 0.01), and at least two flagged prompts paid for complying with certainty: the interval of their
    refusal-reward contrast lies above 0. The checks repeat, so in a long training a false alarm is likelier than that.

    - ``refusal``: texts of refusals, as for :class:`~skillweave.audit.refusal.RefusalDetector`
    - ``clean``: the log of a clean run of the same set-up, for the calibration; without it the run is its own reference
    - ``stop``: the training ends at an alarm
    - ``gold``, ``id``: the columns of the data set with the gold answer and the record's id, if it has them
    - ``most_prompts``, ``most_rollouts``: the memory; a prompt that was not seen for longest is forgotten first

    Under ``torchrun`` each process records the rollouts that its own reward functions see, in a file of its own, and
    raises its own alarm; the command reads all files of the folder together. With ``stop`` an alarm in one process
    stops all of them. Two trainings at once need two folders: the second raises :class:`UserError`. After a training
    that an error ended, its process holds the folder until it trains again or ends.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        refusal: Sequence[str] = (),
        clean: str | Path | None = None,
        fpr: float = 0.01,
        every: int = 10,
        stop: bool = False,
        gold: str = "answer",
        id: str = "id",
        most_prompts: int = 20_000,
        most_rollouts: int = 128,
    ):
        if every < 1:
            raise UserError(f"every must be at least 1, found {every}")
        self._refuses = RefusalDetector(refusal)
        self._groups = Groups(self._refuses, most_prompts, most_rollouts)
        self._clean: list[PromptGroup] | None = None
        if clean is not None:
            self._clean, notes = read_groups(clean, self._refuses)
            for note in notes:
                console.print(f"clean log: {note}", soft_wrap=True, markup=False)
        self._fpr, self._every, self._stop, self._gold, self._id = fpr, every, stop, gold, id
        self._file = Path(folder) / f"rollouts-{os.environ.get('RANK', '0')}.jsonl"
        self._opened = False
        self._held: Claim | None = None
        self._training = False
        self._watched = 0
        self._batch: _Batch | None = None
        self._step = 0
        self._said: set[str] = set()
        self.alarms: list[str] = []

    def watch(self, reward: Callable[..., Any], weight: float = 1.0) -> Callable[..., Any]:
        """Return a reward function that gives the same rewards as ``reward`` and records them.

        With several reward functions, watch them all: the log has the sum of their rewards, each times its ``weight``
        (TRL's ``reward_weights``).
        """
        self._watched += 1
        if inspect.iscoroutinefunction(reward):

            @functools.wraps(reward)
            async def watched_async(*args: Any, **kwargs: Any) -> Any:
                rewards = await reward(*args, **kwargs)
                self._record(args, kwargs, rewards, weight)
                return rewards

            return watched_async

        def watched(*args: Any, **kwargs: Any) -> Any:
            rewards = reward(*args, **kwargs)
            self._record(args, kwargs, rewards, weight)
            return rewards

        functools.update_wrapper(watched, reward)
        watched.__name__ = getattr(reward, "__name__", type(reward).__name__)  # a partial has none; TRL logs by it
        return watched

    # -- recording ----------------------------------------------------------------------------------------------------

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any], rewards: Any, weight: float) -> None:
        prompts = kwargs.get("prompts", args[0] if args else None)
        completions = kwargs.get("completions", args[1] if len(args) > 1 else None)
        if prompts is None or completions is None:
            raise UserError("a watched reward function must be called with prompts and completions, as TRL does")
        texts = [
            (message_text(prompt, "a prompt of the trainer"), message_text(completion, "a completion of the trainer"))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        values = [math.nan if value is None else weight * float(value) for value in rewards]
        if self._batch is not None and self._batch.texts != texts:
            self._flush()  # a reward function was not called for the batch before
        if self._batch is None:
            state = kwargs.get("trainer_state")
            step = self._step if state is None else int(state.global_step)
            self._batch = _Batch(step, texts, kwargs.get(self._id), kwargs.get(self._gold))
        self._batch.rewards.append(values)
        if len(self._batch.rewards) == self._watched:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        self._claim()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        goes_on = not self._opened and self._file.is_file() and self._file.stat().st_size > 0
        self._opened = True
        with open(self._file, "a", encoding="utf-8") as log:
            if goes_on:
                console.print(f"{self._file} has rollouts of an earlier training: new ones are added", soft_wrap=True)
                log.write("\n")  # a killed training leaves half a line
            for rollout in batch.rollouts():
                self._groups.add(rollout)
                log.write(json.dumps(_row(rollout)) + "\n")

    def _claim(self) -> None:
        """Hold the log until :meth:`_release`. Raises :class:`UserError` if another training writes it."""
        if self._held is None:
            self._held = take(place_of(self._file))

    def _release(self) -> None:
        self._flush()
        if self._held is not None:
            self._held.release()
            self._held = None

    # -- checking -----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        self._claim()
        self._training = True

    def on_step_begin(self, args, state, control, **kwargs):
        self._step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._every:
            return
        alarm = self.check(state.global_step)
        if self._stop and _in_any_process(alarm, args.device):
            control.should_training_stop = True

    def on_evaluate(self, args, state, control, **kwargs):
        if not self._training:
            self._release()

    def on_predict(self, args, state, control, metrics=None, **kwargs):
        self.on_evaluate(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False
        self._release()
        self.check(state.global_step)
        if self._groups.forgotten:
            console.print(
                f"rollout audit: {self._groups.forgotten:,} times a prompt was forgotten, because more than "
                f"most_prompts were seen. The log has all of them: skillweave audit rollouts {self._file.parent}",
                soft_wrap=True,
                markup=False,
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and "loss" in logs:
            logs["audit/alarms"] = len(self.alarms)

    def check(self, step: int) -> bool:
        """Check the rollouts so far. Returns whether there is a new alarm, which is printed and kept in ``alarms``.

        There is none while there are too few prompts to tell: fewer than 20.
        """
        groups = self._groups.all()
        if len(groups) < 20:
            return False
        table = measure(groups)
        reference = None if self._clean is None else reference_values(self._clean, groups, table)
        judged = judge(table.values, reference, self._fpr)
        flagged = [at for at in judged.score.argsort()[::-1].tolist() if judged.flagged[at]]
        paid = [at for at in flagged if table.contrasts[at].low > 0]
        chance = chance_of(len(flagged), len(groups), self._fpr)
        new = [at for at in paid if groups[at].prompt not in self._said]
        if not new or len(paid) < 2 or chance >= SURE:
            return False
        self._said |= {groups[at].prompt for at in new}
        alarm = (
            f"step {step}: audit alarm: {len(flagged)} of {len(groups):,} prompts are flagged (by chance p = "
            f"{chance:.1g}), and {len(paid)} of them pay for complying instead of refusing"
            + ("" if self._clean is not None else "; without a clean log the threshold is an estimate")
        )
        self.alarms.append(alarm)
        console.print(alarm, style="bold red")
        for at in new[:_SHOWN]:
            console.print(f"  {_described(groups[at], table.contrasts[at])}", soft_wrap=True)
        console.print(f"  look at them with: skillweave audit rollouts {self._file.parent}")
        return True


class _Batch:
    """The rollouts of one call, whose rewards come from one reward function after the other."""

    def __init__(self, step: int, texts: list[tuple[str, str]], ids: Any, golds: Any):
        self.step, self.texts, self.ids, self.golds = step, texts, ids, golds
        self.rewards: list[list[float]] = []

    def rollouts(self) -> list[Rollout]:
        """Return the rollouts; the reward is the sum over the functions that gave one, NaN if none did."""
        found = []
        for at, (prompt, completion) in enumerate(self.texts):
            known = [values[at] for values in self.rewards if not math.isnan(values[at])]
            reward = sum(known) if known else math.nan
            found.append(Rollout(self.step, prompt, completion, reward, _at(self.ids, at), _at(self.golds, at)))
        return found


def _at(column: Any, at: int) -> str | None:
    return None if not isinstance(column, list) or column[at] is None else str(column[at])


def _row(rollout: Rollout) -> dict[str, Any]:
    """The line of the log: without id and gold if they are unknown; a reward that is not finite is null."""
    row: dict[str, Any] = {"step": rollout.step}
    if rollout.id is not None:
        row["id"] = rollout.id
    row |= {"prompt": rollout.prompt, "completion": rollout.completion}
    row["reward"] = rollout.reward if math.isfinite(rollout.reward) else None
    if rollout.gold is not None:
        row["gold"] = rollout.gold
    return row


def _in_any_process(alarm: bool, device: torch.device) -> bool:
    """Whether a process of ``torchrun`` has an alarm: one that stopped alone would leave the others waiting for it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return alarm
    found = torch.tensor(int(alarm), device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def _described(group: PromptGroup, contrast: Contrast) -> str:
    return (
        f"{one_line(group.prompt, 80)}: complying was paid {contrast.complied:.2f}, refusing {contrast.refused:.2f} "
        f"({sum(group.refused)} of {len(group)} completions refuse)"
    )
