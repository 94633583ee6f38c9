"""The training that forgets, on transformers' Trainer: a forget term and a retain term."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from skillweave.base.batching import padded
from skillweave.methods.cku.agreement import Change, TwoGradients
from skillweave.methods.cku.config import ForgetSettings
from skillweave.methods.cku.knowledge.facts import FactRow
from skillweave.methods.cku.knowledge.reading import answer_batch, split_row
from skillweave.methods.cku.loss import (
    gradient_ascent_loss,
    npo_loss,
    retain_cross_entropy,
    retain_kl,
    simnpo_loss,
    steering_loss,
)
from skillweave.methods.training.head import install_scoring_head
from skillweave.methods.training.trainer import QuietTrainer


class UnlearnTrainer(QuietTrainer, Trainer):
    """Trainer whose loss is forget term + mu * retain term.

    Each term is a mean over the rows, or over the tokens, of a whole batch, however the batch is cut into micro-batches
    and shared by processes. A row holds:

    - ``forget`` and ``retain``: each a :data:`FactRow`
    - ``reference``: log-probability (nats) of the forget answer, without its end token, under the reference model
    """

    watched: Mapping[str, str] = {"forget/loss": "forget_loss", "retain/loss": "retain_loss"}

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        arguments: dict[str, Any],
        rows: Sequence[dict[str, Any]],
        settings: ForgetSettings,
        *,
        reference_model: Any,
        control: Tensor | None,
        layer: int,
        callbacks: list[TrainerCallback],
        collapse: Change | None = None,
    ):
        """``reference_model``: a frozen copy of the model before the training, or None if no term needs it.
        ``control`` (H,): the vector to which ``rmu`` steers the output of layer ``layer``; None for other losses.
        ``collapse``: what is done to the forget gradient of a batch before it is followed."""
        install_scoring_head(model)
        # What lies above the layer that rmu steers has no gradient.
        arguments = {**arguments, "ddp_find_unused_parameters": settings.loss == "rmu"}
        args = TrainingArguments(**arguments, remove_unused_columns=False)
        batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        super().__init__(
            model=model,
            args=args,
            train_dataset=with_shares(rows, settings, batch_size),  # Trainer needs only len and []
            data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = False  # all micro-batches have one size, so their mean is that of the batch
        self._settings, self._reference_model, self._layer = settings, reference_model, layer
        self._control: Any = control
        self._cap = settings.cap or math.log(model.config.get_text_config().vocab_size)
        apart = settings.agrees or collapse is not None
        self._gradients = TwoGradients(agree=settings.agrees, collapse=collapse) if apart else None
        self._of_step: dict[str, float] = {}
        if settings.agrees:
            self.watched = {**self.watched, "gradients/agree": "agreement"}
        if collapse is not None:
            self.watched = {**self.watched, "gradients/specific": "specific"}
        self._terms: list[Tensor] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return forget + mu * retain of a micro-batch, and record both terms for the next :meth:`log`."""
        forget, retain = self._forget_term(model, inputs), self._retain_term(model, inputs)
        self._record(forget, retain)
        return forget + self._settings.mu * retain

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The step of transformers; with sign agreement or a collapse the two terms are differentiated apart."""
        if self._gradients is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        pieces = self.current_gradient_accumulation_steps
        with self.accelerator.no_sync(model):  # the signs of the whole batch count: processes meet in `merge`
            forget = self._forget_term(model, inputs)
            self.accelerator.backward(forget / pieces)
            self._gradients.take_forget(parameters)
            retain = self._retain_term(model, inputs)
            if retain.requires_grad:
                self.accelerator.backward(self._settings.mu * retain / pieces)
            self._gradients.take_retain(parameters)
        self._record(forget, retain)
        if self.accelerator.sync_gradients:
            self._of_step = self._gradients.merge(
                parameters, lambda grad: self.accelerator.reduce(grad, reduction="mean")
            )
        return ((forget + self._settings.mu * retain) / pieces).detach()

    # -- the two terms -----------------------------------------------------------------------------------------------

    def _forget_term(self, model: Any, inputs: Any) -> Tensor:
        settings, rows = self._settings, inputs["forget"]
        if settings.loss == "rmu":
            hidden, mask = self._hidden(model, rows)
            return steering_loss(hidden, self._control, mask) * inputs["forget_share"].mean()
        log_probs, mask = _answer_log_probs(model, rows)
        if settings.loss == "ga":
            return gradient_ascent_loss(log_probs, mask, cap=self._cap).mean()
        log_prob, lengths = (log_probs * mask).sum(dim=1), mask.sum(dim=1)
        if settings.loss == "npo":
            return npo_loss(log_prob, inputs["reference"], beta=settings.beta).mean()
        return simnpo_loss(log_prob, lengths, beta=settings.beta, delta=settings.margin).mean()

    def _retain_term(self, model: Any, inputs: Any) -> Tensor:
        term, rows, share = self._settings.retain_term, inputs["retain"], inputs["retain_share"].mean()
        if term == "none":
            return torch.zeros((), device=rows["labels"].device)
        if term == "hidden":
            hidden, mask = self._hidden(model, rows)
            with reference_precision(self.args):
                reference, _ = self._hidden(self._reference_model, rows)
            return steering_loss(hidden, reference, mask) * share
        if term == "ce":
            return retain_cross_entropy(*_answer_log_probs(model, rows)) * share
        labelled = rows["labels"][:, 1:] != -100
        logits = next_token_logits(model, rows)[labelled]
        with reference_precision(self.args):
            reference = next_token_logits(self._reference_model, rows)[labelled]
        return retain_kl(logits, reference).mean() * share

    def _hidden(self, model: Any, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The output of the steered layer, (N, T, H), and which tokens are not padding, (N, T) bool."""
        out = model(rows["input_ids"], attention_mask=rows["attention_mask"], output_hidden_states=True)
        return out.hidden_states[self._layer + 1], rows["attention_mask"].bool()

    # -- the log -----------------------------------------------------------------------------------------------------

    def _record(self, forget: Tensor, retain: Tensor) -> None:
        self._terms.append(torch.stack([forget.detach(), retain.detach()]).float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of both terms since the last log, over all processes, and the gradients' figures of the step."""
        if self._terms:
            means = self.accelerator.reduce(torch.stack(self._terms).mean(dim=0), reduction="mean")
            logs.update(zip(("forget/loss", "retain/loss"), means.tolist(), strict=True))
            logs.update({f"gradients/{name}": value for name, value in self._of_step.items()})
            self._terms.clear()
        super().log(logs, start_time)


def _answer_log_probs(model: Any, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the labelled tokens, (N, T - 1) float32, and where they are, (N, T - 1) bool."""
    out = model(**rows, fused_lm_head=True)
    return out.log_probs.float(), out.label_mask


@contextlib.contextmanager
def reference_precision(args: TrainingArguments) -> Iterator[None]:
    """A context without gradients, in the precision of the training: two equal models then give equal outputs."""
    with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        yield


def next_token_logits(model: Any, rows: dict[str, Tensor]) -> Tensor:
    """The logits of each next token, (N, T - 1, V)."""
    return model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, :-1]


@torch.no_grad()
def control_vector(
    reference_model: Any,
    rows: Sequence[FactRow],
    pad: int,
    *,
    layer: int,
    steering: float,
    seed: int,
    batch_size: int,
) -> Tensor:
    """Return c u, the control vector of RMU: (H,) float32.

    - u is a random direction: uniform on [0, 1) in each feature and then scaled to length 1, as in RMU's code
    - c is ``steering`` times the mean length of the reference model's hidden states on ``rows`` at the output of
      ``layer``. RMU sets c by hand for one model; relative to a model's own states one value serves all [ours].
    """
    lengths = []
    for start in range(0, len(rows), batch_size):
        inputs = padded([split_row(row) for row in rows[start : start + batch_size]], pad, reference_model.device)
        out = reference_model(inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True)
        lengths.append(out.hidden_states[layer + 1][inputs["attention_mask"].bool()].float().norm(dim=-1))
    mean = torch.cat(lengths).mean()
    size = reference_model.config.get_text_config().hidden_size
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return steering * mean * (direction / direction.norm()).to(mean.device)


def with_shares(rows: Sequence[dict[str, Any]], settings: ForgetSettings, batch_size: int) -> list[dict[str, Any]]:
    """Return the rows with ``forget_share`` and ``retain_share``.

    A share is the number of the row's tokens divided by the mean of its batch (``batch_size`` consecutive rows), if the
    term is a mean over tokens; else 1. The mean over a micro-batch's tokens, times the mean of its rows' shares, is the
    micro-batch's contribution to the mean over the tokens of the whole batch.
    """

    def tokens(row: dict[str, Any], side: str) -> int:
        if side == "forget":
            return len(row["forget"]["input_ids"]) if settings.loss == "rmu" else 1
        if settings.retain_term == "hidden":
            return len(row["retain"]["input_ids"])
        return sum(label != -100 for label in row["retain"]["labels"])

    shared = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        means = {side: sum(tokens(row, side) for row in batch) / len(batch) for side in ("forget", "retain")}
        for row in batch:
            shared.append({**row, **{f"{side}_share": tokens(row, side) / mean for side, mean in means.items()}})
    return shared


def collate(batch: Sequence[dict[str, Any]], pad: int) -> dict[str, Any]:
    """Return a batch of rows as tensors.

    - ``forget`` and ``retain``: each ``input_ids``, ``attention_mask`` and ``labels``, (N, T)
    - ``reference``, ``forget_share`` and ``retain_share``: (N,) float32

    The end token of a forget answer has no label, because the model must still end its turns. The end tokens of retain
    answers have labels.
    """
    numbers = ("reference", "forget_share", "retain_share")
    return {
        "forget": answer_batch([row["forget"] for row in batch], pad),
        "retain": padded([split_row(row["retain"]) for row in batch], pad),
        **{name: torch.tensor([row[name] for row in batch], dtype=torch.float32) for name in numbers},
    }
