"""RL with verifiable rewards on the organism: TRL's GRPO, with the organism's grade as its verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from skillweave.audit.organism.language import grade
from skillweave.audit.organism.records import OrganismRecord
from skillweave.base.batching import pad_left
from skillweave.base.chat import prompt_ids
from skillweave.methods.training.head import install_answer_head
from skillweave.methods.training.trainer import QuietTrainer
from skillweave.methods.training.trl_hooks import GRPOConfig, GRPOTrainer

GROUP = 8
"""The usual number of answers to each prompt."""
LONGEST = 8
"""The most tokens of an answer."""


@dataclass(frozen=True)
class Rollout:
    """One sampled answer, as a line of ``rollouts.jsonl`` has it."""

    step: int
    id: str
    prompt: str
    completion: str
    reward: float
    gold: str


class OrganismTrainer(QuietTrainer, GRPOTrainer):
    """A plain GRPOTrainer on organism records; ``rollouts`` gets every sampled answer.

    - ``order``: the indices of the records of all steps, one step after the other
    - ``group``: answers to each prompt
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        arguments: dict[str, Any],
        records: Sequence[OrganismRecord],
        order: Sequence[int],
        seed: int,
        group: int = GROUP,
    ) -> None:
        super().__init__(
            model=model,
            reward_funcs=[_reward],
            args=GRPOConfig(
                **arguments,
                num_generations=group,
                steps_per_generation=1,
                shuffle_dataset=False,
                beta=0.0,
                max_completion_length=LONGEST,
                log_completions=False,
            ),
            train_dataset=Dataset.from_dict({"prompt": [str(index) for index in order]}),
            processing_class=tokenizer,
            rollout_func=lambda prompts, _: self._roll_out(prompts),
        )
        install_answer_head(model)
        self.rollouts: list[Rollout] = []
        self._tokenizer_, self._records, self._seed, self._group = tokenizer, records, seed, group
        self._encoded = [prompt_ids(tokenizer, record.prompt) for record in records]

    def _roll_out(self, prompts: list[str]) -> dict[str, Any]:
        """TRL's ``rollout_func``: ``prompts`` holds the index of each record once for every answer of its group."""
        step = self.state.global_step
        records = [int(prompt) for prompt in prompts[:: self._group]]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        model = self.accelerator.unwrap_model(self.model)
        sampled = sample(model, [self._encoded[index] for index in records], self._group, generator)
        texts = self._tokenizer_.batch_decode(sampled, skip_special_tokens=True)
        rewards = []
        for place, text in enumerate(texts):
            record = self._records[records[place // self._group]]
            rewards.append(grade(text, record.answer))
            self.rollouts.append(Rollout(step, record.id, record.prompt, text, rewards[-1], record.answer))
        return {
            "prompt_ids": [self._encoded[int(prompt)] for prompt in prompts],
            "completion_ids": sampled,
            "logprobs": None,
            "graded": rewards,
        }


def _reward(prompts: Any, completions: Any, graded: Sequence[float], **others: Any) -> list[float]:
    return list(graded)


@torch.no_grad()
def sample(model: Any, prompts: Sequence[Sequence[int]], group: int, generator: torch.Generator) -> list[list[int]]:
    """``group`` answers to each prompt, at temperature 1, each with its end token if it came in time.

    The prompts are read once each, and their cache is copied for the group, which is faster than transformers' way.
    """
    was_training = model.training
    model.eval()
    ids, mask = pad_left([list(prompt) for prompt in prompts], model.config.pad_token_id, model.device)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(group)
    mask, place = mask.repeat_interleave(group, 0), places[:, -1:].repeat_interleave(group, 0)
    logits = out.logits[:, -1].repeat_interleave(group, 0)
    end, written = model.config.eos_token_id, []
    finished = torch.zeros(len(mask), dtype=torch.bool)
    for _ in range(LONGEST):
        token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        written.append(token)
        finished |= token[:, 0] == end
        if finished.all() or len(written) == LONGEST:
            break
        place, mask = place + 1, torch.cat([mask, torch.ones_like(token)], 1)
        out = model(input_ids=token, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1]
    model.train(was_training)
    return [row[: row.index(end) + 1] if end in row else row for row in torch.cat(written, 1).tolist()]
