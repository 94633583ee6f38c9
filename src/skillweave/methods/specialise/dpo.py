"""Direct preference optimisation (arXiv 2305.18290, equation 7) on a round's pairs, with TRL's DPOTrainer.

The loss is TRL's. Its term "sft" is the likelihood of the chosen answers, a mean over the tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel

from skillweave.base.batching import by_length
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.methods.specialise.config import DpoSettings
from skillweave.methods.training.head import install_answer_head
from skillweave.methods.training.pieces import in_pieces
from skillweave.methods.training.preferences import Pair
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.trainer import QuietTrainer
from skillweave.methods.training.trl_hooks import REFERENCE_ADAPTER, DPOConfig, DPOTrainer


class PairTrainer(QuietTrainer, DPOTrainer):
    """DPOTrainer on the rows of :func:`encode`; the reference is the policy at the start of the round.

    - ``order``: the indices of the rows of all steps, one step after the other.
    - ``reference``: the file for the reference's log-probabilities. They are computed once, before the first step, so
      no second model is in memory, and a resumed round compares with the same numbers. TRL's own cache of them is in a
      temporary folder of each process, which several processes cannot share.
    """

    watched: Mapping[str, str] = {
        "rewards/margins": "reward_margin",
        "rewards/accuracies": "reward_accuracy",
    }

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        arguments: dict[str, Any],
        rows: Sequence[dict],
        order: list[int],
        *,
        settings: DpoSettings,
        reference: Path,
        processes: Processes,
    ):
        self._rows, self._order, self._reference, self._processes = rows, order, reference, processes
        losses = {"sigmoid": 1.0, "sft": settings.nll_weight} if settings.nll_weight else {"sigmoid": 1.0}
        super().__init__(
            model=model,
            args=DPOConfig(
                **arguments,
                max_length=None,  # `encode` has left out the pairs that are too long
                beta=settings.beta,
                loss_type=list(losses),
                loss_weights=list(losses.values()),
                precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list([rows[index] for index in order]),
            processing_class=tokenizer,
        )
        if isinstance(model, PeftModel):
            # TRL copied the adapter as reference. Its log-probabilities are known now, so it need not be saved.
            model.delete_adapter(REFERENCE_ADAPTER)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Return the dataset as it is: it is tokenised already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The dataset with the reference's log-probabilities as two more columns."""
        # TRL calls this at the end of its constructor, after it has installed its head, which ours replaces.
        install_answer_head(self.model)
        values = in_pieces(
            self._reference,
            lambda: (by_length([row_length(row) for row in self._rows], batch_size), self._reference_log_probs),
            processes=self._processes,
            label="reference",
        )
        for at, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
            dataset = dataset.add_column(column, [values[index][at] for index in self._order])
        return dataset

    def _reference_log_probs(self, number: int, piece: Sequence[int]) -> list[list[float]]:
        """For each pair of a piece: the summed log-probabilities of its chosen and its rejected answer, in nats."""
        inputs = self.data_collator([self._rows[index] for index in piece])
        inputs = {key: value.to(self.accelerator.device) for key, value in inputs.items()}
        chosen, rejected = self.compute_ref_log_probs(self.model, inputs)
        return [list(pair) for pair in zip(chosen.tolist(), rejected.tolist(), strict=True)]


def encode(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> list[dict[str, list[int]]]:
    """Rows with ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``.

    A pair is left out if its prompt with either answer has more than ``max_length`` tokens.
    """
    rows = []
    for pair in pairs:
        row = {
            "prompt_ids": prompt_ids(tokenizer, pair.prompt),
            "chosen_ids": answer_ids(tokenizer, pair.chosen, pair.prompt),
            "rejected_ids": answer_ids(tokenizer, pair.rejected, pair.prompt),
        }
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= max_length:
            rows.append(row)
    return rows


def row_length(row: dict[str, list[int]]) -> int:
    """The number of tokens that a row is trained on: its prompt twice, and both answers."""
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
