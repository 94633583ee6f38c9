"""``skillweave zip``, ``unzip`` and ``inspect``: deltas into packs, packs into models, and what is in them."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.options import BASE, CONFIG, DEVICE, SET
from skillweave.cli.places import check_apart, check_folder, check_new_folder
from skillweave.errors import UserError
from skillweave.progress import console


@app.command("zip")
def zip_(
    out: Path = typer.Option(..., "--out", "-o", metavar="PACK", help="The skillpack folder to write."),
    base: str = BASE,
    tuned: str = typer.Option(None, "--tuned", "-t", help="A fine-tune of the base: folder, hub id or GGUF file."),
    lora: Path = typer.Option(None, "--lora", help="A PEFT LoRA adapter folder."),
    delta: Path = typer.Option(None, "--delta", help="A delta folder, as `skillweave specialise` leaves one."),
    task: str = typer.Option(None, "--task", help="For settings that need calibration: prompts with answers."),
    ratio: str = typer.Option(None, "--ratio", help="Pack bytes over bf16 delta bytes, as 1/32."),
    budget: str = typer.Option(None, "--budget", help="Pack bytes, as 8MB."),
    name: str = typer.Option(None, "--name", help="The pack's name (the folder's by default)."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Turn a fine-tune you already have, a PEFT adapter or a delta into a skillpack.

    **Examples**

    `skillweave zip -b bundled:smollm2 --tuned finetune/ --ratio 1/64 -o packs/x`

    `skillweave zip -b bundled:smollm2 --lora adapter/ -o packs/x`

    `skillweave zip -b bundled:smollm2 --delta run/delta --budget 8MB -o packs/x`
    """
    from skillweave.base import open_base
    from skillweave.cli.contents import show_pack
    from skillweave.config import read_config
    from skillweave.delta import Delta
    from skillweave.pack import check_name, is_skillpack
    from skillweave.skillzip import ZipConfig, zip_delta
    from skillweave.tasks import load_task

    if sum(source is not None for source in (tuned, lora, delta)) != 1:
        raise UserError("name one of --tuned MODEL, --lora ADAPTER and --delta FOLDER")
    check_apart(out, base=base, tuned=tuned, lora=lora, delta=delta)
    check_folder(out, is_skillpack, "skillpack")
    name = name or out.resolve().name
    try:
        check_name(name)
    except UserError as error:
        raise UserError(f"{error}. Give another with --name.") from error
    sizes = [f"{key}={value}" for key, value in (("ratio", ratio), ("budget", budget)) if value is not None]
    settings = read_config(ZipConfig, config, [*overrides, *sizes])
    if settings.needs_calibration and task is None:
        raise UserError("activation_aware and smoothing need prompts with answers: name a task with --task")
    opened = open_base(base, device=device)
    if tuned is not None:
        change, method = Delta.between(base, tuned), "fine-tune"
    elif lora is not None:
        change, method = Delta.from_lora(lora, opened), "lora"
    else:
        change, method = Delta.from_pretrained(delta), "delta"
    calibration, data = None, {}
    if settings.needs_calibration and task is not None:
        calibration, data = load_task(task).pairs("calibration"), {"calibration": task}
    elif task is not None:
        console.print("These settings need no calibration: --task is not used (see activation_aware and smoothing).")
    pack = zip_delta(change, opened, calibration, settings, name=name, method=method, data=data)
    pack.save_pretrained(out)
    show_pack(pack.card, out)


@app.command()
def unzip(
    pack: Path = typer.Argument(..., help="A skillpack folder."),
    out: Path = typer.Option(..., "--out", "-o", metavar="MODEL", help="The Hugging Face folder to write."),
    base: str = typer.Option(None, "--base", "-b", help="The base, where it is not at the place the pack names."),
    dtype: str = typer.Option(
        None, "--dtype", help="Type of the written weights (float32: not rounded to the base's)."
    ),
) -> None:
    """Lay a pack on its base and write an ordinary Hugging Face model.

    **Examples**

    `skillweave unzip packs/mine -o models/mine`

    `skillweave unzip packs/mine --base ./SmolLM2 --dtype float32 -o models/mine`
    """
    from skillweave.cli.contents import out as terminal
    from skillweave.delta import write_tuned
    from skillweave.pack import Skillpack

    check_apart(out, pack=pack, base=base)
    check_new_folder(out)
    loaded = Skillpack.from_pretrained(pack)
    write_tuned(base or loaded.card.base.ref, loaded.unzip(), out, dtype=dtype)
    terminal.print(f"Wrote {out}: open it with transformers' from_pretrained.", soft_wrap=True)


@app.command()
def inspect(
    folder: Path = typer.Argument(..., help="A skillpack or weave folder."),
    tensors: bool = typer.Option(False, "--tensors", help="List every tensor of a pack."),
) -> None:
    """Show what is in a pack or a weave: base, method, scores, bytes by part.

    **Examples**

    `skillweave inspect runs/demo`

    `skillweave inspect runs/demo/packs/json_calls --tensors`
    """
    from skillweave.cli.contents import show_pack, show_weave
    from skillweave.pack import is_skillpack, read_stored
    from skillweave.weave import is_weave, read_card

    if is_weave(folder):
        show_weave(read_card(folder), folder)
    elif not is_skillpack(folder):
        raise UserError(f"{folder} is neither a weave nor a skillpack: it has no weave.json and no skillpack.json")
    else:
        show_pack(read_stored(folder)[0], folder, tensors=tensors)
