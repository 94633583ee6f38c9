"""The training of one round, on transformers' Trainer: the players' log-probabilities stand in the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from skillweave.base.batching import padded
from skillweave.methods.tpaw import loss as losses
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.training.head import answer_log_probs, install_scoring_head
from skillweave.methods.training.trainer import QuietTrainer

_BF16_ROUNDING = 0.1  # nats: by so much two computations of one answer's log-probability differ, padding being unlike

Objective = Callable[[Tensor, Tensor], tuple[Tensor, losses.Statistics]]
"""(policy's log-probabilities (S, B) of each side, players' (P, 2, B)) -> loss (B,), statistics."""


def objective(config: TpawConfig) -> Objective:
    """The chosen loss on the sides of a batch: target, generated and, for ``tspin``, the first player's answer."""

    def of_batch(policy: Tensor, players: Tensor) -> tuple[Tensor, losses.Statistics]:
        four = policy[0], policy[1], players[:, 0], players[:, 1]
        if config.loss == "team":
            tolerance = _BF16_ROUNDING if config.autocast else 0.0
            return losses.team_loss(*four, lam=config.lam, eta=config.eta, gamma=config.gamma, tolerance=tolerance)
        if config.loss == "tspin":
            return losses.tspin_loss(*four, lam=config.lam, policy_first=policy[2])
        return (losses.dpo_loss if config.loss == "dpo" else losses.spin_loss)(*four, lam=config.lam)

    return of_batch


class TeamTrainer(QuietTrainer, Trainer):
    """Trainer on rows with ``prompt``, ``sides`` (token ids of the target, the generation, perhaps the first answer)
    and ``players`` (for each player the log-probabilities of target and generation, nats).

    The loss is the mean over pairs. All sides of a micro-batch go through the model in one forward.
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
        self, model: Any, tokenizer: Any, arguments: dict[str, Any], rows: Sequence[dict], order: list[int],
        loss: Objective,
    ):  # fmt: skip
        install_scoring_head(model)
        super().__init__(
            model=model,
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=[rows[index] for index in order],  # all it needs is len and []
            data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
        )
        self.loss_is_scaled_for_ga = False  # ours is a mean over a micro-batch, and all are of one size
        self._loss = loss
        self._seen: list[Tensor] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of the pairs of a micro-batch; what it shows is kept for the next :meth:`log`."""
        players = inputs.pop("players")
        policy = answer_log_probs(model, inputs).view(-1, players.shape[2])
        loss, statistics = self._loss(policy, players)
        shown = {
            "logps/target": policy[0],
            "logps/generated": policy[1],
            "padding": 1 - inputs["attention_mask"].float(),
            **summary(statistics),
        }
        self._seen.append(torch.stack([shown[key].detach().float().mean() for key in self.watched]))
        return loss.mean()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log, over all processes."""
        if self._seen:
            means = self.accelerator.reduce(torch.stack(self._seen).mean(dim=0), reduction="mean")
            logs.update(zip(self.watched, means.tolist(), strict=True))
            self._seen.clear()
        super().log(logs, start_time)


def summary(statistics: losses.Statistics) -> dict[str, Tensor]:
    """What is logged of a loss's statistics, by its key in the log; tensors whose mean is to be taken.

    The rewards are those against the first player, the newest, so that losses with one player and with several can be
    held beside each other; ``team_margins`` is the mean over all. Where a loss has no weights, alpha counts as 1 and
    beta as equal. The entropy of beta is in nats: 0 where one player has all the weight, log P where all have the same.
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


def collate(batch: Sequence[dict], pad: int) -> dict[str, Tensor]:
    """All targets, then all generations, then all first answers: (S * B, T); and ``players`` (P, 2, B) float32."""
    sides = [(row["prompt"], answer) for side in zip(*(row["sides"] for row in batch), strict=True)
             for row, answer in zip(batch, side, strict=True)]  # fmt: skip
    players = torch.tensor([row["players"] for row in batch], dtype=torch.float32).permute(1, 2, 0)
    return {**padded(sides, pad), "players": players}
