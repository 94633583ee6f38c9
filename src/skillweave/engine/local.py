"""The local engine: whatever was named is opened as a weave in this process and answers in mixed batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from transformers import TextStreamer

from skillweave.base import Base, Prompt, Sampling, open_base
from skillweave.delta import Delta, is_delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack, is_skillpack
from skillweave.progress import console
from skillweave.terminal import for_file
from skillweave.tools import Toolbox
from skillweave.tools.conversation import ConversationSettings
from skillweave.weave import AUTO, BASE, Reply, ToolReply, Weave, converse_with, is_weave


class _ToFile(TextStreamer):
    """Streams decoded text to a file object as it is made."""

    def __init__(self, tokenizer, file: TextIO, stops: Collection[int]) -> None:
        super().__init__(
            tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )  # fmt: skip
        self._file, self._stops = file, stops

    def put(self, value: torch.Tensor) -> None:
        # An end token need not be one that decoding skips.
        if self.next_tokens_are_prompt or value.tolist()[-1] not in self._stops:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._file.write(for_file(text, self._file) + ("\n" if stream_end else ""))
        self._file.flush()


@dataclass(frozen=True)
class LocalEngine:
    """A weave, and the pack that answers where the caller names none (None: the plain base)."""

    weave: Weave
    default: str | None

    def generate(
        self,
        prompts: Sequence[Prompt],
        packs: Sequence[str | None],
        sampling: Sampling | None = None,
        *,
        label: str | None = None,
    ) -> list[Reply]:
        """Answer each prompt with its pack: a name, ``auto`` (the router), ``base``, or None for the default."""
        return self.weave.generate(prompts, [self._pack(name) for name in packs], sampling, label=label)

    def converse(
        self, prompts: Sequence[Prompt], packs: Sequence[str | None], toolbox: Toolbox, use: ConversationSettings, *,
        temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, model_defaults: bool = False,
        label: str | None = None,
    ) -> list[ToolReply]:  # fmt: skip
        """Answer each prompt with its pack, named as in :meth:`generate`, and with the tools of ``toolbox``."""
        return converse_with(
            self.weave, prompts, [self._pack(name) for name in packs], toolbox, use, temperature=temperature,
            top_p=top_p, seed=seed, model_defaults=model_defaults, label=label,
        )  # fmt: skip

    def stream(self, prompt: Prompt, pack: str | None, sampling: Sampling, file: TextIO) -> Reply:
        """Answer one prompt, written to ``file`` as the tokens come; the route taken is noted on the console."""
        route = self.weave.choose([prompt], self._pack(pack))[0]
        if route.confidence is not None:
            console.print(f"route: {route.pack or BASE} ({100 * route.confidence:.0f}%)", style="dim")
        voice = self.weave.voice(route.pack)
        streamer = _ToFile(voice.tokenizer, file, voice.stops(self.weave.base.model))
        return self.weave.generate([prompt], [route.pack], sampling, streamer=streamer)[0]

    def _pack(self, name: str | None) -> str | None:
        return {None: self.default, BASE: None}.get(name, name)


def open_engine(
    target: str, *, base: str | None = None, dtype: str | None = None, device: str | None = None
) -> LocalEngine:
    """Open a weave, skillpack or delta folder, or a model by any reference that ``open_base`` takes.

    A weave answers through its router, a pack's folder with that pack, the others as they are. ``base`` stands for
    the base that an artefact names, where it lies elsewhere. Raises :class:`UserError`.
    """
    folder = Path(target)
    if is_weave(folder):
        weave = Weave.from_pretrained(folder, base=base, dtype=dtype, device=device)
        return LocalEngine(weave, AUTO if weave.router is not None else None)
    if is_skillpack(folder):
        pack = Skillpack.from_pretrained(folder)
        opened = open_base(base or pack.card.base.ref, dtype=dtype, device=device)
        pack.check_base(opened.fingerprint)
        return LocalEngine(Weave.of(opened, {pack.card.name: pack}), pack.card.name)
    if is_delta(folder):
        delta = Delta.from_pretrained(folder)
        return LocalEngine(Weave.of(_tuned(delta, base, dtype, device)), None)
    if base is not None:
        raise UserError(f"--base goes with a weave, pack or delta folder; {target} is none of them")
    return LocalEngine(Weave.of(open_base(target, dtype=dtype, device=device)), None)


def _tuned(delta: Delta, base: str | None, dtype: str | None, device: str | None) -> Base:
    # float32 unless told otherwise: the sum of base and delta is then not rounded back to the base's dtype.
    opened = open_base(base or delta.base_ref, dtype=dtype or "float32", device=device)
    return delta.apply(opened, in_place=True)
