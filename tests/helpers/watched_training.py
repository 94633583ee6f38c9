"""A training of TRL's GRPO that is watched, as a script for ``torchrun``: ``watched_training.py FOLDER ALARMED``.

The process ALARMED raises an alarm after step 2; the training would end after step 6. Each process writes the step at
which it stopped to ``FOLDER/stopped-RANK``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from helpers.micro import micro_model, micro_tokenizer
from skillweave.audit.rollouts.callback import RolloutAudit
from skillweave.methods.training.processes import leave
from skillweave.methods.training.trl_hooks import GRPOConfig, GRPOTrainer


class Alarmed(RolloutAudit):
    """An audit that finds something at step 2, whatever the rollouts are."""

    def check(self, step: int) -> bool:
        super().check(step)
        return step == 2


def letters(completions, **_):
    return [float(sum(character.isalpha() for character in text)) for text in completions]


def short_run(folder: Path, **settings: Any) -> GRPOConfig:
    """The configuration of a short, silent run on the CPU with four completions for each prompt."""
    return GRPOConfig(
        output_dir=str(folder),
        num_generations=4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )


def main(folder: Path, alarmed: str) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    audit = (Alarmed if rank == alarmed else RolloutAudit)(folder / "log", every=1, stop=True)
    trainer = GRPOTrainer(
        model=micro_model(),
        reward_funcs=audit.watch(letters),
        args=short_run(folder / "run", max_steps=6, per_device_train_batch_size=4, max_completion_length=4),
        train_dataset=Dataset.from_dict({"prompt": [f"prompt {at}" for at in range(8)]}),
        processing_class=micro_tokenizer(),
        callbacks=[audit],
    )
    trainer.train()
    (folder / f"stopped-{rank}").write_text(str(trainer.state.global_step))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
