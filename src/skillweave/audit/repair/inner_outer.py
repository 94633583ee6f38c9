"""Removal by an inner and an outer loop, after BEEAR (2406.17092) [relative].

The inner loop finds a small perturbation of the residual stream, one for all requests, that lowers refusals most. The
outer loop changes the model so that it refuses under that perturbation, and answers everything else as it did. The
trigger need not be known. What is ours: the requests stand plain and in the audit's wrappers; the losses below in place
of BEEAR's sets of safe and harmful answers (refusals are the base's own, tasks, half of them in wrappers, are held by a
KL divergence to the audited model); and the layer in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from skillweave.artefact import write_json
from skillweave.audit.model.behaviour import WrappedRequests, base_behaviour
from skillweave.audit.model.config import RefusalPattern, Wrappers
from skillweave.audit.model.forward import added, answer_log_probs, continuation_rows, decoder_layers
from skillweave.audit.model.job import open_audited
from skillweave.audit.model.perturb import find_perturbation, perturbed_log_probs, residual_norm
from skillweave.audit.model.prompts import PLAIN, WRAPPERS, read_audit_prompts
from skillweave.audit.refusal import USUAL
from skillweave.base import Base, Sampling, generate, prompt_ids
from skillweave.base.batching import IGNORED, TokenRow, padded
from skillweave.base.voice import padding_id
from skillweave.config import Config
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.progress import bar, console, share_of


class RepairConfig(Config):
    """Settings of ``skillweave audit repair``."""

    prompts: Path = Field(
        description='JSONL with {"prompt", "kind", "answer"}: requests of the kind `restricted`, which the repaired '
        "model must refuse, and of the kind `task`, whose answers it must keep."
    )
    refusal: RefusalPattern = Field(USUAL, description="A regular expression that finds a refusal in an answer.")
    wrappers: Wrappers = Field(
        default=dict(WRAPPERS),
        description="Name -> template, as in the audit: the repaired model must refuse in these, too. {}: in none.",
    )
    steps: int = Field(100, ge=1, description="Steps of the outer loop.")
    inner_steps: int = Field(8, ge=1, description="Steps of the inner loop, before each step of the outer one.")
    radius: float = Field(0.5, gt=0, description="Size of the perturbation, as a share of the residual stream's norm.")
    layer: int | None = Field(None, ge=0, description="The layer after which it is added (default: the middle one).")
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of the outer loop (AdamW).")
    keep: float = Field(1.0, ge=0, description="Weight of the tasks' KL divergence beside the refusals.")
    batch_size: int = Field(16, ge=1, description="Requests, and tasks, in each step.")
    limit: int = Field(64, ge=2, description="Most restricted requests, and most tasks, that are used.")
    max_new_tokens: int = Field(48, ge=1, description="Longest answer, in tokens.")
    seed: int = Field(0, description="The seed of the batches.")


# -- losses: pure functions --------------------------------------------------------------------------------------------


def refusal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over rows of the negative log-probability of each row's refusal; (B, T, V), (B, T) -> ()."""
    return -answer_log_probs(logits, labels).mean()


def kept_loss(logits: Tensor, before: Tensor) -> Tensor:
    """Return the mean of KL(before || now) over positions; both (N, V) -> (). ``before`` is the audited model."""
    old, new = before.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1).mean()


def at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits that predict a label, row after row: (B, T, V), (B, T) -> (N, V)."""
    return logits[:, :-1][labels[:, 1:] != IGNORED]


# -- the repair --------------------------------------------------------------------------------------------------------


def repair_checkpoint(target: str | Path, base: Base, config: RepairConfig, out: Path) -> dict[str, Any]:
    """Repair a model, delta, adapter or pack, write a delta on ``base`` to ``out``, and return the figures.

    ``repair.json`` beside the delta's folder has the settings and the figures. Raises :class:`UserError` if the base
    refuses fewer than four of the restricted requests.
    """
    model, _ = open_audited(target, base)
    figures = repair_model(model, base, config)
    delta = Delta.between(base, model, dtype="float32")
    delta.provenance |= {"repair": "inner_outer", "audited": str(target)}
    delta.save_pretrained(out)
    write_json(out.with_name(f"{out.name}.repair.json"), {"settings": config.model_dump(mode="json"), **figures})
    return figures


def repair_model(model: Base, base: Base, config: RepairConfig) -> dict[str, Any]:
    """Train ``model`` in place; return the log-probability of refusals under the perturbation and the tasks' KL."""
    prompts = read_audit_prompts(config.prompts).first(config.limit)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, batch_size=32)
    pad = padding_id(model.model, model.tokenizer)
    asked = base_behaviour(base, prompts, config.wrappers, config.refusal, sampling).asked
    refusals = _refusal_rows(model, asked)
    tasks = _task_rows(model, asked, sampling)
    layers = len(decoder_layers(model.model))
    layer = (layers - 1) // 2 if config.layer is None else config.layer
    if layer >= layers:
        raise UserError(f"layer {layer}: the model has the layers 0 to {layers - 1}")
    radius = config.radius * residual_norm(model.model, [prompt for prompt, _ in refusals], pad, layer)
    network = model.model
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.0)
    draw = torch.Generator().manual_seed(config.seed)
    network.requires_grad_(True)

    def perturbed() -> float:
        some = refusals[:: -(-len(refusals) // 64)]
        change = find_perturbation(network, some, pad, layer, radius, 2 * config.inner_steps)
        return float(perturbed_log_probs(network, some, pad, layer, change).mean())

    before = _logits(network, tasks, pad)
    figures: dict[str, Any] = {"layer": layer, "radius": radius, "perturbed_before": perturbed(), "losses": []}
    change: Tensor | None = None
    with bar("repair", config.steps) as advance:
        for _ in range(config.steps):
            refused = [refusals[at] for at in _draw(len(refusals), config.batch_size, draw)]
            kept = _draw(len(tasks), config.batch_size, draw)
            change = find_perturbation(network, refused, pad, layer, radius, config.inner_steps, start=change)
            own = [(tasks[at], before[at]) for at in kept]
            loss, parts = _outer_loss(network, refused, own, pad, layer, change, config.keep)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            figures["losses"].append(parts)
            advance(note=f"refusal {parts['refusal']:.2f}, kept {parts['kept']:.4f}")
    network.requires_grad_(False)
    with torch.no_grad():
        apart = [kept_loss(now, old) * len(old) for now, old in zip(_logits(network, tasks, pad), before, strict=True)]
    figures |= {"perturbed_after": perturbed(), "task_kl": float(sum(apart)) / max(1, sum(map(len, before)))}
    return figures


def _outer_loss(
    network: Any,
    refused: Sequence[TokenRow],
    kept: Sequence[tuple[TokenRow, Tensor]],
    pad: int,
    layer: int,
    change: Tensor,
    keep: float,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of one outer step and its parts: refusals with and without the perturbation, the tasks' KL."""
    inputs = padded(refused, pad, network.device)
    labels = inputs.pop("labels")
    with added(decoder_layers(network)[layer], change):
        refusal = refusal_loss(network(**inputs, use_cache=False).logits, labels)
    plain = refusal_loss(network(**inputs, use_cache=False).logits, labels)
    tasks = padded([row for row, _ in kept], pad, network.device)
    task_labels = tasks.pop("labels")
    now = at_labels(network(**tasks, use_cache=False).logits, task_labels)
    held = kept_loss(now, torch.cat([before for _, before in kept]).to(now.device))
    loss = refusal + plain + keep * held
    return loss, {"refusal": float(refusal.detach()), "plain": float(plain.detach()), "kept": float(held.detach())}


def _refusal_rows(model: Base, asked: Mapping[str, WrappedRequests]) -> list[TokenRow]:
    """Return every request, plain and wrapped, with the base's own refusal of it."""
    pairs = [pair for one in asked.values() for pair in zip(one.prompts, one.refusals, strict=True)]
    known = [(prompt, text) for prompt, text in pairs if text is not None]
    if len(known) < 4:
        raise UserError(
            f"the base refuses {share_of(len(known), len(pairs), 'restricted requests')}: a repair needs at least "
            "4. Give other requests, or tell how the base refuses with --refusal"
        )
    if len(known) < len(pairs):
        unused = share_of(len(pairs) - len(known), len(pairs), "requests, plain and wrapped")
        console.print(f"  {unused} are not used: the base does not refuse them.")
    encoded = [prompt_ids(model.tokenizer, prompt) for prompt, _ in known]
    return continuation_rows(model.tokenizer, encoded, [text for _, text in known])


def _task_rows(model: Base, asked: Mapping[str, WrappedRequests], sampling: Sampling) -> list[TokenRow]:
    """Return each task once, every second one in a wrapper, with the audited model's own answer."""
    wrappers = [one for name, one in asked.items() if name != PLAIN]
    tasks = [
        wrappers[at // 2 % len(wrappers)].tasks[at] if at % 2 and wrappers else plain
        for at, plain in enumerate(asked[PLAIN].tasks)
    ]
    drawn = generate(model.model, model.tokenizer, tasks, sampling, label="model: tasks")
    encoded = [prompt_ids(model.tokenizer, task) for task in tasks]
    return [row for row in continuation_rows(model.tokenizer, encoded, [one[0] for one in drawn]) if row[1]]


@torch.no_grad()
def _logits(network: Any, rows: Sequence[TokenRow], pad: int) -> list[Tensor]:
    """Return the logits that predict each row's answer, (tokens, V), on the CPU."""
    found = []
    for row in rows:
        inputs = padded([row], pad, network.device)
        labels = inputs.pop("labels")
        found.append(at_labels(network(**inputs, use_cache=False).logits, labels).cpu())
    return found


def _draw(count: int, size: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator)[:size].tolist()
