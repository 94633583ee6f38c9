"""Everything that the package uses below the public surface of TRL, PEFT and the trainer of transformers.

The names are imported here and nowhere else. Private methods that a trainer must override are overridden in the
trainer's own class, and are listed in :data:`HOOKS`. A test checks every row of the list, so that a new release which
changes one of them gives the maintainer a sentence instead of a traceback. ``pyproject.toml`` allows the versions in
:data:`CHECKED` and no newer ones; test again before you raise an upper bound.

TRL also needs one patch. It checks whether a package named ``weave`` (a tracing library) is importable, and imports
from it if so. Python treats any *folder* of that name on the import path as a package, and a user is likely to save a
weave in ``weave/``: TRL would then fail to import next to it. A folder without ``__init__.py`` is not that library, so
TRL is told that there is none.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)

_weave_package = importlib.util.find_spec("weave")
if _weave_package is not None and _weave_package.origin is None:
    _import_checks: Any = importlib.import_module("trl.import_utils")
    _import_checks.is_weave_available = lambda: False

from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head  # noqa: E402

__all__ = [
    "CHECKED",
    "HOOKS",
    "INTEGRATION_TO_CALLBACK",
    "NOISY_LOGGERS",
    "REFERENCE_ADAPTER",
    "ROLLOUT_FUNC_WARNING",
    "DPOConfig",
    "DPOTrainer",
    "FusedCausalLMOutput",
    "GRPOConfig",
    "GRPOTrainer",
    "Hook",
    "SFTConfig",
    "SFTTrainer",
    "TensorBoardCallback",
    "add_fused_lm_head",
    "get_available_reporting_integrations",
]

NOISY_LOGGERS = ("transformers", "trl", "accelerate", "peft")
"""Loggers whose warnings are silenced during a training."""

ROLLOUT_FUNC_WARNING = "You are using 'rollout_func'"
"""How TRL's warning begins that ``rollout_func`` of GRPOTrainer is experimental. We rely on that argument."""

REFERENCE_ADAPTER = "ref"
"""The name of the adapter that DPOTrainer adds to a PEFT model: a copy of the trained one, frozen, as reference."""

CHECKED = {
    "trl": ("1.16.0", "1.16.0"),
    "transformers": ("5.23.0", "5.23.0"),
    "peft": ("0.21.0", "0.21.2"),
}
"""The oldest and the newest version of each library with which the hooks were tested."""


@dataclass(frozen=True)
class Hook:
    """One thing that we use although its library does not promise it.

    - ``path``: the full dotted name.
    - ``used_in``: the module of ``skillweave.methods`` that uses or overrides it.
    - ``relies_on``: what must stay true of it, as a sentence.
    - ``parameters``: names that its signature must have, in this order (others may stand between or after them).
    - ``source``: pieces of text that its source must contain, where we rely on what it does inside.
    """

    path: str
    used_in: str
    relies_on: str
    parameters: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


HOOKS = (
    Hook(
        "trl.import_utils.is_weave_available",
        "training.trl_hooks",
        "TRL asks this function whether the tracing library weave is installed before it imports from it.",
    ),
    Hook(
        "trl.trainer.base_trainer._BaseTrainer._send_telemetry",
        "training.trainer",
        "It sends the telemetry and does nothing else, so an override without a body switches the telemetry off.",
        parameters=("self",),
        source=("send_telemetry(",),
    ),
    Hook(
        "trl.trainer.base_trainer._BaseTrainer.create_model_card",
        "training.trainer",
        "It writes a model card and does nothing else, so an override without a body leaves the card out.",
        parameters=("self", "model_name"),
        source=("README.md",),
    ),
    Hook(
        "trl.trainer.utils.add_fused_lm_head",
        "training.head",
        "It replaces model.forward; a call with labels and fused_lm_head=True then returns a FusedCausalLMOutput.",
        parameters=("model", "temperature", "outputs"),
        source=("fused_lm_head=False", "labels=None", "num_items_in_batch", "types.MethodType"),
    ),
    Hook(
        "trl.trainer.utils.FusedCausalLMOutput",
        "training.head",
        "It is the output of the fused head and has these fields, each (B, T-1).",
        parameters=("log_probs", "entropy", "mean_logits", "is_top1", "label_mask"),
    ),
    Hook(
        "trl.trainer.sft_trainer.SFTTrainer.__init__",
        "training.sft",
        "With dataset_kwargs={'skip_prepare_dataset': True} it trains on rows of input_ids and labels as they are, and "
        "it adds the fused head to the model.",
        parameters=("self", "model", "args", "train_dataset", "eval_dataset", "processing_class", "callbacks"),
        source=("skip_prepare_dataset", "add_fused_lm_head("),
    ),
    Hook(
        "trl.trainer.sft_trainer.SFTTrainer.compute_loss",
        "training.trainer",
        "It adds the tokens of a batch to _total_train_tokens, which a resumed training must set, and logs the sum as "
        "num_tokens. DPOTrainer does the same.",
        source=("self._total_train_tokens +=", '["num_tokens"] = [self._total_train_tokens]'),
    ),
    Hook(
        "trl.trainer.dpo_trainer.DPOTrainer._prepare_dataset",
        "specialise.dpo",
        "The constructor tokenises the dataset only here, so an override that returns the dataset skips that.",
        parameters=("self", "dataset"),
    ),
    Hook(
        "trl.trainer.dpo_trainer.DPOTrainer._precompute_ref_logps",
        "specialise.dpo",
        "The constructor calls it last, with the fused head in place, and expects the dataset back with the columns "
        "ref_chosen_logps and ref_rejected_logps.",
        parameters=("self", "dataset", "name", "batch_size"),
        source=("ref_chosen_logps", "ref_rejected_logps"),
    ),
    Hook(
        "trl.trainer.dpo_trainer.DPOTrainer.compute_ref_log_probs",
        "specialise.dpo",
        "It returns the summed log-probabilities of the chosen and of the rejected answers of a padded batch.",
        parameters=("self", "model", "inputs"),
        source=("fused_lm_head=True", ".chunk(2"),
    ),
    Hook(
        "trl.trainer.dpo_trainer.DPOTrainer.__init__",
        "specialise.dpo",
        "It copies the adapter of a PEFT model under the name 'ref', which we delete after the log-probabilities of "
        "the reference were computed.",
        parameters=("self", "model", "args", "train_dataset", "processing_class"),
        source=('"ref"', "_precompute_ref_logps("),
    ),
    Hook(
        "trl.trainer.grpo_trainer.GRPOTrainer.__init__",
        "e3tir.trainer",
        "It takes rollout_func, warns that it is experimental with the text of ROLLOUT_FUNC_WARNING, and keeps the "
        "end tokens in eos_token_ids, which we replace.",
        parameters=("self", "model", "reward_funcs", "args", "train_dataset", "processing_class", "rollout_func"),
        source=(ROLLOUT_FUNC_WARNING, "self.eos_token_ids ="),
    ),
    Hook(
        "trl.trainer.grpo_trainer.GRPOTrainer._generate_and_score_completions",
        "e3tir.trainer",
        "It calls rollout_func, scores what that returns, and gives a batch whose 'advantages' we replace.",
        parameters=("self", "inputs"),
        source=('"advantages"', '"completion_ids"'),
    ),
    Hook(
        "trl.trainer.grpo_trainer.GRPOTrainer._compute_loss",
        "e3tir.trainer",
        "It takes the advantages (B,) or (B, T), and makes the ratio of the log-probabilities that "
        "_get_per_token_logps_and_entropies returns and of inputs['old_per_token_logps'], which it reads afterwards.",
        parameters=("self", "model", "inputs"),
        source=(
            "self._get_per_token_logps_and_entropies(",
            "advantages.dim() == 1",
            'inputs.get("old_per_token_logps")',
        ),
    ),
    Hook(
        "trl.trainer.grpo_trainer.GRPOTrainer._get_per_token_logps_and_entropies",
        "e3tir.trainer",
        "It returns three values: log-probabilities (B, T), entropies and the auxiliary loss.",
        parameters=("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
    ),
    Hook(
        "trl.trainer.grpo_trainer.GRPOTrainer._log_metric",
        "e3tir.trainer",
        "It adds a number to the metrics of the next log, which holds their mean.",
        parameters=("self", "name", "value"),
    ),
    Hook(
        "transformers.Trainer.loss_is_scaled_for_ga",
        "tpaw.trainer and cku.trainer",
        "False says that the loss is a mean over a micro-batch: the trainer divides it by the number of micro-batches.",
    ),
    Hook(
        "transformers.Trainer.training_step",
        "cku.trainer",
        "It prepares the inputs, divides the loss by current_gradient_accumulation_steps and runs backward; an "
        "override that does the same with two losses can replace it.",
        parameters=("self", "model", "inputs", "num_items_in_batch"),
        source=("self._prepare_inputs(", "self.current_gradient_accumulation_steps", "self.accelerator.backward("),
    ),
    Hook(
        "transformers.Trainer.compute_loss",
        "tpaw.trainer and cku.trainer",
        "The trainer computes the loss of a micro-batch only here.",
        parameters=("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    ),
    Hook(
        "transformers.Trainer.log",
        "tpaw.trainer and cku.trainer",
        "Every entry of the log passes through it, so an override can add its own numbers.",
        parameters=("self", "logs", "start_time"),
    ),
    Hook(
        "transformers.trainer_callback.CallbackHandler.on_evaluate",
        "training.sft",
        "It calls on_evaluate of all callbacks and returns the control object.",
        parameters=("self", "args", "state", "control", "metrics"),
    ),
    Hook(
        "transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK",
        "training.reporting",
        "It maps the name of a reporting service to its callback class, which needs no arguments.",
    ),
    Hook(
        "transformers.integrations.integration_utils.get_available_reporting_integrations",
        "training.reporting",
        "It lists the services whose packages are installed.",
    ),
    Hook(
        "transformers.integrations.integration_utils.TensorBoardCallback",
        "training.reporting",
        "It takes the writer to use.",
        parameters=("tb_writer",),
    ),
    Hook(
        "peft.PeftModel.delete_adapter",
        "specialise.dpo",
        "It removes a named adapter and leaves the active one as it is.",
        parameters=("self", "adapter_name"),
    ),
)
