"""``skillweave export``: write packs in the formats of other tools."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.places import check_apart, check_new_folder

export = typer.Typer(name="export", help="Write packs in the format of another tool.", no_args_is_help=True)
app.add_typer(export)


@export.command("lora")
def lora(
    pack: Path = typer.Argument(..., help="A skillpack folder."),
    out: Path = typer.Argument(..., help="The adapter folder to write."),
    base: str = typer.Option(None, "--base", "-b", help="The base, if it is not at the place that the pack names."),
    dtype: str = typer.Option("float32", "--dtype", help="Type of the factors: float32 (exact), bfloat16, float16."),
    lora_only: bool = typer.Option(
        False, "--lora-only", help="Leave out norms, biases and embeddings: vLLM loads only factors."
    ),
    keep_ranks: bool = typer.Option(
        False, "--keep-ranks", help="Give each layer its own rank: smaller, but vLLM reads one rank for all."
    ),
    allow_left_out: bool = typer.Option(
        False, "--allow-left-out", help="Write the adapter even if more than 5% of the change is left out."
    ),
) -> None:
    """Write a pack as a PEFT LoRA adapter, which PEFT, vLLM and LoRAX load.

    The factors of the pack become the factors of the adapter, at scale 1. Tensors that LoRA cannot express are stored
    as PEFT stores them; those that no adapter can have are named, with their share of the change.

    **Examples**

    `skillweave export lora packs/mine adapters/mine`

    `skillweave export lora packs/mine adapters/mine --lora-only --dtype bfloat16`
    """
    from skillweave.base.open import as_dtype
    from skillweave.cli.output import say
    from skillweave.errors import UserError
    from skillweave.pack import Skillpack, export_lora
    from skillweave.pack.card import READS_ITSELF
    from skillweave.pack.to_lora import VLLM_RANKS

    check_apart(out, called="OUT", pack=pack, base=base)
    check_new_folder(out, called="OUT")
    if (wanted := as_dtype(dtype)) is None:
        raise UserError("--dtype auto has no meaning here: choose float32, bfloat16 or float16")
    loaded = Skillpack.from_pretrained(pack)
    done = export_lora(
        loaded,
        out,
        base=base,
        dtype=wanted,
        lora_only=lora_only,
        keep_ranks=keep_ranks,
        allow_left_out=allow_left_out,
    )
    lines = [f"Wrote {out}: LoRA of rank {done.rank} on {done.modules} layers."]
    if done.rounding:
        lines.append(f"In {dtype} the change is {done.rounding:.1e} off the pack's, relative to its norm.")
    if done.saved:
        lines.append(
            f"Beside the factors: {_listed(done.saved)}. PEFT loads them, vLLM does not: for vLLM, say --lora-only."
        )
    elif not keep_ranks:
        least = next((rank for rank in VLLM_RANKS if rank >= done.rank), None)
        lines.append(f"vLLM needs --max-lora-rank {least}." if least else "The rank is more than vLLM allows (512).")
    if keep_ranks:
        lines.append("Ranks differ from layer to layer: PEFT loads them, vLLM does not.")
    if done.rows is not None:
        lines.append(
            f"The pack changes the number of token rows: call model.resize_token_embeddings({done.rows}) on the base "
            f"before PeftModel.from_pretrained."
        )
    if done.left_out:
        share = sum(done.left_out.values())
        lines.append(f"Left out: {_listed(sorted(done.left_out))}, {share:.2%} of the change (of its squared norm).")
    if loaded.card.prefill == "backbone":
        lines.append(READS_ITSELF.format("adapter"))
    for line in lines:
        say(line)


@export.command("vllm")
def vllm(
    weave: Path = typer.Argument(..., help="A weave folder."),
    out: Path = typer.Argument(..., help="The folder to write; it must be new or empty."),
    base: str = typer.Option(None, "--base", "-b", help="The base, if it is not at the place that the weave names."),
    packs: list[str] = typer.Option([], "--pack", "-p", help="Write only this pack (repeatable)."),
    max_rank: int = typer.Option(
        512, "--max-rank", help="The highest rank of an adapter: 1, 8, 16, 32, 64, 128, 256, 320 or 512."
    ),
    allow_left_out: bool = typer.Option(
        False, "--allow-left-out", help="Write an adapter even if it loses more than 5% of its pack's change."
    ),
    kl: bool = typer.Option(
        False, "--kl", help="Also measure a loss as KL along a text, which opens the base in float32."
    ),
) -> None:
    """Write a weave as a folder that vLLM serves.

    The backbone becomes an ordinary Hugging Face model, and each pack a PEFT adapter. An adapter does exactly what its
    pack does if the pack's ranks are not above --max-rank, and if the pack changes only matrices. What is lost is
    printed, with its share of the change.

    **Examples**

    `skillweave export vllm runs/demo served/demo`

    `skillweave export vllm runs/demo served/demo -p json_calls --max-rank 16`
    """
    from skillweave.cli.output import out as console
    from skillweave.cli.output import say
    from skillweave.engine.vllm.export import export_vllm, launch_line, shown_loss

    check_apart(out, called="OUT", weave=weave, base=base)
    check_new_folder(out, called="OUT")
    folder = export_vllm(
        weave, out, base=base, packs=packs or None, max_rank=max_rank, allow_left_out=allow_left_out, kl=kl
    )
    say(f"Wrote {out}: the backbone, and {len(folder.card.packs)} adapters.")
    for name, adapter in folder.card.packs.items():
        say(f"  {name}: rank {adapter.rank}, {shown_loss(adapter)}.")
    say(f"vLLM serves with {folder.card.dtype} and rounds the factors, which are float32 in the files, to that.")
    say("Start it with")
    console.print(launch_line(folder.path, folder.card), soft_wrap=True, markup=False, highlight=False)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
