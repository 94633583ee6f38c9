"""A weave: one folder that names a base, holds its packs and the router, and can be served."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Base, Prompt, Sampling, generate_answers, open_base
from skillweave.base.generate import NoProbabilities
from skillweave.base.voice import Voice
from skillweave.delta import Delta
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import sha256_file, shortened
from skillweave.pack import BaseRef, Skillpack
from skillweave.progress import console, say_once
from skillweave.tools.loop import Ending
from skillweave.weave.backbone import check_backbone, lay_on, save_backbone
from skillweave.weave.card import ROUTER_FILE, WEAVE_FILE, BackboneRef, WeaveCard, check_part, read_card
from skillweave.weave.packed_model import PackedModel
from skillweave.weave.parts import check_names, put_pack, read_pack
from skillweave.weave.router import Route, Router, features

AUTO = "auto"
"""In place of a pack's name: let the router choose."""


@dataclass(frozen=True)
class Reply:
    """An answer, the pack that gave it (None: the plain base) and, where the router chose, its confidence.

    ``ended``: ``answer`` where the model wrote its end, ``length`` where the answer was cut off.
    """

    text: str
    pack: str | None
    confidence: float | None
    ended: Ending

    @property
    def answer(self) -> str | None:
        """What is scored; None where there is no answer."""
        return self.text

    @property
    def record(self) -> dict[str, Any]:
        """What is written of it beside its text and its pack."""
        return {"ended": self.ended}


class Weave:
    """A base with packs and a router, ready to answer. Made by :meth:`from_pretrained` or :meth:`of`."""

    def __init__(
        self,
        where: str,
        card: WeaveCard,
        base: Base,
        router: Router | None,
        budget: int | None,
        read_pack: Callable[[str], Skillpack],
    ) -> None:
        self.where = where
        self.card = card
        self.base = base
        self.router = router
        self.budget = budget
        self.packed_model = PackedModel(base.model)
        self._voices: dict[str | None, Voice] = {None: Voice(base.tokenizer)}
        self._read_pack = read_pack
        self._told: set[str] = set()

    # -- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def write(
        cls,
        folder: str | Path,
        base: Base,
        packs: Mapping[str, str | Path | Skillpack],
        router: Router | None = None,
        *,
        backbone: Delta | str | Path | None = None,
        dtype: str | None = None,
        budget: int | None = None,
    ) -> Path:
        """Write a weave: ``weave.json``, ``packs/<name>/``, ``router/`` and, where there is one, ``backbone/``.

        The folder is replaced whole, atomically. ``base`` is the model that the packs belong on and the router reads.
        Where a delta made that model, ``backbone`` is this delta, or its folder (copied byte for byte): the weave then
        names the base under it, the one that the delta names, and needs no files of the tuned model.

        A pack is a :class:`Skillpack` or the folder of one; it is saved under the name it has here. ``dtype`` and
        ``budget`` (bytes) are what :meth:`from_pretrained` will open it with, unless told otherwise. Raises
        :class:`UserError` where a pack belongs on another base, the router knows a pack that is not given, or the
        delta makes another model than ``base``.
        """
        check_names(packs)
        if router is not None:
            router.check_fits(packs, base)
        named, tuned = BaseRef(ref=base.ref, fingerprint=base.fingerprint), None
        if backbone is not None:
            delta = backbone if isinstance(backbone, Delta) else Delta.from_pretrained(backbone)
            named, tuned = check_backbone(delta, base), BackboneRef(fingerprint=base.fingerprint)
        card = WeaveCard(
            base=named,
            backbone=tuned,
            packs=list(packs),
            router=router is not None,
            dtype=dtype,
            budget=budget,
        )
        with atomic_folder(folder) as temporary:
            for name, given in packs.items():
                put_pack(given, name, base.fingerprint, temporary / "packs" / name)
            if router is not None:
                router.save(temporary / "router")
            if backbone is not None:
                save_backbone(backbone, temporary)
            card.files = {part: sha256_file(temporary / part) for part in card.parts()}
            write_json(temporary / WEAVE_FILE, card.model_dump(mode="json"))
        return Path(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        base: Base | str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        budget: int | None = None,
        packs: Sequence[str] | None = None,
    ) -> Weave:
        """Open a weave and load its packs, or only those named in ``packs``; the others' files are not read.

        ``base``: an open base or another reference to it, where the one in ``weave.json`` does not serve. Where the
        weave has a backbone, a reference names the plain base: the backbone is laid on it here, in its stored dtype,
        and then cast to ``dtype``. An open base must be that backbone already; it is used as it is, never changed.
        ``budget``: bytes that the base's tensors and the resident packs' may take together. ``dtype`` and ``budget``
        are as ``weave.json`` says unless given.
        Raises :class:`UserError`.
        """
        folder = Path(folder)
        card = read_card(folder)
        budget = card.budget if budget is None else budget
        opened = _open(folder, card, base, dtype, device, budget)
        router = None
        if card.router:
            check_part(folder, card, f"router/{ROUTER_FILE}")
            router = Router.load(folder / "router")
            router.check_fits(card.packs, opened)
        weave = cls(
            f"the weave in {folder}",
            card,
            opened,
            router,
            budget,
            lambda name: read_pack(folder, card, name),
        )
        if weave.budget is not None and weave.base_bytes > weave.budget:
            raise UserError(
                f"the base alone takes {_mb(weave.base_bytes)}, more than the budget of {_mb(weave.budget)} of "
                f"{weave.where}: open it in the dtype it was woven for ({card.dtype or 'as stored'}), or from Python "
                f"with a larger budget=..."
            )
        for name in card.packs if packs is None else packs:
            weave.load(name)
        return weave

    @classmethod
    def of(cls, base: Base, packs: Mapping[str, Skillpack] | None = None) -> Weave:
        """A weave in memory, of an open base and some packs (or none), without a router; all packs are loaded."""
        packs = dict(packs or {})
        check_names(packs)
        card = WeaveCard(base=BaseRef(ref=base.ref, fingerprint=base.fingerprint), packs=list(packs))
        weave = cls("this weave", card, base, None, None, packs.__getitem__)
        for name in packs:
            weave.load(name)
        return weave

    # -- residency -----------------------------------------------------------------------------------------------

    @property
    def packs(self) -> list[str]:
        """All packs of the weave, loaded or not."""
        return list(self.card.packs)

    @property
    def loaded(self) -> list[str]:
        """The packs in memory."""
        return self.packed_model.packs

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's tensors in memory."""
        return self.packed_model.base_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of the loaded packs' tensors in memory, beside :attr:`base_bytes`."""
        return self.packed_model.resident_bytes

    def load(self, name: str) -> None:
        """Read one pack of the weave and make it resident.

        Raises :class:`UserError` for an unknown name, a damaged pack, one made for another base, one already loaded,
        and one that the budget has no room for.
        """
        self._known(name)
        pack = self._read_pack(name)
        pack.check_base(self.base.fingerprint)
        ready = self.packed_model.prepare(name, pack)
        taken = self.base_bytes + self.resident_bytes
        if self.budget is not None and taken + ready.nbytes > self.budget:
            raise UserError(
                f"the pack '{name}' takes {_mb(ready.nbytes)}; the base ({_mb(self.base_bytes)}) and the loaded packs "
                f"({_mb(self.resident_bytes)}) leave {_mb(self.budget - taken)} of the budget of {_mb(self.budget)}. "
                f"Unload one of: {', '.join(self.loaded) or 'none is loaded'}; or give a larger budget."
            )
        voice = pack.voice(self.base)
        self.packed_model.add(ready)
        self._voices[name] = voice
        if self.router is not None and pack.carried.has_tokenizer:
            say_once(
                f"the router reads prompts by the chat template of the base; '{name}' then answers by its own template"
            )

    def unload(self, name: str) -> None:
        """Free a loaded pack's memory. Raises :class:`UserError` where it is not loaded or a batch is running."""
        self._known(name)
        self.packed_model.remove(name)
        del self._voices[name]

    def _known(self, name: str) -> None:
        if name not in self.card.packs:
            raise UserError(f"{self.where} has no pack '{name}'; {nearest(name, self.card.packs)}")

    def voice(self, name: str | None) -> Voice:
        """The tokenizer, chat template and end tokens that a loaded pack answers with; None: the plain base's."""
        return self._voices[name]

    # -- answering -----------------------------------------------------------------------------------------------

    def route(self, prompts: Sequence[Prompt]) -> list[Route]:
        """Where the router sends each prompt. A pack it chooses may be one that is not loaded."""
        if self.router is None:
            raise UserError(f"{self.where} has no router: name a pack for every prompt")
        if not prompts:
            return []
        found = self.router.route_all(features(self.base, prompts, self.router.layer))
        return [Route(pack, confidence) for pack, confidence in found]

    def generate(
        self,
        prompts: Sequence[Prompt],
        packs: str | Sequence[str | None] | None = None,
        sampling: Sampling | None = None,
        *,
        streamer: Any = None,
        label: str | None = None,
    ) -> list[Reply]:
        """Answer every prompt, each with its own pack, in mixed batches. A pack that cannot share a batch with others
        (:meth:`PackedModel.why_alone`) answers in batches of its own, which is said once.

        A pack that brings a tokenizer, a chat template, end tokens or sampling defaults answers with these.

        ``packs``: for each prompt a name, None (the plain base) or ``"auto"`` (the router chooses); one of them for
        all prompts; None for the plain base throughout. One answer a prompt: repeat a prompt to sample it again.
        """
        if sampling is not None and sampling.samples != 1:
            raise UserError(f"a weave gives one answer a prompt, not {sampling.samples}: repeat the prompt instead")
        chosen = self.choose(prompts, packs)

        def around_batch(rows: list[int]) -> contextlib.AbstractContextManager[None]:
            return self.packed_model.rows([chosen[row].pack for row in rows])

        self._say_alone({route.pack for route in chosen})

        def apart(row: int) -> str | None:
            pack = chosen[row].pack
            return pack if pack is not None and self.packed_model.why_alone(pack) else None

        try:
            answers = generate_answers(
                self.base.model,
                self.base.tokenizer,
                prompts,
                sampling,
                voices=[self._voices[route.pack] for route in chosen],
                around_batch=around_batch,
                apart=apart,
                streamer=streamer,
                label=label,
            )
        except NoProbabilities as error:
            raise cannot_answer(chosen[error.row].pack, error) from error
        return [
            Reply(drawn[0].text, route.pack, route.confidence, "answer" if drawn[0].ended else "length")
            for drawn, route in zip(answers, chosen, strict=True)
        ]

    def choose(self, prompts: Sequence[Prompt], packs: str | Sequence[str | None] | None = None) -> list[Route]:
        """The pack that each prompt is to be answered with; ``packs`` as in :meth:`generate`."""
        named = [packs] * len(prompts) if packs is None or isinstance(packs, str) else list(packs)
        if len(named) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(named)} packs: name one (or None) for each prompt")
        for name in named:
            if name not in (None, AUTO):
                self._check_loaded(name)
        chosen = [Route(name, None) for name in named]
        open_ones = [index for index, name in enumerate(named) if name == AUTO]
        if open_ones:
            for index, route in zip(open_ones, self.route([prompts[index] for index in open_ones]), strict=True):
                if route.pack is not None:
                    self._check_loaded(route.pack)
                chosen[index] = route
        return chosen

    def _say_alone(self, used: set[str | None]) -> None:
        """Say, once for each pack, that it shares no batch; where nothing else is asked for, it makes no difference."""
        for name in sorted(name for name in used if name is not None and name not in self._told):
            why = self.packed_model.why_alone(name)
            if why and len(used) > 1:
                console.print(f"The pack '{name}' answers in batches of its own: {why}.", markup=False, soft_wrap=True)
                self._told.add(name)

    def _check_loaded(self, name: str) -> None:
        self._known(name)
        if name not in self.loaded:
            raise UserError(f"the pack '{name}' is not loaded: call load('{name}') first")


def _open(
    folder: Path,
    card: WeaveCard,
    base: Base | str | Path | None,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    budget: int | None,
) -> Base:
    """What the packs of a weave belong on: its base, with its backbone laid on it."""
    if isinstance(base, Base):
        _check_is(base, card.backbone or card.base, folder, card)
        return base
    ref = card.base.ref if base is None else base
    try:
        opened = open_base(ref, dtype=dtype or card.dtype, device=device, budget=budget)
    except UserError as error:
        if base is not None:
            raise
        raise UserError(
            f"{folder / WEAVE_FILE} names the base '{ref}', which cannot be opened: {error}\n"
            f"If it lies elsewhere, name it with base=..."
        ) from error
    _check_is(opened, card.base, folder, card)
    return opened if card.backbone is None else lay_on(opened, folder, card, card.backbone.fingerprint)


def _check_is(opened: Base, expected: BaseRef | BackboneRef, folder: Path, card: WeaveCard) -> None:
    if opened.fingerprint == expected.fingerprint:
        return
    if expected is card.backbone and opened.fingerprint == card.base.fingerprint:
        raise UserError(
            f"{folder} has a backbone, and {opened.ref} is the plain base under it: name the base by its reference, "
            f"base='{opened.ref}', so that the backbone is laid on a copy of its own"
        )
    wanted = "the backbone of " if expected is card.backbone else ""
    mark, other = shortened(expected.fingerprint, opened.fingerprint)
    raise UserError(
        f"{folder} was woven for {wanted}{card.base.ref} ({mark}), and {opened.ref} has "
        f"the fingerprint {other}: open that base instead"
    )


def cannot_answer(pack: str | None, error: NoProbabilities) -> UserError:
    """The error for a pack (None: the plain base) whose weights give no numbers to draw tokens from."""
    who = "the plain base" if pack is None else f"the pack '{pack}'"
    return UserError(f"{who} cannot answer: {error}. Make it again, or answer without it.")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
