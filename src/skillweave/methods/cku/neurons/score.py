"""``skillweave cku score``: score, choose and plot the neurons of a base without any training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from skillweave.artefact import atomic_folder, write_json, write_text
from skillweave.base import Base
from skillweave.base.sizes import context_length
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku.config import Files, LocaliseSettings, WatchSettings
from skillweave.methods.cku.knowledge.facts import Fact, FactRow, read_sets, rows_of_set
from skillweave.methods.cku.neurons.localise import NEURONS_FILE, chosen_mlps, localise, read_neurons
from skillweave.methods.cku.neurons.mlp import find_mlps
from skillweave.methods.cku.neurons.plot import neurons_plot
from skillweave.methods.cku.neurons.scorers import useful_neurons
from skillweave.progress import console, share_of
from skillweave.report import machine, svg_text, versions

FIGURES = "score.json"
PLOT = "neurons.svg"
PARTS = (FIGURES, PLOT, NEURONS_FILE)
"""Names of the files that :func:`score_neurons` writes."""


class NeuronScoreConfig(LocaliseSettings):
    """Settings of ``skillweave cku score``: those of the method's ``localise``, and the data to score on."""

    freeze: Literal["useful", "random", "inverse", "none"] = Field(
        default="useful", description="which neurons an unlearning would freeze"
    )
    forget: Files = Field(description="Data files: the facts to forget")
    retain: Files = Field(description="Data files: the facts to retain")
    seed: int = Field(default=0, description="random seed of freeze: random")
    max_length: int = Field(default=1024, ge=2, description="longer examples (prompt and answer, tokens) are left out")


def score_neurons(base: Base, config: NeuronScoreConfig, folder: Path, *, command: str) -> dict[str, Any]:
    """Choose the neurons that an unlearning with these settings would freeze. Returns the figures of the choice.

    The content of ``folder`` is replaced by:

    - ``neurons.safetensors``: the scores (:func:`~skillweave.methods.cku.neurons.localise.read_neurons` reads them)
    - ``score.json``: the figures
    - ``neurons.svg``: a plot

    Raises :class:`UserError` if settings or files do not fit.
    """
    # The same facts are held out as in the method, so that these are exactly the neurons that it would freeze.
    sets = read_sets(config.forget, config.retain, None, WatchSettings().held_out)
    mlps = chosen_mlps(find_mlps(base.model), config.layers)
    started = time.monotonic()
    length = min(config.max_length, context_length(base.model) or config.max_length)
    forget = _rows(base, sets.forget, length, "the forget set")
    retain = _rows(base, sets.retain, length, "the retain set")
    pad = base.tokenizer.pad_token_id
    with atomic_folder(folder) as temporary:
        figures = localise(base.model, pad, forget, retain, mlps, config, temporary, config.seed)
        neurons = read_neurons(temporary)
        overlap = frozen_overlap(neurons["forget"], neurons["frozen"])
        score = {
            "base": {"ref": base.ref, "fingerprint": base.fingerprint},
            "settings": config.model_dump(mode="json"),
            **figures,
            "by_layer": [
                {"layer": layer, "neurons": len(mask), "frozen": int(mask.sum()), **overlap[layer]}
                for layer, mask in sorted(neurons["frozen"].items())
            ],
            "command": command,
            "machine": machine(),
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_json(temporary / FIGURES, score)
        write_text(temporary / PLOT, svg_text(neurons_plot(**neurons, overlap=overlap)))
    return score


def frozen_overlap(forget: Mapping[int, Tensor], frozen: Mapping[int, Tensor]) -> dict[int, dict[str, float | None]]:
    """Return, for each layer, how far the frozen neurons are those that the forget set uses most.

    ``forget`` holds (neurons,) scores on the forget set, ``frozen`` (neurons,) bool. Per layer:

    - ``share``: of the k frozen neurons, the share among the k neurons with the highest scores on the forget set; None
      if none is frozen
    - ``chance``: what that share would be with a random choice
    """
    overlap: dict[int, dict[str, float | None]] = {}
    for layer, mask in frozen.items():
        count = int(mask.sum())
        chance = count / len(mask)
        used = useful_neurons({layer: forget[layer]}, chance)[layer]
        overlap[layer] = {"share": int((mask & used).sum()) / count if count else None, "chance": chance}
    return overlap


def is_score(folder: Path) -> bool:
    """Whether a folder was written by :func:`score_neurons`."""
    try:
        return {"settings", "by_layer", "overlap"} <= set(read_json(folder / FIGURES))
    except (UserError, TypeError):
        return False


def _rows(base: Base, facts: Sequence[Fact], length: int, called: str) -> list[FactRow]:
    rows, left_out = rows_of_set(base.tokenizer, facts, length, called)
    if left_out:
        too_long = share_of(left_out, len(facts), f"facts of {called}")
        console.print(
            f"  {too_long} are longer than {length} tokens (max_length, or the base's context) and are left out",
            soft_wrap=True,
        )
    return rows
