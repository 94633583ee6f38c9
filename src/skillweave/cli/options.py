"""Options that several commands share, so that they have the same words and the same effect."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from skillweave.errors import UserError, nearest

if TYPE_CHECKING:
    from skillweave.base import Sampling


def _defaults_from(context: typer.Context, file: Path | None) -> Path | None:
    """Take the command's defaults from a YAML file; typed options replace them."""
    if file is None:
        return None
    from skillweave.config import read_mapping

    values = read_mapping(file)
    known = [str(option.name) for option in context.command.params if option.name not in ("config", "help")]
    for key in values:
        if key not in known:
            raise UserError(f"{file}: unknown key '{key}'; {nearest(str(key), known)}")
    for option in context.command.params:  # a repeatable option may have a single value in the file
        name, several = str(option.name), getattr(option, "multiple", False)
        value = values.get(name)
        given = value if several and isinstance(value, list) else [value]
        for one in given:
            _check_default(one, f"{file}: {name}", is_flag=getattr(option, "is_flag", False))
        if several and value is not None:
            values[name] = given
    context.default_map = {**(context.default_map or {}), **values}
    return file


def _check_default(value: object, where: str, *, is_flag: bool) -> None:
    """Raise :class:`UserError` for a value of the file that an option would take for something else."""
    if isinstance(value, bool) and not is_flag:
        raise UserError(f"{where} is true or false in YAML (also yes, no, on, off): put a text in quotes")
    if not isinstance(value, str | int | float | None):
        raise UserError(f"{where} must be one value, found {type(value).__name__}")


BASE = typer.Option(..., "--base", "-b", help="Hugging Face folder, hub id, GGUF file or bundled:smollm2.")
BASE_OR_FILE = typer.Option(None, "--base", "-b", help="Hugging Face folder, hub id, GGUF file or bundled:smollm2.")
CONFIG = typer.Option(None, "--config", "-c", help="A YAML file with the settings.")
DEFAULTS = typer.Option(
    None,
    "--config",
    "-c",
    callback=_defaults_from,
    is_eager=True,
    help="A YAML file with these arguments and options, for example `max_new_tokens: 64`.",
)
SET = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="Override one setting: `seed=1`. Repeatable.")
DEVICE = typer.Option(None, "--device", help="Where to compute, for example cpu or cuda:0.")
DTYPE = typer.Option(
    None,
    "--dtype",
    help="Dtype of the weights in memory: bfloat16, float32, float16, or auto: the dtype of the files if the device "
    "computes it, else float32.",
)
BACKBONE = typer.Option(
    None,
    "--backbone",
    help="int8: the base's linear layers in int8, half the bytes of bfloat16; dtype: as --dtype says, also for a weave "
    "that is served in int8 by default.",
)
TEMPERATURE = typer.Option(0.0, "--temperature", min=0.0, help="0 is greedy: always the most likely token.")
TOP_P = typer.Option(
    None, "--top-p", min=0.0, max=1.0, help="Draw from the most likely tokens that together reach this probability [1]."
)
SEED = typer.Option(
    0, "--seed", min=0, max=2**63 - 1, help="The seed of all random draws: the same seed gives the same answers."
)


def read_sampling(
    *,
    max_new_tokens: int | None,
    temperature: float,
    top_p: float | None,
    seed: int,
    batch_size: int | None,
    samples: int = 1,
    model_defaults: bool = False,
) -> Sampling:
    """The sampling settings from typed options. Raises :class:`UserError` if an option would have no effect."""
    if not math.isfinite(temperature):
        raise UserError(f"--temperature {temperature} is not a finite number: set one from 0 to about 2")
    if model_defaults and (temperature or top_p is not None):
        raise UserError("--model-defaults takes both from the model's own file: leave out --temperature and --top-p")
    if temperature == 0 and samples > 1 and not model_defaults:
        raise UserError(
            f"--samples {samples} at temperature 0 would give the same answer {samples} times: set --temperature, for "
            "example --temperature 0.8"
        )
    if temperature == 0 and top_p is not None:
        raise UserError("--top-p has no effect at temperature 0: set --temperature, for example --temperature 0.8")
    if top_p == 0:
        raise UserError("--top-p 0 leaves no token to draw: set more than 0, or leave out --temperature (greedy)")
    from skillweave.base import Sampling

    return Sampling(
        max_new_tokens or 128,
        temperature,
        1.0 if top_p is None else top_p,
        batch_size=batch_size or 32,
        seed=seed,
        model_defaults=model_defaults,
    )


def named_values(given: list[str], option: str, form: str) -> dict[str, str]:
    """Return the mapping that ``NAME=VALUE`` options mean. Raises :class:`UserError`, which says ``write FORM``."""
    pairs = [text.partition("=") for text in given]
    for name, sign, value in pairs:
        if not (name and sign and value):
            raise UserError(f"{option} {name}{sign}{value}: write {form}")
        if sum(one == name for one, _, _ in pairs) > 1:
            raise UserError(f"{option} names '{name}' twice: keep one of the values")
    return {name: value for name, _, value in pairs}
