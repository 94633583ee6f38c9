"""A weave: one folder that names a base, holds its packs and the router, and can be served."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Base, Sampling, generate_answers
from skillweave.base.chat import PromptOrIds
from skillweave.base.defaults import generating_as
from skillweave.base.generate import NoProbabilities
from skillweave.base.voice import Voice
from skillweave.delta import Delta
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import sha256_file
from skillweave.pack import BaseRef, Skillpack
from skillweave.progress import console, say_once
from skillweave.tools.conversation import OpenTools, begin, converse
from skillweave.weave.backbone import check_backbone, save_backbone
from skillweave.weave.card import ROUTER_FILE, WEAVE_FILE, BackboneRef, WeaveCard, check_part, read_card
from skillweave.weave.packed_model import PackedModel
from skillweave.weave.parts import check_names, open_base_of, put_pack, read_pack
from skillweave.weave.request import AUTO, GREEDY, Conversation, Reply, Request
from skillweave.weave.router import Route, Router, features


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
        opened = open_base_of(folder, card, base, dtype, device, budget)
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

    def route(self, prompts: Sequence[PromptOrIds]) -> list[Route]:
        """Where the router sends each prompt. A pack it chooses may be one that is not loaded."""
        if self.router is None:
            raise UserError(f"{self.where} has no router: name a pack for every prompt")
        if not prompts:
            return []
        found = self.router.route_all(features(self.base, prompts, self.router.layer))
        return [Route(pack, confidence) for pack, confidence in found]

    def generate(
        self,
        prompts: Sequence[PromptOrIds],
        packs: str | Sequence[str | None] | None = None,
        sampling: Sampling | None = None,
        *,
        tools: OpenTools | None = None,
        streamer: Any = None,
        label: str | None = None,
    ) -> list[Reply]:
        """Answer every prompt with its own pack, in mixed batches; see :meth:`answer`.

        ``packs``: a name, ``"auto"`` (the router chooses) or None (the plain base), either one for all prompts or one
        for each. The other arguments hold for all prompts. Repeat a prompt to sample it again.
        """
        named = [packs] * len(prompts) if packs is None or isinstance(packs, str) else list(packs)
        if len(named) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(named)} packs: name one (or None) for each prompt")
        requests = [
            Request(prompt, pack, sampling or GREEDY, tools) for prompt, pack in zip(prompts, named, strict=True)
        ]
        return self.answer(requests, streamer=streamer, label=label)

    def answer(self, requests: Sequence[Request], *, streamer: Any = None, label: str | None = None) -> list[Reply]:
        """Answer all requests, in their order. Requests with equal sampling and without tools share mixed batches.

        - A pack that cannot share a batch with others (:meth:`PackedModel.why_alone`) answers in batches of its own,
          which is said once. Conversations with tools are batched pack by pack.
        - A pack that brings a tokenizer, a chat template, end tokens or sampling defaults answers with these.
        - The router reads a prompt without what tells the model of its tools.

        ``streamer`` is a transformers streamer, for one request without tools. ``label`` shows a progress bar.
        Raises :class:`UserError` for a pack that is unknown or not loaded, for a prompt that does not fit the context,
        and for tools with a base that has no chat template.
        """
        for request in requests:
            if request.sampling.samples != 1:
                raise UserError(
                    f"a weave gives one answer a prompt, not {request.sampling.samples}: repeat the prompt instead"
                )
        routes = self.choose([request.prompt for request in requests], [request.pack for request in requests])
        groups: dict[tuple[int, Sampling], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((id(request.tools), request.sampling), []).append(index)
        replies: dict[int, Reply] = {}
        for (_, sampling), rows in groups.items():
            prompts, chosen = [requests[row].prompt for row in rows], [routes[row] for row in rows]
            tools = requests[rows[0]].tools
            if tools is None:
                answered = self._write(prompts, chosen, sampling, rows, streamer, label)
            else:
                answered = self._converse(prompts, chosen, sampling, tools, label)
            replies |= zip(rows, answered, strict=True)
        return [replies[index] for index in range(len(requests))]

    def _write(
        self,
        prompts: list[PromptOrIds],
        routes: list[Route],
        sampling: Sampling,
        numbers: list[int],
        streamer: Any,
        label: str | None,
    ) -> list[Reply]:
        """Answers without tools, in mixed batches. ``numbers``: those of the prompts, for errors."""
        self._say_alone({route.pack for route in routes})

        def around_batch(rows: list[int]) -> contextlib.AbstractContextManager[None]:
            return self.packed_model.rows([routes[row].pack for row in rows])

        def apart(row: int) -> str | None:
            pack = routes[row].pack
            return pack if pack is not None and self.packed_model.why_alone(pack) else None

        try:
            answers = generate_answers(
                self.base.model,
                self.base.tokenizer,
                prompts,
                sampling,
                voices=[self._voices[route.pack] for route in routes],
                numbers=numbers,
                around_batch=around_batch,
                apart=apart,
                streamer=streamer,
                label=label,
            )
        except NoProbabilities as error:
            raise _cannot_answer(routes[error.row].pack, error) from error
        return [
            Reply(drawn[0].text, route.pack, route.confidence, "answer" if drawn[0].ended else "length")
            for drawn, route in zip(answers, routes, strict=True)
        ]

    def _converse(
        self,
        prompts: Sequence[PromptOrIds],
        routes: list[Route],
        sampling: Sampling,
        tools: OpenTools,
        label: str | None,
    ) -> list[Reply]:
        """Answers with tools: the conversations of one pack are held together, pack after pack."""
        model, settings = self.base.model, tools.settings
        rows_of: dict[str | None, list[int]] = {}
        for index, route in enumerate(routes):
            rows_of.setdefault(route.pack, []).append(index)
        formats = {pack: settings.call_format(self.voice(pack).tokenizer, tools.toolbox) for pack in rows_of}
        # All conversations are begun first, so that a prompt that is too long is refused before hours of work.
        starts = {
            pack: begin(
                model,
                formats[pack],
                [prompts[row] for row in rows],
                seed=sampling.seed,
                numbers=rows,
                rows=self.voice(pack).rows,
            )
            for pack, rows in rows_of.items()
        }
        replies: dict[int, Reply] = {}
        for pack, rows in rows_of.items():
            generation = self.voice(pack).generation
            own_defaults = contextlib.nullcontext() if generation is None else generating_as(model, generation)
            try:
                with self.packed_model.every_row(pack), own_defaults:
                    episodes = converse(
                        model,
                        formats[pack],
                        tools.toolbox,
                        starts[pack],
                        settings,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        model_defaults=sampling.model_defaults,
                        label=label,
                    )
            except NoProbabilities as error:
                raise _cannot_answer(pack, error) from error
            for row, episode in zip(rows, episodes, strict=True):
                assert episode.ended is not None
                replies[row] = Reply(
                    episode.answer or "",
                    pack,
                    routes[row].confidence,
                    episode.ended,
                    Conversation.of(episode, formats[pack]),
                )
        return [replies[row] for row in range(len(prompts))]

    def choose(self, prompts: Sequence[PromptOrIds], named: Sequence[str | None]) -> list[Route]:
        """The route of each prompt: the pack that its name in ``named`` says, or the router's choice for ``"auto"``."""
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


def _cannot_answer(pack: str | None, error: NoProbabilities) -> UserError:
    """The error for a pack (None: the plain base) whose weights give no numbers to draw tokens from."""
    who = "the plain base" if pack is None else f"the pack '{pack}'"
    return UserError(f"{who} cannot answer: {error}. Make it again, or answer without it.")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
