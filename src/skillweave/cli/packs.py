"""``skillweave zip``, ``unzip`` and ``inspect``: deltas to packs, packs to models, and what is in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from skillweave.cli.app import app
from skillweave.cli.options import BASE, CONFIG, DEVICE, SET, read_sampling
from skillweave.cli.places import check_apart, check_folder, check_new_folder
from skillweave.errors import UserError
from skillweave.progress import console

if TYPE_CHECKING:
    from skillweave.base import Base, Sampling
    from skillweave.delta import Delta
    from skillweave.skillzip import ZipConfig


@app.command("zip")
def zip_(
    out: Path = typer.Option(..., "--out", "-o", metavar="PACK", help="The skillpack folder to write."),
    base: str = BASE,
    tuned: str = typer.Option(None, "--tuned", "-t", help="A fine-tune of the base: folder, hub id or GGUF file."),
    lora: str = typer.Option(None, "--lora", help="A PEFT adapter of the base: folder or hub id."),
    revision: str = typer.Option(None, "--revision", help="With --lora and a hub id: the branch, tag or commit."),
    subfolder: str = typer.Option(None, "--subfolder", help="With --lora: the folder inside it that has the adapter."),
    delta: Path = typer.Option(None, "--delta", help="A delta folder, as `skillweave specialise` writes it."),
    task: str = typer.Option(None, "--task", help="Prompts with answers, for calibration and --refine."),
    ratio: str = typer.Option(None, "--ratio", help="Size of the pack as a share of the bf16 delta: 1/32."),
    budget: str = typer.Option(None, "--budget", help="Size of the pack in bytes: 8MB."),
    target_retention: float = typer.Option(
        None,
        "--target-retention",
        metavar="SHARE",
        help="Find the smallest pack that keeps this share of the gain on the test prompts of --task: 0.98.",
    ),
    limit: int = typer.Option(
        None, "--limit", min=1, help="With --target-retention: score at most this many prompts (default: all)."
    ),
    max_new_tokens: int = typer.Option(
        None, "--max-new-tokens", min=1, help="With --target-retention: longest answer, in tokens [128]."
    ),
    batch_size: int = typer.Option(
        None, "--batch-size", min=1, help="With --target-retention: prompts that are answered together [32]."
    ),
    name: str = typer.Option(None, "--name", help="The pack's name (default: the name of its folder)."),
    allow_left_out: bool = typer.Option(
        False, "--allow-left-out", help="Make the pack even if more than 5% of the change is left out."
    ),
    refine: bool = typer.Option(
        False, "--refine", help="Tune the factors towards the fine-tune's own answers to the prompts of --task."
    ),
    prefill: str = typer.Option(
        None,
        "--prefill",
        metavar="READER",
        help="backbone: with --refine, train for prompts that the backbone reads, so that all packs share a prefix.",
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

    `skillweave zip -b base/ -t tuned/ --refine --task data.jsonl -o packs/x`

    `skillweave zip -b b/ -t tuned/ --refine --prefill backbone --task t.jsonl -o x`

    `skillweave zip -b b/ -t tuned/ --target-retention 0.98 --task t.jsonl -o x`
    """
    from skillweave.base import open_base
    from skillweave.cli.contents import show_pack
    from skillweave.config import read_config
    from skillweave.delta import Delta
    from skillweave.files.recover import drop
    from skillweave.pack import check_name, is_skillpack
    from skillweave.pack.stored import PARTS
    from skillweave.pipeline.retention import check_settings
    from skillweave.skillzip import ZipConfig, zip_delta
    from skillweave.skillzip.config import check_prefill
    from skillweave.skillzip.refine.config import RefineConfig
    from skillweave.tasks import load_task

    if sum(source is not None for source in (tuned, lora, delta)) != 1:
        raise UserError("give one of --tuned MODEL, --lora ADAPTER and --delta FOLDER")
    if lora is None and (revision or subfolder):
        raise UserError("--revision and --subfolder belong to --lora: name an adapter, or leave them out")
    check_apart(out, base=base, tuned=tuned, lora=lora, delta=delta)
    check_folder(out, is_skillpack, "skillpack", parts=PARTS)
    name = name or out.resolve().name
    try:
        check_name(name)
    except UserError as error:
        raise UserError(f"{error}. Give another with --name.") from error
    scoring = {"--limit": limit, "--max-new-tokens": max_new_tokens, "--batch-size": batch_size}
    if target_retention is None and (unused := [option for option, value in scoring.items() if value is not None]):
        raise UserError(f"{unused[0]} belongs to --target-retention: nothing else of this command scores answers")
    if target_retention is not None and task is None:
        raise UserError(
            "--target-retention needs prompts with a verifier, which say what the fine-tune gained: name a task with "
            "--task. A distance to the fine-tune (KL) cannot stand for it, because it does not say which answers are "
            "still right"
        )
    sizes = [f"{key}={value}" for key, value in (("ratio", ratio), ("budget", budget)) if value is not None]
    allowed = ["allow_left_out=true"] if allow_left_out else []
    reader = [f"prefill={prefill}"] if prefill is not None else []
    settings = read_config(ZipConfig, config, [*overrides, *sizes, *allowed, *reader])
    if refine and settings.refine is None:
        settings = settings.model_copy(update={"refine": RefineConfig()})
    check_prefill(settings)
    if settings.needs_calibration and task is None:
        raise UserError("activation_aware and smoothing need prompts with answers: name a task with --task")
    if settings.refine is not None and task is None:
        raise UserError("refine needs prompts, which the fine-tune answers: name a task with --task")
    if target_retention is not None:
        check_settings(settings, target_retention)
    opened = open_base(base, device=device)
    if tuned is not None:
        change, method = Delta.between(base, tuned), "fine-tune"
    elif lora is not None:
        change, method = Delta.from_lora(lora, opened, revision=revision, subfolder=subfolder), "lora"
    else:
        change, method = Delta.from_pretrained(delta), "delta"
    if target_retention is not None:
        _zip_to_target(
            out,
            opened,
            change,
            settings,
            target_retention,
            task,
            name=name,
            method=method,
            limit=limit,
            sampling=read_sampling(
                max_new_tokens=max_new_tokens, temperature=0.0, top_p=None, seed=0, batch_size=batch_size
            ),
        )
        return
    calibration, prompts, data = None, None, {}
    work = out.resolve().with_name(f"{out.resolve().name}.work")
    if task is not None and (settings.needs_calibration or settings.refine is not None):
        prompted, data = load_task(task), {"calibration": task}
        calibration = prompted.pairs("calibration") if settings.needs_calibration else None
        if settings.refine is not None:
            prompts = prompted.examples(("calibration", "train"), settings.refine.prompts)
    elif task is not None:
        console.print(
            "These settings need no prompts: --task is not used (see activation_aware, smoothing and refine)."
        )
    pack = zip_delta(
        change, opened, calibration, settings, name=name, method=method, data=data, refine_on=prompts, work=work
    )
    if settings.refine is None:
        drop(work)  # before the pack is written: both may not have room on the disk
    pack.save_pretrained(out)
    drop(work)
    show_pack(pack.card, out)


def _zip_to_target(
    out: Path,
    base: Base,
    delta: Delta,
    settings: ZipConfig,
    target: float,
    task: str,
    *,
    name: str,
    method: str,
    limit: int | None,
    sampling: Sampling,
) -> None:
    """Search for the smallest pack that keeps ``target`` of the gain, write it, and show the search."""
    from skillweave.cli import output
    from skillweave.cli.contents import show_pack
    from skillweave.pipeline.retention import zip_to_target
    from skillweave.tasks import load_task

    folder = out.resolve().with_name(f"{out.resolve().name}.search")
    pack, search = zip_to_target(
        delta,
        base,
        load_task(task),
        settings,
        target,
        folder,
        name=name,
        method=method,
        data={"calibration": task},
        limit=limit,
        sampling=sampling,
    )
    pack.save_pretrained(out)
    show_pack(pack.card, out)
    output.out.print(search.table().rich(f"packs that were tried for {target:.1%} of the gain"))
    for note in search.notes():
        output.say(note)
    output.say(
        f"All packs that were tried are in {folder}; another target starts from them. The folder may be deleted."
    )


@app.command()
def unzip(
    pack: Path = typer.Argument(..., help="A skillpack folder."),
    out: Path = typer.Option(..., "--out", "-o", metavar="MODEL", help="The Hugging Face folder to write."),
    base: str = typer.Option(None, "--base", "-b", help="The base, if it is not at the place that the pack names."),
    dtype: str = typer.Option(
        None, "--dtype", help="Dtype of the written weights (default: that of the base; float32 is not rounded)."
    ),
) -> None:
    """Add a pack to its base and write an ordinary Hugging Face model.

    **Examples**

    `skillweave unzip packs/mine -o models/mine`

    `skillweave unzip packs/mine --base ./SmolLM2 --dtype float32 -o models/mine`
    """
    from skillweave.base import Checkpoint, fingerprint, resolve
    from skillweave.cli.output import say
    from skillweave.delta import write_tuned
    from skillweave.pack import Skillpack
    from skillweave.pack.card import READS_ITSELF

    check_apart(out, pack=pack, base=base)
    check_new_folder(out)
    loaded = Skillpack.from_pretrained(pack)
    ref = base or loaded.card.base.ref
    checkpoint = Checkpoint(resolve(ref))
    loaded.check_base(fingerprint(checkpoint), checkpoint.config)
    write_tuned(ref, loaded.unzip(), out, dtype=dtype)
    say(f"Wrote {out}: open it with transformers' from_pretrained.")
    if loaded.card.prefill == "backbone":
        say(READS_ITSELF.format("model"))


@app.command()
def inspect(
    folder: Path = typer.Argument(
        ..., help="A folder: skillpack, weave, delta, PEFT adapter or model. Or a GGUF file or bundled:..."
    ),
    tensors: bool = typer.Option(
        False, "--tensors", help="Also list every tensor of a pack, or the tensors of a delta that are not matrices."
    ),
    base: str = typer.Option(None, "--base", "-b", help="For a delta: its base, if it is not where the delta says."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, for programs."),
) -> None:
    """Show what is in a folder: a pack, a weave, a delta, a PEFT adapter or a model.

    For a delta: what changed, how much compared with the base, and what a pack would leave out. For an adapter: its
    kind, rank and layers, and unusual options. For a model: architecture, size, fingerprint, tokenizer, end tokens, and
    contradictions between its files.

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
    from skillweave.files.recover import settle
    from skillweave.pack import is_skillpack, read_stored
    from skillweave.weave import is_weave, read_card

    if str(folder).startswith("bundled:") or (folder.suffix == ".gguf" and folder.is_file()):
        from skillweave.base import resolve  # needs torch, which a pack does not

        folder = resolve(str(folder))
    settle(folder)
    check_folder(folder, "the folder of a weave, a skillpack, a delta, a PEFT adapter or a model")
    if base is not None and not is_delta(folder):
        raise UserError(f"--base belongs to a delta folder, and {folder} is not one: leave it out")
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

        facts = described(folder, base)
        _as_json(facts) if as_json else show_described(facts, tensors=tensors)
    else:
        raise UserError(
            f"{folder} is neither a weave nor a skillpack, a delta, a PEFT adapter or a model: it does not have a "
            f"weave.json, skillpack.json, delta.json, adapter_config.json or config.json"
        )


def _as_json(values: object) -> None:
    """Print JSON in plain ASCII, which cannot control a terminal."""
    print(json.dumps(values, indent=2))
