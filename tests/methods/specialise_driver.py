"""Run specialise on the digits in a process of its own: ``driver.py BASE OUT SETTINGS_JSON [STAGE STEP]``.

With a stage and a step the process kills itself (SIGKILL) after that step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from digits import Digits
from skillweave.base import open_base
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise import run as package_run  # noqa: F401
from skillweave.methods.training import trainer

run_module = sys.modules["skillweave.methods.specialise.run"]


def main(base: str, out: str, settings: str, stage: str = "", step: str = "0") -> None:
    torch.set_num_threads(1)
    run_module.load_task = lambda spec: Digits()
    shown = trainer._Show.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        shown(self, args, state, control, **kwargs)
        if Path(args.output_dir).name == stage and state.global_step == int(step):
            os.kill(os.getpid(), signal.SIGKILL)

    trainer._Show.on_step_end = on_step_end
    run_module.run(open_base(base, device="cpu"), SpecialiseConfig(**json.loads(settings)), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
