"""Sends the log of a training to TensorBoard and to the other services that transformers can report to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skillweave.errors import UserError, nearest
from skillweave.methods.training.trl_hooks import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)

_TENSORBOARD = "tensorboard"
_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Service -> the package to install, for services whose package has another name."""
_FOLDERS = {"wandb": "WANDB_DIR", "trackio": "TRACKIO_DIR", "swanlab": "SWANLAB_LOG_DIR"}
"""Service -> the environment variable that says where it keeps its files. A value that the user has set stays."""


def check_reporters(names: Sequence[str]) -> None:
    """Raise :class:`UserError` for a service that transformers does not know, or whose package is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"report_to: unknown service '{name}'; {nearest(name, INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise UserError(
                f"report_to: the package for {name} is missing: pip install {_PACKAGES.get(name, name)}, or remove it "
                "from report_to"
            )


def reporters(names: Sequence[str], folder: Path, step: int) -> list[Any]:
    """The callbacks that report a training in ``folder`` that resumes after ``step`` (0: it starts).

    Only the first process may call this. TensorBoard's files are in ``folder/"tensorboard"``. What a killed attempt
    wrote about later steps is discarded there, so that the curve of a resumed training has no doubled part.
    """
    callbacks: list[Any] = []
    for name in names:
        if name == _TENSORBOARD:
            from torch.utils.tensorboard import SummaryWriter  # the package tensorboard is optional

            callbacks.append(TensorBoardCallback(SummaryWriter(str(folder / _TENSORBOARD), purge_step=step + 1)))
            continue
        if name in _FOLDERS:
            os.environ.setdefault(_FOLDERS[name], str(folder))
        callbacks.append(INTEGRATION_TO_CALLBACK[name]())
    return callbacks
