"""Log-probabilities of answer tokens on a CPU, without computing the vocabulary's logits at all other positions."""

from __future__ import annotations

import types
from typing import Any

import torch
from peft import PeftModel

from skillweave.methods.training.trl_hooks import FusedCausalLMOutput, add_fused_lm_head

_SPECIAL_HEADS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
    "output_router_logits",
)
"""Config keys of models that scale or cap their logits, or return router losses. They keep TRL's head, which handles
all of these."""


def answer_scores(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The log-probability of each target, the entropy of each distribution, and whether the target is the likeliest.

    - ``logits``: (N, V), any float dtype; ``targets``: (N,) int64.
    - Log-probability and entropy: (N,) float32, in nats. The gradient flows through the log-probability only.
    """
    log_probs = logits.float().log_softmax(dim=-1)
    chosen = log_probs.gather(1, targets[:, None]).squeeze(1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        top = logits.argmax(dim=-1) == targets
    return chosen, entropy, top


def install_answer_head(model: Any, temperature: float = 1.0) -> None:
    """Make ``model(..., labels=labels, fused_lm_head=True)`` score only the positions whose label is not -100.

    TRL patches its models in this way. On a GPU its Triton kernel scores the labelled positions only, but on a CPU it
    projects every position, the prompt included, onto the whole vocabulary, and does so twice. That measured five times
    slower (533 answer tokens of 1600, 49152 words) [ours].

    - ``model``: a causal LM or a PEFT model that TRL's trainer has already patched.
    - ``temperature``: the one that TRL's trainer was given; logits are divided by it.
    - The output has the same fields as TRL's, each (B, T-1).
    - On other devices nothing changes.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    config = model.config.get_text_config()
    if model.device.type != "cpu" or any(getattr(config, name, None) for name in _SPECIAL_HEADS):
        return
    inner = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return inner(*args, **kwargs) if labels is None else inner(*args, labels=labels, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        mask = targets != -100
        logits = self.get_output_embeddings()(hidden[mask]) / temperature
        log_probs, entropy, top = answer_scores(logits, targets[mask])

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return FusedCausalLMOutput(
            log_probs=spread(log_probs),
            entropy=spread(entropy),
            mean_logits=spread(logits.detach().float().mean(dim=-1)),
            is_top1=spread(top),
            label_mask=mask,
        )

    model.forward = types.MethodType(forward, model)


def install_scoring_head(model: Any) -> None:
    """Give a model that no TRL trainer has patched a head that scores labels: TRL's, or on a CPU ours."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    add_fused_lm_head(inner, outputs=("log_probs",))
    install_answer_head(model)


def answer_log_probs(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The summed log-probability of each row's answer: (N,) float32, in nats, with its gradient.

    - ``model``: has a scoring head (:func:`install_scoring_head`).
    - ``inputs``: ``input_ids``, ``attention_mask`` and ``labels`` (-100 except on the answer), all (N, T).
    """
    out = model(**inputs, fused_lm_head=True)
    return (out.log_probs * out.label_mask).sum(dim=1)
