"""The training of one round with transformers' Trainer; the players' log-probabilities are part of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from skillweave.base.batching import padded
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.loss import LossStatistics, dpo_loss, spin_loss, team_loss, tspin_loss
from skillweave.methods.tpaw.rows import TrainingRow
from skillweave.methods.training.head import answer_log_probs, install_scoring_head
from skillweave.methods.training.trainer import QuietTrainer

_BF16_ROUNDING = 0.1
"""Nats by which two bfloat16 computations of one answer's log-probability differ if their padding differs."""

Objective = Callable[[Tensor, Tensor], tuple[Tensor, LossStatistics]]
"""(policy's log-probabilities of each answer (A, B), players' of target and generation (P, 2, B)) -> loss (B,) and
statistics. A is 2, or 3 for ``tspin``."""


def objective(config: TpawConfig) -> Objective:
    """The loss that the settings name, as a function of a batch."""

    def loss_of_batch(policy: Tensor, players: Tensor) -> tuple[Tensor, LossStatistics]:
        four = policy[0], policy[1], players[:, 0], players[:, 1]
        if config.loss == "team":
            tolerance = _BF16_ROUNDING if config.autocast else 0.0
            return team_loss(*four, lam=config.lam, eta=config.eta, gamma=config.gamma, tolerance=tolerance)
        if config.loss == "tspin":
            return tspin_loss(*four, lam=config.lam, policy_first=policy[2])
        if config.loss == "dpo":
            return dpo_loss(*four, lam=config.lam)
        return spin_loss(*four, lam=config.lam)

    return loss_of_batch


class TeamTrainer(QuietTrainer, Trainer):
    """Trainer on rows of :class:`~skillweave.methods.tpaw.rows.TrainingRow`.

    The loss is the mean over pairs. All answers of a micro-batch go through the model in one forward pass. ``order``
    has the indices of the rows of all steps, one step after the other.
    """

    watched: Mapping[str, str] = {
        "rewards/target": "target_reward",
        "rewards/generated": "generated_reward",
        "rewards/margins": "margin",
        "rewards/accuracies": "accuracy",
        "rewards/team_margins": "team_margin",
        "logps/target": "target_log_prob",
        "logps/generated": "generated_log_prob",
        "weights/alpha_raised": "alpha_raised",
        "weights/beta_newest": "beta_newest",
        "weights/beta_entropy": "beta_entropy",
        "padding": "padding",
    }

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        arguments: dict[str, Any],
        rows: Sequence[TrainingRow],
        order: list[int],
        loss: Objective,
    ):
        install_scoring_head(model)
        super().__init__(
            model=model,
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=[rows[index] for index in order],  # a list has all that the trainer needs: len and []
            data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
        )
        self.loss_is_scaled_for_ga = False  # our loss is a mean over a micro-batch, and all micro-batches are equal
        self._loss = loss
        self._unlogged: list[Tensor] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of the pairs of a micro-batch. Its statistics are stored for the next :meth:`log`."""
        players = inputs.pop("player_log_probs")
        policy = answer_log_probs(model, inputs).view(-1, players.shape[2])
        loss, statistics = self._loss(policy, players)
        values = {
            "logps/target": policy[0],
            "logps/generated": policy[1],
            "padding": 1 - inputs["attention_mask"].float(),
            **summary(statistics),
        }
        self._unlogged.append(torch.stack([values[key].detach().float().mean() for key in self.watched]))
        return loss.mean()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as usual, with the means of the statistics since the last log, over all processes."""
        if self._unlogged:
            means = self.accelerator.reduce(torch.stack(self._unlogged).mean(dim=0), reduction="mean")
            logs.update(zip(self.watched, means.tolist(), strict=True))
            self._unlogged.clear()
        super().log(logs, start_time)


def summary(statistics: LossStatistics) -> dict[str, Tensor]:
    """Log key -> the values whose mean is logged under it.

    - The rewards are those against the first player, the newest one, so that losses with one player and with several
      can be compared. ``team_margins`` is the mean over all players.
    - For a loss without weights, alpha counts as 1, and beta as equal for all players.
    - The entropy of beta is in nats: 0 if one player has all the weight, log P if all P players have the same weight.
    """
    target, generated = statistics["target_reward"], statistics["generated_reward"]
    alpha = statistics.get("alpha", torch.ones_like(target))
    beta = statistics.get("beta", torch.full_like(target, 1 / len(target)))
    return {
        "rewards/target": target[0],
        "rewards/generated": generated[0],
        "rewards/margins": target[0] - generated[0],
        "rewards/accuracies": (target[0] > generated[0]).float(),
        "rewards/team_margins": target - generated,
        "weights/alpha_raised": (alpha != 1).float(),
        "weights/beta_newest": beta[0],
        "weights/beta_entropy": torch.special.entr(beta).sum(dim=0),
    }


def collate(batch: Sequence[TrainingRow], pad: int) -> dict[str, Tensor]:
    """A batch of B rows as tensors.

    - ``input_ids``, ``attention_mask``, ``labels``: (A * B, T) int64: all targets, then all generations, then all
      first answers. A is the number of answers per row.
    - ``player_log_probs``: (P, 2, B) float32, in nats.
    """
    kinds = range(len(batch[0].answers))
    answers = [(row.prompt, row.answers[kind]) for kind in kinds for row in batch]
    players = torch.tensor([row.player_log_probs for row in batch], dtype=torch.float32).permute(1, 2, 0)
    return {**padded(answers, pad), "player_log_probs": players}
