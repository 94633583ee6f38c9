"""Where the log of a training goes beside our own files: TensorBoard, and what else transformers reports to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)

from skillweave.errors import UserError, nearest

_TENSORBOARD = "tensorboard"
_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Where the package to install has another name than the service."""
_FOLDERS = {"wandb": "WANDB_DIR", "trackio": "TRACKIO_DIR", "swanlab": "SWANLAB_LOG_DIR"}
"""The variable that says where a service keeps its files; one that the user has set stays as it is."""


def check_reporters(names: Sequence[str]) -> None:
    """Raise :class:`UserError` for a service that transformers does not know, or whose package is missing."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"report_to: unknown service '{name}'; {nearest(name, INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise UserError(
                f"report_to: the package for {name} is missing: pip install {_PACKAGES.get(name, name)}, or remove it "
                "from report_to"
            )


def reporters(names: Sequence[str], folder: Path, step: int) -> list[Any]:
    """The callbacks that report a training in ``folder``, which goes on after ``step`` (0: it begins).

    To be made by the first process only. TensorBoard's files lie in ``folder/"tensorboard"``; what an attempt that was
    killed wrote of later steps is dropped there, so that the curve of a training that goes on is one curve.
    """
    made: list[Any] = []
    for name in names:
        if name == _TENSORBOARD:
            from torch.utils.tensorboard import SummaryWriter

            made.append(TensorBoardCallback(SummaryWriter(str(folder / _TENSORBOARD), purge_step=step + 1)))
            continue
        if name in _FOLDERS:
            os.environ.setdefault(_FOLDERS[name], str(folder))
        made.append(INTEGRATION_TO_CALLBACK[name]())
    return made
