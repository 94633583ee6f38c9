"""Options that several commands share, so that they read and work alike."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.errors import UserError, nearest


def _defaults_from(context: typer.Context, file: Path | None) -> Path | None:
    """Take the command's defaults from a YAML file; what is typed wins over them."""
    if file is None:
        return None
    from skillweave.config import read_mapping

    values = read_mapping(file)
    known = [str(option.name) for option in context.command.params if option.name not in ("config", "help")]
    for key in values:
        if key not in known:
            raise UserError(f"{file}: unknown key '{key}'; {nearest(str(key), known)}")
    context.default_map = {**(context.default_map or {}), **values}
    return file


BASE = typer.Option(..., "--base", "-b", help="Hugging Face folder, hub id, GGUF file or bundled:smollm2.")
BASE_OR_FILE = typer.Option(None, "--base", "-b", help="Hugging Face folder, hub id, GGUF file or bundled:smollm2.")
CONFIG = typer.Option(None, "--config", "-c", help="A YAML file with the settings.")
DEFAULTS = typer.Option(
    None,
    "--config",
    "-c",
    callback=_defaults_from,
    is_eager=True,
    help="A YAML file with these arguments and options, as `max_new_tokens: 64`.",
)
SET = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="Override one setting, as `seed=1`. Repeatable.")
DEVICE = typer.Option(None, "--device", help="Where to compute, as cpu or cuda:0.")
DTYPE = typer.Option(
    None,
    "--dtype",
    help="Type of the weights in memory: bfloat16, float32, float16, or auto: as the files hold them where the device "
    "computes that, else float32.",
)
