"""The trainer of E3-TIR: TRL's GRPO on groups that hold expert prefixes and the policy's own conversations.

TRL keeps the loop, the loss, the clipping and the normaliser (``dapo``: the mean over all tokens of a batch that are in
the loss). This trainer supplies:

* the conversations and their masks
* an advantage for each token, (B, T), which is 0 where no gradient may flow
* the ratio of an expert's tokens, which replaces pi / pi_old
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from skillweave.base.ends import stop_tokens
from skillweave.methods.e3tir.config import E3tirConfig, GroupSettings
from skillweave.methods.e3tir.group import Group, Member, detach_prefix
from skillweave.methods.e3tir.ratios import Kind, log_prefix_ratio
from skillweave.methods.e3tir.rollouts import Rollouts
from skillweave.methods.e3tir.watch import CUT_OFF, EQUAL, SAMPLED
from skillweave.methods.training.head import install_answer_head
from skillweave.methods.training.trainer import QuietTrainer
from skillweave.methods.training.trl_hooks import GRPOConfig, GRPOTrainer
from skillweave.tools.call import FAULTS


class AgentTrainer(QuietTrainer, GRPOTrainer):
    """A GRPOTrainer on the groups that ``rollouts`` makes.

    ``turns`` are the entries of all batches (:func:`~skillweave.methods.e3tir.rollouts.in_turn`). The trainer calls
    ``shown(groups, step)`` with each batch's groups of this process.
    """

    watched: Mapping[str, str] = {"agent/success": "success", "entropy": "entropy"}

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        arguments: dict[str, Any],
        turns: Sequence[str],
        rollouts: Rollouts,
        config: E3tirConfig,
        stage: GroupSettings,
        *,
        shown: Callable[[list[Group], int], None],
        callbacks: list[TrainerCallback],
    ) -> None:
        pieces = arguments["gradient_accumulation_steps"] * stage.updates
        super().__init__(
            model=model,
            reward_funcs=[_reward],
            args=GRPOConfig(
                **arguments,
                num_generations=stage.size,
                steps_per_generation=pieces,
                shuffle_dataset=False,
                loss_type="dapo",
                beta=0.0,
                epsilon=config.clip,
                temperature=config.rollout.temperature,
                max_completion_length=config.rollout.max_tokens,
                log_completions=False,
            ),
            train_dataset=Dataset.from_dict({"prompt": list(turns)}),  # TRL passes it to `_roll_out`
            processing_class=tokenizer,
            rollout_func=lambda prompts, _: self._roll_out(prompts),
            callbacks=callbacks,
        )
        self.eos_token_ids = stop_tokens(model, tokenizer)  # TRL counts a conversation with another end as cut off
        install_answer_head(model, config.rollout.temperature)
        self._rollouts, self._config, self._stage, self._shown = rollouts, config, stage, shown
        self._pad = tokenizer.pad_token_id
        # The micro-batch whose loss is being computed. It bridges two hooks: TRL's `_compute_loss` has the inputs and
        # calls `_get_per_token_logps_and_entropies`, which needs their prefix mask, without passing them on.
        self._loss_inputs: dict[str, Any] | None = None

    # -- a batch of rollouts -----------------------------------------------------------------------------------------

    def _roll_out(self, prompts: list[str]) -> dict[str, Any]:
        """TRL's ``rollout_func``: ``prompts`` holds each turn once for every member of its group.

        TRL adds the column ``member`` to the batch's ``inputs``, a member or None for each row; the reward function
        and :meth:`_generate_and_score_completions` read it there.
        """
        size, step = self._stage.size, self.state.global_step
        model = self.accelerator.unwrap_model(self.model)
        groups = self._rollouts.groups(prompts[::size], model, self.accelerator.autocast, step)
        self._shown(groups, step)
        self._log_groups(groups)
        columns: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "env_mask": [], "member": []}
        for group in groups:
            columns["prompt_ids"] += [group.members[0].episode.prompt] * size
            # A free place in the group counts for nothing: it has one token, which is not in the loss.
            for member in [*group.members, *[None] * (size - len(group.members))]:
                columns["completion_ids"].append(member.episode.ids if member else [self._pad])
                columns["env_mask"].append(member.loss_mask if member else [0])
                columns["member"].append(member)
        return {**columns, "logprobs": None}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with our advantages, (B, T), and the mask of expert prefixes if there are any."""
        batch = super()._generate_and_score_completions(inputs)
        members: list[Member | None] = [row["member"] for row in inputs]
        advantages = torch.tensor([member.advantage if member else 0.0 for member in members])
        prefix = torch.zeros(batch["completion_ids"].shape, dtype=torch.bool)
        for row, member in enumerate(members):
            if member is not None and member.prefix:
                mask = member.prefix_mask
                prefix[row, : len(mask)] = torch.tensor(mask)
        weights = detach_prefix(prefix, advantages) if self._config.expert.detach else torch.ones(prefix.shape)
        for row, member in enumerate(members):
            if member is not None:
                weights[row, list(member.silent)] = 0.0
        batch["advantages"] = (advantages[:, None] * weights).to(self.accelerator.device)
        if prefix.any():
            batch["prefix_mask"] = prefix.to(self.accelerator.device)
        return batch

    # -- the loss ----------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss, in which the ratio of an expert's tokens replaces pi / pi_old."""
        if "prefix_mask" not in inputs:
            return super()._compute_loss(model, inputs)
        self._loss_inputs = inputs = dict(inputs)  # a copy: the changes below are for this step only
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, Any]:
        """TRL's log-probabilities, changed for an expert's tokens if the loss is being computed.

        For these tokens the new log-probability is replaced by the log of our ratio and the old one by 0, so that the
        ratio that TRL computes from the two is ours.
        """
        logps, entropies, aux = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        inputs = self._loss_inputs
        if inputs is not None:
            prefix = inputs["prefix_mask"]
            old = inputs.get("old_per_token_logps")
            old = logps.detach() if old is None else old
            inputs["old_per_token_logps"] = old.masked_fill(prefix, 0.0)
            logps = torch.where(prefix, log_prefix_ratio(logps, old, kind=self._kind), logps)
        return logps, entropies, aux

    @property
    def _kind(self) -> Kind:
        return "on_policy" if self._config.expert.mixing == "sum" else self._config.expert.ratio

    # -- what is logged ----------------------------------------------------------------------------------------------

    def _log_groups(self, groups: Sequence[Group]) -> None:
        """Log the figures of this batch that TRL does not log."""
        for group in groups:
            own, branches = group.pool(False), group.pool(True)
            self._log_metric("agent/success", _mean([member.score for member in own]))
            for member in own:
                for part, value in member.parts.items():
                    self._log_metric(f"reward/{part}", value)
                self._log_metric("agent/calls", float(member.episode.calls))
                self._log_metric("agent/failed_calls", float(member.episode.failures))
                self._log_metric("agent/answered", float(member.episode.answer is not None))
                self._log_metric(CUT_OFF, float(member.episode.ended == "length"))
                outcomes = member.episode.outcomes
                for fault in FAULTS:
                    self._log_metric(f"tools/{fault}", float(sum(outcome.fault == fault for outcome in outcomes)))
                self._log_metric("tools/seconds", sum(outcome.seconds for outcome in outcomes))
            if branches:
                self._log_metric("experts/success", _mean([member.score for member in branches]))
                self._log_metric("experts/joined", float(branches[0].joined))
            self._log_metric(EQUAL, float(all(member.advantage == 0 for member in group.members if member.joined)))
            self._log_metric(SAMPLED, float(sum(member.sampled for member in group.members)))
        self._log_metric("tools/left_behind", float(self._rollouts.left_behind))
        counted = [member for group in groups for member in group.members if member.joined]
        detached = [member for member in counted if self._config.expert.detach and member.advantage < 0]
        counts = {
            "tokens": sum(sum(member.prefix_mask) for member in counted),
            "branch_tokens": sum(member.sampled for member in counted if member.branch),
            "detached_tokens": sum(sum(member.prefix_mask) for member in detached),
        }
        # Each share is of the tokens of all processes; the mean of the processes' shares would be another number.
        sums = torch.tensor([*counts.values(), sum(sum(member.loss_mask) for member in counted)])
        *parts, tokens = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum").tolist()
        for name, count in zip(counts, parts, strict=True):
            self._log_metric(f"experts/{name}", _share(count, tokens))


def _reward(prompts: Any, completions: Any, member: Sequence[Member | None], **others: Any) -> list[float | None]:
    """The rewards, which TRL only logs (the advantages are ours); None for a row that does not count."""
    return [one.reward if one is not None and one.joined else None for one in member]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0
