"""Write a weave as a folder that vLLM serves: the backbone as a Hugging Face model, each pack as a PEFT adapter."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from skillweave.artefact import atomic_folder, write_json, write_text
from skillweave.base import open_base, prompt_ids
from skillweave.base.sizes import context_length
from skillweave.delta import Delta, write_tuned
from skillweave.delta.schema import BaseRef
from skillweave.engine.vllm.folder import (
    ADAPTERS_FOLDER,
    BASE_FOLDER,
    SERVE_FILE,
    AdapterRef,
    ServeCard,
    VllmFolder,
    server_arguments,
)
from skillweave.engine.vllm.proof import PROBE
from skillweave.errors import UserError, nearest, shown_value
from skillweave.pack import Skillpack, export_lora
from skillweave.pack.left_out import named_shares
from skillweave.pack.to_lora import VLLM_RANKS
from skillweave.weave.backbone import read_backbone
from skillweave.weave.card import read_card
from skillweave.weave.parts import read_pack


def export_vllm(
    weave: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    packs: Sequence[str] | None = None,
    max_rank: int = VLLM_RANKS[-1],
    allow_left_out: bool = False,
    kl: bool = False,
) -> VllmFolder:
    """Write the folder ``out`` (replaced whole, atomically) from the weave in the folder ``weave``; return it.

    - ``base``: the place of the base, if it is not where the weave says
    - ``packs``: the names of the packs to write; None: all
    - ``max_rank``: one of :data:`VLLM_RANKS`. A pack whose ranks are not above it becomes an adapter that does exactly
      what the pack does, in float32; any other becomes the nearest adapter of this rank.
    - ``kl``: for each adapter that loses a part of its pack's change, measure what this costs along a text. It opens
      the base twice in float32.

    An adapter holds no norms, no embeddings and no added tokens. Raises :class:`UserError`, unless ``allow_left_out``,
    if a pack loses more than 5% of its change; also for another base, an unknown pack, and a rank that vLLM does not
    take.
    """
    weave, out = Path(weave), Path(out)
    card = read_card(weave)
    if max_rank not in VLLM_RANKS:
        raise UserError(f"vLLM takes no --max-lora-rank {max_rank}: choose one of {', '.join(map(str, VLLM_RANKS))}")
    names = list(dict.fromkeys(card.packs if packs is None else packs))
    for name in names:
        if name not in card.packs:
            raise UserError(f"the weave in {weave} has no pack {shown_value(name)}; {nearest(name, card.packs)}")
    ref = str(base or card.base.ref)
    plain = Delta({}, base_fingerprint=card.base.fingerprint, base_ref=ref)
    with atomic_folder(out) as temporary:
        write_tuned(ref, plain if card.backbone is None else read_backbone(weave, card), temporary / BASE_FOLDER)
        adapters = {}
        for name in names:
            pack = read_pack(weave, card, name)
            done = export_lora(
                pack,
                temporary / ADAPTERS_FOLDER / name,
                base=temporary / BASE_FOLDER,
                dtype=torch.float32,
                lora_only=True,
                max_rank=max_rank,
                allow_left_out=allow_left_out,
            )
            adapters[name] = AdapterRef(rank=done.rank, digest=pack.digest, left_out=done.left_out, cut=done.cut)
            if kl and adapters[name].missing:
                adapters[name].kl = divergence(pack, done.folder, temporary / BASE_FOLDER)
        largest = max((one.rank for one in adapters.values()), default=1)
        written = ServeCard(
            weave=str(weave.resolve()),
            base=BaseRef(ref=card.base.ref, fingerprint=(card.backbone or card.base).fingerprint),
            dtype=card.dtype or "auto",
            max_lora_rank=next(rank for rank in VLLM_RANKS if rank >= largest),
            packs=adapters,
        )
        write_json(temporary / SERVE_FILE, written.model_dump(mode="json"))
        write_text(temporary / "README.md", _readme(out, written))
    return VllmFolder(out)


def launch_line(folder: Path, card: ServeCard) -> str:
    """Return the shell command that starts vLLM with an exported folder, and lets it load adapters later."""
    arguments = ["python", "-m", "vllm.entrypoints.openai.api_server", *server_arguments(folder, card)]
    return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 {shlex.join(arguments)}"


def shown_loss(adapter: AdapterRef) -> str:
    """Return what an adapter has of its pack's change, as words for a person."""
    words = []
    if adapter.cut:
        words.append(f"{sum(adapter.cut.values()):.2%} lost to the highest rank: {named_shares(adapter.cut)}")
    if adapter.left_out:
        words.append(f"{sum(adapter.left_out.values()):.2%} left out: {named_shares(adapter.left_out)}")
    if adapter.kl is not None:
        words.append(f"KL along a text {adapter.kl:.2g} nats per token")
    return "; ".join(words) or "the whole change"


@torch.no_grad()
def divergence(pack: Skillpack, adapter: Path, base: Path) -> float:
    """Return KL(pack || adapter) of the next token along a probe text, in nats per token, computed in float32.

    It is taken over the tokens of the base, which are all that the adapter can write.
    """
    # The adapter names its base as the pack does, and not the copy of it here.
    opened = replace(open_base(base, dtype="float32", device="cpu"), ref=pack.card.base.ref)
    ids = torch.tensor([prompt_ids(opened.tokenizer, PROBE)])[:, : context_length(opened.model)]
    probabilities = []
    for delta in (pack.unzip(), Delta.from_lora(adapter, opened)):
        logits = delta.apply(opened).model(input_ids=ids).logits[0, :, : len(opened.tokenizer)]
        probabilities.append(logits.double().log_softmax(-1))
    own, other = probabilities
    return float((own.exp() * (own - other)).sum(-1).mean())


def _readme(out: Path, card: ServeCard) -> str:
    rows = "\n".join(f"| {name} | {one.rank} | {shown_loss(one)} |" for name, one in card.packs.items())
    return f"""# {out.name}: a weave for vLLM

Written by `skillweave export vllm` from {card.weave}, on the base {card.base.ref}.

- `base/` is the backbone, an ordinary Hugging Face model.
- `adapters/NAME/` is the pack NAME as a PEFT adapter.
- `serve.json` names them, and what each adapter lost.

| pack | rank | what the adapter has of the pack's change (shares are of its squared norm) |
|---|---|---|
{rows}

Start vLLM with

```
{launch_line(out.resolve(), card)}
```

Requests then name a pack, or `skillweave/base`, as their `model`. vLLM rounds the factors, which are float32 here, to
the dtype that it serves in.
"""
