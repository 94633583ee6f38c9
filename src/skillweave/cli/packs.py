"""``skillweave zip``, ``unzip`` and ``inspect``: deltas into packs, packs into models, and what is in them."""

from __future__ import annotations

import json
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
    lora: str = typer.Option(None, "--lora", help="A PEFT adapter of the base: folder or hub id."),
    revision: str = typer.Option(None, "--revision", help="With --lora and a hub id: a branch, tag or commit."),
    subfolder: str = typer.Option(None, "--subfolder", help="With --lora: the folder inside that holds the adapter."),
    delta: Path = typer.Option(None, "--delta", help="A delta folder, as `skillweave specialise` leaves one."),
    task: str = typer.Option(None, "--task", help="For settings that need calibration: prompts with answers."),
    ratio: str = typer.Option(None, "--ratio", help="Pack bytes over bf16 delta bytes, as 1/32."),
    budget: str = typer.Option(None, "--budget", help="Pack bytes, as 8MB."),
    name: str = typer.Option(None, "--name", help="The pack's name (the folder's by default)."),
    allow_left_out: bool = typer.Option(
        False, "--allow-left-out", help="Make the pack even if more than 5% of the change is left out of it."
    ),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Turn a fine-tune you already have, a PEFT adapter or a delta into a skillpack.

    **Examples**

    `skillweave zip -b bundled:smollm2 --tuned finetune/ --ratio 1/64 -o packs/x`

    `skillweave zip -b bundled:smollm2 --lora adapter/ -o packs/x`

    `skillweave zip -b ./SmolLM2 --lora owner/name --subfolder epoch-3 -o packs/x`

    `skillweave zip -b bundled:smollm2 --delta run/delta --budget 8MB -o packs/x`

    `skillweave zip -b base/ -t tuned/ --budget 1MB --allow-left-out -o packs/x`
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
    if lora is None and (revision or subfolder):
        raise UserError("--revision and --subfolder belong to --lora: name an adapter, or leave them out")
    check_apart(out, base=base, tuned=tuned, lora=lora, delta=delta)
    check_folder(out, is_skillpack, "skillpack")
    name = name or out.resolve().name
    try:
        check_name(name)
    except UserError as error:
        raise UserError(f"{error}. Give another with --name.") from error
    sizes = [f"{key}={value}" for key, value in (("ratio", ratio), ("budget", budget)) if value is not None]
    allowed = ["allow_left_out=true"] if allow_left_out else []
    settings = read_config(ZipConfig, config, [*overrides, *sizes, *allowed])
    if settings.needs_calibration and task is None:
        raise UserError("activation_aware and smoothing need prompts with answers: name a task with --task")
    opened = open_base(base, device=device)
    if tuned is not None:
        change, method = Delta.between(base, tuned), "fine-tune"
    elif lora is not None:
        change, method = Delta.from_lora(lora, opened, revision=revision, subfolder=subfolder), "lora"
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
    folder: Path = typer.Argument(
        ..., help="A skillpack, weave, delta, PEFT adapter or model folder; a GGUF file or bundled:... too."
    ),
    tensors: bool = typer.Option(
        False, "--tensors", help="List every tensor of a pack; of a delta, those that are no matrices."
    ),
    base: str = typer.Option(None, "--base", "-b", help="For a delta: its base, where it lies elsewhere."),
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead."),
) -> None:
    """Show what is in a folder: a pack, a weave, a delta, a PEFT adapter or a model.

    Of a delta: what changed, how much against the base, and what a pack would leave out. Of an adapter: its kind, rank
    and layers, and what is unusual. Of a model: architecture, size, fingerprint, tokenizer, end tokens, and what in the
    folder contradicts itself.

    **Examples**

    `skillweave inspect runs/demo`

    `skillweave inspect runs/demo/packs/json_calls --tensors`

    `skillweave inspect run/delta --base ./SmolLM2`

    `skillweave inspect adapter/ --json`

    `skillweave inspect model-F16.gguf`
    """
    from skillweave.cli.contents import show_pack, show_weave
    from skillweave.delta.schema import is_delta
    from skillweave.files.read import check_folder
    from skillweave.pack import is_skillpack, read_stored
    from skillweave.weave import is_weave, read_card

    if str(folder).startswith("bundled:") or (folder.suffix == ".gguf" and folder.is_file()):
        from skillweave.base import resolve  # needs torch, for which showing a pack does not wait

        folder = resolve(str(folder))
    check_folder(folder, "the folder of a weave, a skillpack, a delta, a PEFT adapter or a model")
    if base is not None and not is_delta(folder):
        raise UserError(f"--base goes with a delta folder; {folder} is none")
    if is_weave(folder):
        weave = read_card(folder)
        _as_json({"kind": "weave", **weave.model_dump(mode="json")}) if as_json else show_weave(weave, folder)
    elif is_skillpack(folder):
        pack = read_stored(folder)[0]
        if as_json:
            _as_json({"kind": "skillpack", **pack.model_dump(mode="json")})
        else:
            show_pack(pack, folder, tensors=tensors)
    elif is_delta(folder) or any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        from skillweave.cli.described import described, show_described

        found = described(folder, base)
        _as_json(found) if as_json else show_described(found, tensors=tensors)
    else:
        raise UserError(
            f"{folder} is neither a weave nor a skillpack, a delta, a PEFT adapter or a model: it has no weave.json, "
            f"skillpack.json, delta.json, adapter_config.json or config.json"
        )


def _as_json(values: object) -> None:
    """Print JSON in plain ASCII: nothing in it can steer a terminal."""
    print(json.dumps(values, indent=2))
