"""The neurons of a base on their own: scored, chosen and drawn, nothing trained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from skillweave.artefact import atomic_folder, write_json, write_text
from skillweave.base import Base
from skillweave.base.generate import context_length
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku.config import Files, LocaliseSettings, WatchSettings
from skillweave.methods.cku.knowledge.facts import Fact, rows_of_set
from skillweave.methods.cku.knowledge.sets import read_sets
from skillweave.methods.cku.neurons.plot import neurons_plot
from skillweave.methods.cku.neurons.scores import useful_neurons
from skillweave.progress import console, share_of
from skillweave.report import machine, svg_text, versions

FIGURES = "score.json"


class ScoreConfig(LocaliseSettings):
    """Settings of ``skillweave cku score``: those of the method's ``localise``, and what is scored on."""

    freeze: Literal["useful", "random", "inverse", "none"] = "useful"
    forget: Files = Field(description="JSONL: what is to go")
    retain: Files = Field(description="JSONL: what must stay")
    seed: int = Field(default=0, description="of the neurons that freeze: random draws")
    max_length: int = Field(default=1024, ge=2, description="longer examples (prompt and answer, tokens) are left out")


def score_neurons(base: Base, config: ScoreConfig, folder: Path, *, command: str) -> dict[str, Any]:
    """Find the neurons that an unlearning with these settings would freeze. Returns the figures of the choice.

    ``folder``, all of which is replaced, holds the scores (``neurons.safetensors``, see
    :func:`~skillweave.methods.cku.neurons.localise.read_neurons`), the figures (``score.json``) and a plot
    (``neurons.svg``). Raises :class:`UserError` where settings or files do not fit.
    """
    from skillweave.methods.cku.neurons.localise import chosen_mlps, localise, read_neurons
    from skillweave.methods.cku.neurons.mlp import find_mlps

    # Held out as the method holds out, so that the neurons are the very ones it would freeze.
    sets = read_sets(config.forget, config.retain, None, WatchSettings().held_out)
    mlps = chosen_mlps(find_mlps(base.model), config.layers)
    began = time.monotonic()
    length = min(config.max_length, context_length(base.model) or config.max_length)
    forget, retain = (
        _rows(base, side, facts, length) for side, facts in (("forget", sets.forget), ("retain", sets.retain))
    )
    with atomic_folder(folder) as temporary:
        figures = localise(
            base.model, base.tokenizer.pad_token_id, forget, retain, mlps, config, temporary, config.seed
        )  # fmt: skip
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
            "seconds": round(time.monotonic() - began, 1),
        }
        write_json(temporary / FIGURES, score)
        write_text(temporary / "neurons.svg", svg_text(neurons_plot(**neurons, overlap=overlap)))
    return score


def frozen_overlap(forget: Mapping[int, Tensor], frozen: Mapping[int, Tensor]) -> dict[int, dict[str, float | None]]:
    """How far, in each layer, the frozen neurons are those that the forget data uses.

    ``forget`` (neurons,) scores on the forget set, ``frozen`` (neurons,) bool. ``share``: of the frozen, those among
    as many that score highest on the forget set; None where none is frozen. ``chance``: what it would be at random.
    """
    found: dict[int, dict[str, float | None]] = {}
    for layer, mask in frozen.items():
        count = int(mask.sum())
        chance = count / len(mask)
        used = useful_neurons({layer: forget[layer]}, chance)[layer]
        found[layer] = {"share": int((mask & used).sum()) / count if count else None, "chance": chance}
    return found


def is_score(folder: Path) -> bool:
    """Whether a folder is what :func:`score_neurons` writes."""
    try:
        return {"settings", "by_layer", "overlap"} <= set(read_json(folder / FIGURES))
    except (UserError, TypeError):
        return False


def _rows(base: Base, side: str, facts: Sequence[Fact], length: int) -> list[dict[str, list[int]]]:
    rows, left_out = rows_of_set(base.tokenizer, facts, length, f"the {side} set")
    if left_out:
        too_long = share_of(left_out, len(facts), f"facts of the {side} set")
        console.print(
            f"  {too_long} are longer than {length} tokens (max_length, or the base's context) and are left out",
            soft_wrap=True,
        )
    return rows
