"""The local engine: it opens whatever the user names as a weave in this process."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from transformers import TextStreamer

from skillweave.base import Base, Prompt, Sampling, open_base
from skillweave.delta import Delta, is_delta
from skillweave.delta.config_values import recorded_values
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.pack import Skillpack, is_skillpack
from skillweave.progress import console
from skillweave.report.machine import versions
from skillweave.terminal import for_file
from skillweave.weave import AUTO, BASE, Reply, Request, Weave, is_weave, put_into_int8
from skillweave.weave.int8 import has_int8
from skillweave.weave.int8_backbone import INT8, check_form


class _ToFile(TextStreamer):
    """Writes decoded text to a file object while it is generated."""

    def __init__(self, tokenizer, file: TextIO, stops: Collection[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._file, self._stops = file, stops

    def put(self, value: torch.Tensor) -> None:
        # Decoding does not skip every end token.
        if self.next_tokens_are_prompt or value.tolist()[-1] not in self._stops:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._file.write(for_file(text, self._file) + ("\n" if stream_end else ""))
        self._file.flush()


@dataclass(frozen=True)
class LocalEngine:
    """An open weave, and ``default``: the pack that answers when the user names none.

    A pack is a name, :data:`~skillweave.weave.AUTO` (the router chooses), or None for the plain base.
    """

    weave: Weave
    default: str | None

    def pack_named(self, name: str | None) -> str | None:
        """The pack that a user's option means: ``base`` is the plain base, a missing option is :attr:`default`."""
        if name is None:
            return self.default
        return None if name == BASE else name

    @property
    def key(self) -> str:
        """A digest of what decides its answers: weights, dtype, settings, tokenizer, packs, router and versions."""
        weave = self.weave
        base = weave.base
        # The card of a weave in a folder has the hashes of its packs; to digest a pack is to read it again.
        packs = [] if weave.card.files else [weave.shelf.digest(name) for name in weave.loaded]
        form = [str(base.model.dtype), has_int8(base.model)]
        settings = [recorded_values(base.model.config), base.model.generation_config.to_dict()]
        backend = getattr(base.tokenizer, "backend_tokenizer", None)
        vocabulary = sorted(base.tokenizer.get_vocab().items()) if backend is None else backend.to_str()
        own = [base.fingerprint, form, settings, vocabulary, base.tokenizer.chat_template]
        return digest([own, weave.card.model_dump(mode="json"), packs, versions()])

    def stream(self, prompt: Prompt, pack: str | None, sampling: Sampling, file: TextIO) -> Reply:
        """Answer one prompt and write the text to ``file`` while it is generated.

        If the router chooses the pack, a note on the console says which.
        """
        route = self.weave.choose([prompt], [pack])[0]
        if route.confidence is not None:
            console.print(f"route: {route.pack or BASE} ({100 * route.confidence:.0f}%)", style="dim")
        voice = self.weave.voice(route.pack)
        streamer = _ToFile(voice.tokenizer, file, voice.stops(self.weave.base.model))
        return self.weave.answer([Request(prompt, route.pack, sampling)], streamer=streamer)[0]


def open_engine(
    target: str,
    *,
    base: str | None = None,
    dtype: str | None = None,
    backbone: str | None = None,
    device: str | None = None,
    require_audit: bool = False,
) -> LocalEngine:
    """Open a weave, skillpack or delta folder, or a model by any reference that ``open_base`` takes.

    A weave answers through its router, the folder of a pack with that pack, everything else as it is. ``base`` replaces
    the base that an artefact names, if that base lies elsewhere. ``require_audit`` refuses packs without an audit or
    with an alarm, and whatever has no card that could hold one. ``backbone`` is "int8" for linear layers in int8, as in
    :meth:`Weave.from_pretrained`. Raises :class:`UserError`.
    """
    check_form(backbone)
    folder = Path(target)
    if is_weave(folder):
        weave = Weave.from_pretrained(
            folder, base=base, dtype=dtype, backbone=backbone, device=device, require_audit=require_audit
        )
        return LocalEngine(weave, AUTO if weave.router is not None else None)
    if is_skillpack(folder):
        pack = Skillpack.from_pretrained(folder)
        if require_audit:
            pack.check_audit()
        opened = open_base(base or pack.card.base.ref, dtype=dtype, device=device)
        pack.check_base(opened.fingerprint)
        return LocalEngine(Weave.of(_served(opened, backbone), {pack.card.name: pack}), pack.card.name)
    if require_audit:
        raise UserError(f"audits are on the cards of packs, and {target} is no pack and no weave: zip it, and audit it")
    if is_delta(folder):
        delta = Delta.from_pretrained(folder)
        return LocalEngine(Weave.of(_served(_tuned(delta, base, dtype, device), backbone)), None)
    if base is not None:
        raise UserError(f"--base goes with a weave, pack or delta folder; {target} is none of them")
    return LocalEngine(Weave.of(_served(open_base(target, dtype=dtype, device=device), backbone)), None)


def _served(base: Base, backbone: str | None) -> Base:
    return put_into_int8(base) if backbone == INT8 else base


def _tuned(delta: Delta, base: str | None, dtype: str | None, device: str | None) -> Base:
    # float32 by default, so that the sum of base and delta is not rounded back to the base's dtype.
    opened = open_base(base or delta.base_ref, dtype=dtype or "float32", device=device)
    return delta.apply(opened, in_place=True)
