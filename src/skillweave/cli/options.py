"""Options that several commands share, so that they read and work alike."""

from __future__ import annotations

import typer

BASE = typer.Option(..., "--base", "-b", help="Hugging Face folder, hub id, GGUF file or bundled:smollm2.")
CONFIG = typer.Option(None, "--config", "-c", help="A YAML file with the settings.")
SET = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="Override one setting, as `seed=1`. Repeatable.")
DEVICE = typer.Option(None, "--device", help="Where to compute, as cpu or cuda:0.")
DTYPE = typer.Option(None, "--dtype", help="Type of the weights in memory, as bfloat16 or float32.")
