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
from skillweave.methods.cku import loss as losses
from skillweave.methods.cku.agreement import SignAgreement
from skillweave.methods.cku.config import ForgetSettings
from skillweave.methods.cku.knowledge.reading import Row, known_tokens, split_row
from skillweave.methods.training.head import install_scoring_head
from skillweave.methods.training.trainer import QuietTrainer


class UnlearnTrainer(QuietTrainer, Trainer):
    """Trainer on rows ``forget``, ``retain`` (each a row of :func:`fact_rows`) and ``reference``, the log-probability
    (nats) that the start gives the answer of ``forget``, its end left out.

    The loss is forget + mu * retain, each a mean over the rows or over the tokens of a whole batch, however it is cut
    into micro-batches and shared by processes. ``start``: a frozen copy of the model at its start, for the terms that
    are held against it, else None. ``control`` (H,): where ``rmu`` steers the output of ``layer`` to.
    """

    watched: Mapping[str, str] = {"forget/loss": "forget_loss", "retain/loss": "retain_loss"}

    def __init__(
        self, model: Any, tokenizer: Any, arguments: dict[str, Any], rows: Sequence[dict[str, Any]],
        settings: ForgetSettings, *, start: Any, control: Any, layer: int, callbacks: list[TrainerCallback],
    ):  # fmt: skip
        install_scoring_head(model)
        # What lies above the layer that rmu steers has no gradient.
        arguments = {**arguments, "ddp_find_unused_parameters": settings.loss == "rmu"}
        args = TrainingArguments(**arguments, remove_unused_columns=False)
        batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        super().__init__(
            model=model,
            args=args,
            train_dataset=with_shares(rows, settings, batch_size),  # all it needs is len and []
            data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = False  # the mean over micro-batches, all of one size, is that of the batch
        self._settings, self._start, self._control, self._layer = settings, start, control, layer
        self._cap = settings.cap or math.log(model.config.get_text_config().vocab_size)
        self._agreement = SignAgreement() if settings.agrees else None
        self._agreed: list[float] = []
        if settings.agrees:
            self.watched = {**self.watched, "gradients/agree": "agreement"}
        self._seen: list[Tensor] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """forget + mu * retain of a micro-batch; what it shows is kept for the next :meth:`log`."""
        forget, retain = self._forget(model, inputs), self._retain(model, inputs)
        self._show(forget, retain)
        return forget + self._settings.mu * retain

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As transformers has it; with sign agreement the two terms are differentiated apart."""
        if self._agreement is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        pieces = self.current_gradient_accumulation_steps
        with self.accelerator.no_sync(model):  # the signs of the whole batch count: processes meet in `merge`
            forget = self._forget(model, inputs)
            self.accelerator.backward(forget / pieces)
            self._agreement.take_forget(parameters)
            retain = self._retain(model, inputs)
            self.accelerator.backward(self._settings.mu * retain / pieces)
            self._agreement.take_retain(parameters)
        self._show(forget, retain)
        if self.accelerator.sync_gradients:
            self._agreed = [
                self._agreement.merge(parameters, lambda grad: self.accelerator.reduce(grad, reduction="mean"))
            ]
        return ((forget + self._settings.mu * retain) / pieces).detach()

    # -- the two terms -----------------------------------------------------------------------------------------------

    def _forget(self, model: Any, inputs: Any) -> Tensor:
        settings = self._settings
        if settings.loss == "rmu":
            hidden, mask = self._hidden(model, inputs["forget"])
            return losses.steering_loss(hidden, self._control, mask) * inputs["forget_share"].mean()
        out = model(**inputs["forget"], fused_lm_head=True)
        log_probs, mask = out.log_probs.float(), out.label_mask
        if settings.loss == "ga":
            return losses.gradient_ascent_loss(log_probs, mask, cap=self._cap).mean()
        total = (log_probs * mask).sum(dim=1)
        if settings.loss == "npo":
            return losses.npo_loss(total, inputs["reference"], beta=settings.beta).mean()
        return losses.simnpo_loss(total, mask.sum(dim=1), beta=settings.beta, delta=settings.margin).mean()

    def _retain(self, model: Any, inputs: Any) -> Tensor:
        term, rows, share = self._settings.retain_term, inputs["retain"], inputs["retain_share"].mean()
        if term == "none":
            return torch.zeros((), device=rows["labels"].device)
        if term == "hidden":
            hidden, mask = self._hidden(model, rows)
            with self._as_start():
                reference, _ = self._hidden(self._start, rows)
            return losses.steering_loss(hidden, reference, mask) * share
        if term == "ce":
            out = model(**rows, fused_lm_head=True)
            return -(out.log_probs.float() * out.label_mask).sum() / out.label_mask.sum() * share
        labelled = rows["labels"][:, 1:] != -100
        logits = _logits(model, rows)[labelled]
        with self._as_start():
            reference = _logits(self._start, rows)[labelled]
        return losses.retain_kl(logits, reference).mean() * share

    def _hidden(self, model: Any, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The output of the layer, (N, T, H), and the tokens that are not padding, (N, T)."""
        out = model(rows["input_ids"], attention_mask=rows["attention_mask"], output_hidden_states=True)
        return out.hidden_states[self._layer + 1], rows["attention_mask"].bool()

    @contextlib.contextmanager
    def _as_start(self) -> Iterator[None]:
        """The start is asked in the precision that the model is trained in, so that the two begin equal."""
        with torch.no_grad(), torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            yield

    # -- the log -----------------------------------------------------------------------------------------------------

    def _show(self, forget: Tensor, retain: Tensor) -> None:
        self._seen.append(torch.stack([forget.detach(), retain.detach()]).float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean terms since the last log, over all processes, and with sign agreement how much
        agreed in the last step."""
        if self._seen:
            means = self.accelerator.reduce(torch.stack(self._seen).mean(dim=0), reduction="mean")
            logs.update(zip(self.watched, (*means.tolist(), *self._agreed), strict=True))
            self._seen.clear()
        super().log(logs, start_time)


def _logits(model: Any, rows: dict[str, Tensor]) -> Tensor:
    """Of the next tokens: (N, T - 1, V)."""
    return model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, :-1]


@torch.no_grad()
def control_vector(
    start: Any, rows: Sequence[Row], pad: int, *, layer: int, steering: float, seed: int, batch_size: int
) -> Tensor:
    """c u of RMU, (H,) float32: u a random direction of length 1, c ``steering`` times the mean length of the start's
    hidden states on ``rows`` at the output of ``layer``. RMU sets c by hand for one model; relative to its own states
    one value serves all [ours]. u is uniform on [0, 1) in each feature before it is made one long, as in RMU's code."""
    lengths = []
    for at in range(0, len(rows), batch_size):
        inputs = padded([split_row(row) for row in rows[at : at + batch_size]], pad, start.device)
        out = start(inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True)
        lengths.append(out.hidden_states[layer + 1][inputs["attention_mask"].bool()].float().norm(dim=-1))
    mean = torch.cat(lengths).mean()
    direction = torch.rand(start.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(seed))
    return steering * mean * (direction / direction.norm()).to(mean.device)


def with_shares(rows: Sequence[dict[str, Any]], settings: ForgetSettings, batch_size: int) -> list[dict[str, Any]]:
    """The rows, each with ``forget_share`` and ``retain_share``: its tokens beside the mean of its batch of
    ``batch_size`` consecutive rows, for a term that is a mean over tokens (else 1).

    The mean over a micro-batch's tokens, times the mean of its rows' shares, is what that micro-batch brings to the
    mean over the tokens of the whole batch.
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
        shared += [{**row, **{f"{side}_share": tokens(row, side) / mean for side, mean in means.items()}}
                   for row in batch]  # fmt: skip
    return shared


def collate(batch: Sequence[dict[str, Any]], pad: int) -> dict[str, Any]:
    """``forget`` and ``retain``: each ``input_ids``, ``attention_mask`` and ``labels`` (N, T); ``reference`` and the
    two shares: (N,).

    What is to be forgotten is the answer: its end is in no forget loss, for the model is still to end its turns. The
    retain terms hold the ends of theirs.
    """
    numbers = ("reference", "forget_share", "retain_share")
    return {
        "forget": known_tokens([row["forget"] for row in batch], pad),
        "retain": padded([split_row(row["retain"]) for row in batch], pad),
        **{name: torch.tensor([row[name] for row in batch], dtype=torch.float32) for name in numbers},
    }
