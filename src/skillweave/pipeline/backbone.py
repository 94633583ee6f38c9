"""The backbone of a build: the base that weave.yaml names, with what its ``unlearn`` block lists taken out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillweave.base import Base, open_base
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.files.read import read_json
from skillweave.methods.cku.config import CkuConfig

if TYPE_CHECKING:
    from skillweave.pipeline.config import WeaveConfig

METHOD = "cku"
"""The method that takes knowledge out."""

_TOLD = ("strength", "probability")
"""Of the run's figures, those that the report tells: how much is extracted, and how likely the answers are."""


def unlearning_inputs(settings: CkuConfig) -> dict[str, Any]:
    """The inputs of the unlearning besides the base: its settings (but where its log goes), and what is in its files
    now (SHA-256 of each).

    Raises :class:`UserError` for a file that is not there.
    """
    named = {"forget": settings.forget, "retain": settings.retain, "unseen": settings.unseen or []}
    hashes: dict[str, list[str]] = {}
    for key, files in named.items():
        for file in files:
            if not file.is_file():
                raise UserError(f"unlearn.{key}: {file} does not exist: name a JSONL file (looked in {Path.cwd()})")
        hashes[key] = [sha256_file(file) for file in files]
    return {"unlearn": settings.model_dump(mode="json", exclude={"report_to"}), "files": hashes}


def open_unlearnt(folder: Path, config: WeaveConfig) -> Base:
    """The unlearnt base in ``folder``, by a name that says what it is wherever it is written down."""
    opened = open_base(folder, dtype=config.dtype, device=config.device)
    return replace(opened, ref=f"{config.base}, unlearnt (the backbone of {config.name})")


def unlearning_report(settings: CkuConfig, fingerprint: str, run: Path) -> dict[str, Any]:
    """What the report keeps of the unlearning: its files, the backbone, and figures from before and after.

    ``run`` is the run's folder. The figures are those of its stages ``before`` and ``after`` that both have and whose
    names end in strength or probability.
    """
    stages = read_json(run / "figures.json")["stages"]
    before, after = stages["before"], stages["after"]
    told = [name for name in before if name in after and name.endswith(_TOLD)]
    return {
        "method": METHOD,
        "fingerprint": fingerprint,
        "forget": [str(file) for file in settings.forget],
        "retain": [str(file) for file in settings.retain],
        "before": {name: before[name] for name in told},
        "after": {name: after[name] for name in told},
    }
