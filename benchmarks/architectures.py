"""Measure which model families can be packed: micro models with random weights, each from end to end.

For every decoder family of the tests, a base and two full fine-tunes are built (every parameter changes). Each
fine-tune becomes a pack of eight-bit factors, and each pack becomes a model again. Then prompts are answered with both
packs and the base, in a mixed batch and alone. Claim: at least 45 families pass all three steps.

    python -m benchmarks.architectures               a few minutes on one core; writes the page of the docs too
    python -m benchmarks.architectures --quick       four families
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import RESULTS, Record, arguments, judged, run
from skillweave.artefact import write_text
from skillweave.report import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

NAME = "architectures"
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "architectures.md"
_INTRODUCTION = """# Architectures

This table shows for which model families SkillWeave works. Each family is a micro model with random weights that is
built, fine-tuned (every parameter changes), zipped, unzipped and served. The benchmark that runs the models writes the
table; the same runs are tests (`tests/architectures`).

- **zip**: the fine-tune became a pack of eight-bit factors.
- **unzip**: the unzipped model's logits are close to the fine-tune's. In brackets is their error divided by the effect
  of tuning.
- **mixed batch against alone**: two packs and the base, asked together, answer as each of them does alone.
- **engine**: requests for two packs and the base that come together get from the engine of `serve` what `generate`
  answers to each alone. Where transformers' continuous batching cannot run a model, or computes another result than the
  model itself, `serve` says so when it starts, and `generate` remains.
- **left out**: the share of the delta's squared norm that is not in the pack.
- **its tensors are served**: `row by row` means that all packs share one batch. `alone` means that a pack which changes
  such a tensor answers in batches of its own; `generate` sorts prompts into such batches by itself. The first such
  tensor is named, with the reason.

In every family, a pack shares batches if it changes only tensors that can differ from row to row, for example a LoRA on
the attention of a mixture of experts.

"""
QUICK = ("gpt2", "llama", "mamba", "mixtral")


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    import torch

    from helpers.family_proof import prove
    from helpers.micro_families import FAMILIES

    options = arguments(__doc__, ["micro"]).parse_args(argv)
    torch.set_num_threads(1)
    families = QUICK if options.quick else tuple(FAMILIES)
    record = Record.begin(NAME, options, argv, [0])
    passed = 0
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            row = prove(family, Path(folder))
        passed += row.passed
        record.rows.append({**row.record(), "passed": row.passed})
    goal = f">= {len(QUICK) if options.quick else 45}"
    record.claims = [judged("families that pass zip, unzip and mixed batches", passed, passed, passed, goal)]
    record.finish(_table(record.rows), _plot(record.rows))
    if record.out == RESULTS:
        write_text(PAGE, _INTRODUCTION + _table(record.rows).markdown() + f"\n\nMade by `{record.command}`.\n")


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    header = [
        "family",
        "zip",
        "unzip (error / effect)",
        "mixed batch against alone",
        "engine",
        "left out",
        "its tensors are served",
    ]
    return Table(
        header,
        [
            [
                row["family"],
                row["zip"],
                f"{row['unzip']} ({row['unzip_error']:.3f})",
                row["mixed"],
                row["engine"],
                f"{row['left_out']:.1%}",
                row["served"],
            ]
            for row in rows
        ],
    )


def _plot(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 0.16 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(rows, key=lambda row: row["unzip_error"])
    axes.barh([row["family"] for row in ordered], [row["unzip_error"] for row in ordered])
    axes.set_xlabel("unzipped model: error of the logits over the effect of the fine-tune")
    axes.tick_params(axis="y", labelsize=6)
    return figure


if __name__ == "__main__":
    run(main)
