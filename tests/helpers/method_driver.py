"""Interrupt a run of a method in the middle, or start it in processes of its own, which can be killed or be several.

As a script: ``method_driver.py METHOD BASE OUT SETTINGS_JSON [STAGE STEP]``; with a stage and a step the process kills
itself (SIGKILL) after that step.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.digits import Digits, Repeats

TASKS = {"specialise": Digits, "tpaw": Repeats}
"""The tasks of the methods that learn from one. A method that learns from files names them in its settings."""


def drive(method: str, base: Path, out: Path, settings: dict[str, Any], *more: str, processes: int = 1) -> int:
    """Run the method in processes of its own, with ``torchrun`` if there are several; returns the exit status."""
    return launch(__file__, method, str(base), str(out), json.dumps(settings), *more, processes=processes).returncode


def launch(script: str, *arguments: str, processes: int) -> subprocess.CompletedProcess[bytes]:
    """Run a script of the tests, with ``torchrun`` if there are several processes."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent / 'src'}:{tests}", "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] * (processes > 1)
    return subprocess.run([sys.executable, *torchrun, script, *arguments], env=environment, capture_output=True)


def at_step(patch: pytest.MonkeyPatch, stage: str, step: int, act: Callable[[], None]) -> None:
    """Make a training call ``act`` at the end of one step of one stage."""
    from skillweave.methods.training import trainer

    shown = trainer._Show.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        shown(self, args, state, control, **kwargs)
        if Path(args.output_dir).name == stage and state.global_step == step:
            act()

    patch.setattr(trainer._Show, "on_step_end", on_step_end)


def stop_at(patch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Interrupt a training at the end of one step of one stage, as Ctrl-C does."""

    def stop() -> None:
        raise KeyboardInterrupt

    at_step(patch, stage, step, stop)


def note_starts(patch: pytest.MonkeyPatch, began: list[tuple[str, int]]) -> None:
    """Make every training append its stage and the step at which it starts or resumes to ``began``."""
    from skillweave.methods.training import trainer

    shown = trainer._Show.on_train_begin

    def on_train_begin(self, args, state, control, **kwargs):
        began.append((Path(args.output_dir).name, state.global_step))
        shown(self, args, state, control, **kwargs)

    patch.setattr(trainer._Show, "on_train_begin", on_train_begin)


def main(method: str, base: str, out: str, settings: str, stage: str = "", step: str = "0") -> None:
    from skillweave.base import open_base
    from skillweave.methods import get_method

    torch.set_num_threads(1)
    atexit.register(_fail_if_still_joined)
    chosen = get_method(method)
    if method in TASKS:
        importlib.import_module(chosen.module).load_task = lambda spec: TASKS[method]()
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, stage, int(step), lambda: os.kill(os.getpid(), signal.SIGKILL))
        chosen.run(open_base(base, device="cpu"), chosen.config(**json.loads(settings)), Path(out))


def _fail_if_still_joined() -> None:
    """End the process with status 3 if it did not leave the others: gloo's threads may then abort it, now and then."""
    if torch.distributed.is_initialized():
        os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
