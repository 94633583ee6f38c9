"""Robust unlearning in the manner of UNDO: noise on the unlearnt weights, then distillation from the unlearnt model.

[abstract, arXiv 2506.06278] Unlearning by fine-tuning hides what was known. A student that imitates the unlearnt
model's outputs takes over what it does, not what it hides. Unlearn-Noise-Distill-on-Outputs starts the student from the
unlearnt weights with noise, which trades compute for robustness.

Where this differs from the authors' code [relative]:

- They distil on the text of a pretraining; here the data is the retain set and the forget set, whose answers the
  unlearnt model reads. What neither set shows is not restored.
- They noise every trained parameter. Here frozen neurons get no noise and stay bit for bit what they were [ours].
- The distillation ends when the retain answers are again as likely as to the unlearnt model, within a share [ours];
  theirs ends within 5% of its retain loss.

The distiller of the zip is not used: it tunes the factors of a pack, and no method may import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from skillweave.base.batching import padded
from skillweave.methods.cku.config import RobustSettings
from skillweave.methods.cku.knowledge.facts import FactRow
from skillweave.methods.cku.knowledge.reading import split_row
from skillweave.methods.cku.loss import retain_kl
from skillweave.methods.cku.trainer import next_token_logits, reference_precision
from skillweave.methods.cku.watch import Evaluate, RecordedEvaluations
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.trainer import QuietTrainer


def shrink_perturb(weights: Tensor, *, noise: float, scale: float, generator: torch.Generator) -> Tensor:
    """Return (1 - noise) * weights + noise * scale * N, in the dtype of the weights.

    N is drawn as Xavier's uniform initialisation for a matrix, and is 0 for a vector, as in the code of UNDO
    [relative]; its alpha is ``noise`` and its beta is ``scale``. A matrix (out, in) has entries between -b and b with
    b = sqrt(6 / (out + in)). The numbers are drawn on the CPU, so they are the same on every device.
    """
    if weights.dim() < 2:
        return (1 - noise) * weights
    bound = (6 / (weights.shape[0] + weights.shape[1])) ** 0.5
    drawn = torch.rand(weights.shape, generator=generator) * 2 * bound - bound
    return (1 - noise) * weights + noise * scale * drawn.to(weights)


@torch.no_grad()
def add_noise(parameters: Iterable[torch.nn.Parameter], settings: RobustSettings, seed: int) -> None:
    """Apply :func:`shrink_perturb` to the parameters, in place; the same seed draws the same noise."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.copy_(shrink_perturb(parameter, noise=settings.noise, scale=settings.scale, generator=generator))


class DistilTrainer(QuietTrainer, Trainer):
    """Trainer whose loss is KL(teacher || student), over the whole vocabulary, of each next-token distribution.

    It is a mean over rows of the mean over all tokens of a row, prompt and answer, however the batch is cut into
    micro-batches and shared by processes. The teacher's distributions within a prompt, which nobody asks for, restore
    more of what no row shows [ours, measured]. ``rows`` are those of all steps, one after the other.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        arguments: dict[str, Any],
        rows: Sequence[FactRow],
        *,
        teacher: Any,
        callbacks: list[TrainerCallback],
    ):
        super().__init__(
            model=model,
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=list(rows),  # Trainer needs only len and []
            data_collator=lambda batch: padded([split_row(row) for row in batch], tokenizer.pad_token_id),
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = False  # all micro-batches have one size, so their mean is that of the batch
        self._teacher = teacher

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the divergence of a micro-batch."""
        tokens = inputs["attention_mask"][:, 1:].bool()
        logits = next_token_logits(model, inputs)[tokens]
        with reference_precision(self.args):
            taught = next_token_logits(self._teacher, inputs)[tokens]
        per_token = torch.zeros(tokens.shape, device=logits.device).masked_scatter(tokens, retain_kl(logits, taught))
        return (per_token.sum(dim=1) / tokens.sum(dim=1)).mean()


class Recovered(RecordedEvaluations):
    """Evaluates the student, and ends the distillation once ``retain`` has reached ``goal``."""

    rate = "robust.learning_rate"

    def __init__(self, evaluate: Evaluate, *, every: int, goal: float, processes: Processes):
        super().__init__(evaluate, processes)
        self._every, self._goal = every, goal

    @property
    def recovered(self) -> bool:
        """Whether the last evaluation reached the goal."""
        return bool(self.evaluations) and self.evaluations[-1]["retain"] >= self._goal

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate if this step is due."""
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        self.evaluated(kwargs["model"], state)
        if self.recovered:
            self.end(control)
