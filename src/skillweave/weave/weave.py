"""A weave: one folder that names a base and holds its packs and the router, opened to answer prompts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skillweave.base import Base, Sampling
from skillweave.base.allocator import release_freed_memory
from skillweave.base.chat import PromptOrIds
from skillweave.base.prefix import backbone_tokens, opening_ids
from skillweave.base.voice import Voice
from skillweave.errors import UserError
from skillweave.pack import BaseRef, Skillpack
from skillweave.progress import console, say_once
from skillweave.tools.conversation import OpenTools
from skillweave.units import human_bytes
from skillweave.weave.card import WeaveCard, read_card
from skillweave.weave.int8_backbone import check_form
from skillweave.weave.journal import ReplyJournal
from skillweave.weave.kept import ReadPack
from skillweave.weave.packed_model import UNPACKED_PACKS, PackedModel
from skillweave.weave.parts import check_names, open_base_of, read_router
from skillweave.weave.prove import Proofs
from skillweave.weave.request import AUTO, Reply, Request
from skillweave.weave.request_group import RequestGroup, group_key
from skillweave.weave.router import Route, Router, features
from skillweave.weave.shelf import PackShelf
from skillweave.weave.write import write_weave


class Weave:
    """A base with packs and a router, ready to answer. Create it with :meth:`from_pretrained` or :meth:`of`."""

    def __init__(
        self,
        folder: Path | None,
        card: WeaveCard,
        base: Base,
        router: Router | None,
        budget: int | None,
        in_memory: Mapping[str, Skillpack],
        require_audit: bool = False,
        unpacked_packs: int | None = UNPACKED_PACKS,
    ) -> None:
        self.folder = folder
        self.card = card
        self.base = base
        self.router = router
        self.budget = budget
        self.packed_model = PackedModel(base.model, unpacked_packs)
        self.shelf = PackShelf(folder, card, in_memory, base, self.packed_model, require_audit)
        self.proofs = Proofs(self.packed_model, base.ref)
        self._voices: dict[str | None, Voice] = {None: Voice(base.tokenizer)}
        self._openings: dict[str | None, list[int]] = {None: opening_ids(base.tokenizer)}
        """the packs whose prompts the backbone reads, and the plain base: the tokens that open their answers"""
        self._said_alone: set[str] = set()

    # -- files ---------------------------------------------------------------------------------------------------

    write = staticmethod(write_weave)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        base: Base | str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        backbone: str | None = None,
        device: str | torch.device | None = None,
        budget: int | None = None,
        packs: Sequence[str] | None = None,
        require_audit: bool = False,
        unpacked_packs: int | None = UNPACKED_PACKS,
    ) -> Weave:
        """Open a weave and load its packs.

        - ``base``: an open base, or a reference to it; None: the reference in ``weave.json``. If the weave has a
          backbone, a reference names the plain base: the backbone's delta is added to it here, in its stored dtype, and
          the sum is cast to ``dtype``. An open base must already be that backbone; it is used as it is, never changed.
        - ``dtype``: of the base in memory; None: as ``weave.json`` says
        - ``backbone``: "int8" puts the base's linear layers into int8 (:func:`skillweave.weave.put_into_int8`), and the
          rest keeps ``dtype``; "dtype" leaves all in ``dtype``; None: as ``weave.json`` says. An open base is never
          changed: with "int8" it must be in int8 already.
        - ``budget``: most bytes that the tensors of the base and the loaded packs may take, with ``unpacked_packs`` of
          the packs unpacked; None: as ``weave.json`` says
        - ``packs``: the names of the packs to load; None: all. The files of other packs are not read.
        - ``require_audit``: refuse a pack without an audit on its card, or with an alarm, now and whenever one is
          loaded (:meth:`Skillpack.check_audit`). A backbone is not audited.
        - ``unpacked_packs``: how many of the packs that were used last stay unpacked between batches. A pack that is
          not unpacked is so when a batch uses it, which takes a fraction of a second. None: all packs are unpacked when
          they are loaded, and stay so; they are then kept in this form only.

        Raises :class:`UserError` if a part is missing, damaged or of another weave, or exceeds the budget.
        """
        folder = Path(folder)
        card = read_card(folder)
        check_form(backbone)
        budget = card.budget if budget is None else budget
        opened = open_base_of(folder, card, base, dtype, backbone, device, budget)
        router = None
        if card.router:
            router = read_router(folder, card)
            router.check_fits(card.packs, opened)
        weave = cls(folder, card, opened, router, budget, {}, require_audit, unpacked_packs)
        if weave.budget is not None and weave.base_bytes > weave.budget:
            raise UserError(
                f"the base alone takes {human_bytes(weave.base_bytes)}, more than the budget of "
                f"{human_bytes(weave.budget)} of {weave.shelf.where}: open it in the dtype it was woven for "
                f"({card.dtype or 'as stored'}), or from Python with a larger budget=..."
            )
        for name in card.packs if packs is None else packs:
            weave.load(name)
        release_freed_memory()
        return weave

    @classmethod
    def of(
        cls, base: Base, packs: Mapping[str, Skillpack] | None = None, *, unpacked_packs: int | None = UNPACKED_PACKS
    ) -> Weave:
        """A weave in memory, without a router, of an open base and any number of packs, which are all loaded.

        ``unpacked_packs``: as in :meth:`from_pretrained`.
        """
        packs = dict(packs or {})
        check_names(packs)
        card = WeaveCard(base=BaseRef(ref=base.ref, fingerprint=base.fingerprint), packs=list(packs))
        weave = cls(None, card, base, None, None, packs, unpacked_packs=unpacked_packs)
        for name in packs:
            weave.load(name)
        return weave

    # -- residency -----------------------------------------------------------------------------------------------

    @property
    def packs(self) -> list[str]:
        """The names of all packs of the weave, loaded or not, and of those that were added to it."""
        return self.shelf.names

    @property
    def loaded(self) -> list[str]:
        """The names of the packs in memory."""
        return self.packed_model.packs

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's tensors in memory."""
        return self.packed_model.base_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of the loaded packs in memory now, in addition to :attr:`base_bytes`."""
        return self.packed_model.resident_bytes

    @property
    def needed_bytes(self) -> int:
        """Bytes of the base and the loaded packs while as many packs are unpacked as stay so between batches."""
        return self.base_bytes + self.packed_model.needed_bytes()

    def load(self, name: str) -> None:
        """Read one pack of the weave, load it, and prove that it acts (:mod:`skillweave.weave.prove`).

        Raises :class:`UserError` as :meth:`PackShelf.read` and :meth:`put` do.
        """
        self.put(self.shelf.read(name))

    def put(self, read: ReadPack, base: Sequence[float] | None = None) -> None:
        """Load a pack that :meth:`PackShelf.read` gave, between two batches; it is proven unless its files were before.

        ``base``: what :meth:`Proofs.base_says` gave; without it, a second pass finds it out. Raises :class:`UserError`,
        and leaves the weave as it was, if the pack does not act as when it was zipped, is loaded, or has no room.
        """
        name = read.name
        used, needed = self.packed_model.needed_bytes(), self.packed_model.needed_bytes(read.ready)
        if self.budget is not None and self.base_bytes + needed > self.budget:
            raise UserError(
                f"the pack '{name}' takes {human_bytes(needed - used)}; the base ({human_bytes(self.base_bytes)}) and "
                f"the loaded packs ({human_bytes(used)}) leave {human_bytes(self.budget - self.base_bytes - used)} of "
                f"the budget of {human_bytes(self.budget)}. Unload one of: "
                f"{', '.join(self.loaded) or 'none is loaded'}; or give a larger budget."
            )
        self.packed_model.add(read.ready)
        try:
            self.proofs.prove(read, base)
        except BaseException:
            self.packed_model.remove(name)
            raise
        if read.prefill == "backbone":
            self._openings[name] = opening_ids(read.voice.tokenizer)
        self._voices[name] = read.voice
        if self.router is not None and read.own_tokenizer:
            say_once(
                f"the router reads prompts by the chat template of the base; '{name}' then answers by its own template"
            )

    def unload(self, name: str) -> None:
        """Free a loaded pack's memory. Raises :class:`UserError` if it is not loaded, or while a batch is running."""
        self.shelf.check_known(name)
        self.packed_model.remove(name)
        del self._voices[name]
        self._openings.pop(name, None)

    def voice(self, name: str | None) -> Voice:
        """The tokenizer, chat template and end tokens with which a loaded pack (None: the plain base) answers."""
        return self._voices[name]

    def backbone_tokens(self, name: str | None, ids: Sequence[int]) -> int:
        """How many leading tokens of a prompt the plain base reads if a loaded pack (None: the plain base) answers it.

        It is 0 for a pack without ``prefill: backbone`` on its card.
        """
        return backbone_tokens(ids, self._openings[name]) if name in self._openings else 0

    # -- answering -----------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[PromptOrIds],
        packs: str | Sequence[str | None] | None = None,
        sampling: Sampling | None = None,
        *,
        tools: OpenTools | None = None,
        journal: ReplyJournal | None = None,
        streamer: Any = None,
        label: str | None = None,
    ) -> list[Reply]:
        """Answer every prompt with its pack, and return the replies in the order of the prompts.

        - ``prompts``: as in :class:`Request`; each gets one reply, so repeat a prompt to sample it again
        - ``packs``: for each prompt a pack's name, :data:`AUTO` or None (the plain base); or one of them for all
        - ``sampling``: for all prompts; None: greedy. With tools, prompt number i has the seed ``sampling.seed`` + i
        - ``tools``: what all prompts may call; None: nothing
        - ``journal``, ``streamer``, ``label``: as in :meth:`answer`

        Raises :class:`UserError` as :meth:`answer`.
        """
        named = [packs] * len(prompts) if packs is None or isinstance(packs, str) else list(packs)
        if len(named) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(named)} packs: name one (or None) for each prompt")
        requests = []
        for number, (prompt, pack) in enumerate(zip(prompts, named, strict=True)):
            own = sampling or Sampling()
            if tools is not None:
                own = replace(own, seed=own.seed + number)
            requests.append(Request(prompt, pack, own, tools))
        return self.answer(requests, journal=journal, streamer=streamer, label=label)

    def answer(
        self,
        requests: Sequence[Request],
        *,
        journal: ReplyJournal | None = None,
        streamer: Any = None,
        label: str | None = None,
    ) -> list[Reply]:
        """Answer every request, and return the replies in the order of the requests.

        Requests without tools and with equal sampling share batches, whatever their packs. Only a pack that cannot do
        so (:meth:`PackedModel.why_alone`) answers in batches of its own, which is said once. Conversations with tools
        are played side by side, one pack after the other. A pack answers with the tokenizer, chat template, end tokens
        and sampling defaults that it brings. The router reads a prompt without the description of the tools.

        - ``journal``: replies that are known already, by the number of their request; new ones are added to it
        - ``streamer``: a transformers streamer, for a single request without tools
        - ``label``: the label of a progress bar; None: no bar

        Raises :class:`UserError`, before anything is generated: for a pack that is unknown or not loaded, for a prompt
        that does not fit into the model's context, and for tools with a pack or base without a chat template, or with
        a pack whose prompts the backbone reads (``prefill: backbone``). Also raises it, when this pack answers, for a
        pack whose weights give NaN.
        """
        for request in requests:
            if (samples := request.sampling.samples) != 1:
                raise UserError(f"a weave gives one answer a prompt, not {samples}: repeat the prompt instead")
        routes = self.choose([request.prompt for request in requests], [request.pack for request in requests])
        self._check_readers(requests, routes)
        groups: dict[Hashable, RequestGroup] = {}
        for number, (request, route) in enumerate(zip(requests, routes, strict=True)):
            group = groups.setdefault(
                group_key(request, route), RequestGroup(self.base, self.packed_model, self.backbone_tokens)
            )
            group.add(number, request, route, self._voices[route.pack])
        # All prompts are encoded first: an error in the last one is found before hours of generation.
        for group in groups.values():
            group.encode()
        self._say_alone({route.pack for request, route in zip(requests, routes, strict=True) if request.tools is None})
        replies: dict[int, Reply] = {}
        for group in groups.values():
            replies.update(zip(group.numbers, group.answer(streamer, label, journal), strict=True))
        return [replies[number] for number in range(len(requests))]

    def _check_readers(self, requests: Sequence[Request], routes: Sequence[Route]) -> None:
        """Raise :class:`UserError` for tools with a pack whose prompts the backbone reads."""
        for request, route in zip(requests, routes, strict=True):
            if request.tools is not None and route.pack is not None and route.pack in self._openings:
                raise UserError(
                    f"the backbone reads the prompts of the pack '{route.pack}' (prefill: backbone), and conversations "
                    f"with tools are not built for that: ask it without tools, or zip the skill without prefill"
                )

    def choose(self, prompts: Sequence[PromptOrIds], packs: Sequence[str | None]) -> list[Route]:
        """The pack that answers each prompt: the one in ``packs``, or for :data:`AUTO` the router's choice.

        Raises :class:`UserError` for a pack that is unknown or not loaded, and for :data:`AUTO` without a router.
        """
        for name in packs:
            self.check_pack(name)
        routes = [Route(name, None) for name in packs]
        to_route = [number for number, name in enumerate(packs) if name == AUTO]
        if to_route:
            for number, route in zip(to_route, self.route([prompts[number] for number in to_route]), strict=True):
                if route.pack is not None:
                    self.check_pack(route.pack)
                routes[number] = route
        return routes

    def route(self, prompts: Sequence[PromptOrIds]) -> list[Route]:
        """Where the router sends each prompt. It may choose a pack that is not loaded.

        Raises :class:`UserError` if the weave has no router.
        """
        router = self._check_router()
        if not prompts:
            return []
        return router.route_all(features(self.base, prompts, router.layer))

    def _check_router(self) -> Router:
        if self.router is None:
            raise UserError(f"{self.shelf.where} has no router: name a pack for every prompt")
        return self.router

    def _say_alone(self, packs: set[str | None]) -> None:
        """Say, once for each pack, why it shares no batch. If all prompts have one pack, it makes no difference."""
        for name in sorted(name for name in packs if name is not None and name not in self._said_alone):
            why = self.packed_model.why_alone(name)
            if why and len(packs) > 1:
                console.print(f"The pack '{name}' answers in batches of its own: {why}.", markup=False, soft_wrap=True)
                self._said_alone.add(name)

    def check_pack(self, name: str | None) -> None:
        """Raise :class:`UserError` for a pack that is unknown or not loaded, and for :data:`AUTO` without a router."""
        if name is None:
            return
        if name == AUTO:
            self._check_router()
            return
        self.shelf.check_known(name)
        if name not in self.loaded:
            raise UserError(f"the pack '{name}' is not loaded: call load('{name}') first")
