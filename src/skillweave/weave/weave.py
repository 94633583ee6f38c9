"""A weave: one folder that names a base and holds its packs and the router, opened to answer prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Base, Sampling
from skillweave.base.chat import PromptOrIds
from skillweave.base.prefix import backbone_tokens, opening_ids
from skillweave.base.voice import Voice
from skillweave.delta import Delta
from skillweave.errors import UserError, nearest
from skillweave.files.folder import Folder
from skillweave.files.hashes import sha256_file
from skillweave.pack import BaseRef, Skillpack
from skillweave.pack.probe import Outcome
from skillweave.pack.stored import AGAIN, CARD_FILE
from skillweave.progress import console, say_once
from skillweave.tools.conversation import OpenTools
from skillweave.weave.backbone import check_backbone, save_backbone
from skillweave.weave.card import ROUTER_FILE, WEAVE_FILE, BackboneRef, WeaveCard, check_part, pack_card, read_card
from skillweave.weave.int8_backbone import INT8, check_form, is_int8, put_into_int8
from skillweave.weave.kept import KeptPacks, ReadPack
from skillweave.weave.packed_model import UNPACKED_PACKS, PackedModel
from skillweave.weave.parts import AddedPack, check_names, open_base_of, put_pack, read_pack
from skillweave.weave.prove import base_says, prove
from skillweave.weave.request import AUTO, Reply, Request
from skillweave.weave.request_group import RequestGroup, group_key
from skillweave.weave.router import Route, Router, features


class Weave:
    """A base with packs and a router, ready to answer. Create it with :meth:`from_pretrained` or :meth:`of`."""

    def __init__(
        self,
        folder: Path | None,
        card: WeaveCard,
        base: Base,
        router: Router | None,
        budget: int | None,
        read_pack: Callable[[str], Skillpack],
        require_audit: bool = False,
        unpacked_packs: int | None = UNPACKED_PACKS,
    ) -> None:
        self.folder = folder
        self.where = "this weave" if folder is None else f"the weave in {folder}"
        self.card = card
        self.base = base
        self.router = router
        self.budget = budget
        self.packed_model = PackedModel(base.model, unpacked_packs)
        self._voices: dict[str | None, Voice] = {None: Voice(base.tokenizer)}
        self._openings: dict[str | None, list[int]] = {None: opening_ids(base.tokenizer)}
        """the packs whose prompts the backbone reads, and the plain base: the tokens that open their answers"""
        self._read_pack = read_pack
        self._require_audit = require_audit
        self._said_alone: set[str] = set()
        self._added: dict[str, AddedPack] = {}
        self._kept = KeptPacks()
        self._proven: dict[str, Outcome] = {}
        """the hashes of the cards of packs that were put to the proof; a card has the hash of all other files"""
        self._proofs: dict[str, Outcome | None] = {}
        """loaded pack -> what its proof said"""

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
        backbone_codes: str | None = None,
        dtype: str | None = None,
        budget: int | None = None,
    ) -> Path:
        """Write a weave: ``weave.json``, ``packs/<name>/``, ``router/`` and, if there is a backbone, ``backbone/``.

        The whole folder is replaced, atomically.

        - ``base``: the model that the packs belong on and that the router was fitted on
        - ``packs``: a :class:`Skillpack` or its folder for each name; it is saved under that name
        - ``backbone``: if a delta made ``base``, this delta or its folder (copied byte for byte). The weave then names
          the base that the delta names, and needs no files of the tuned model.
        - ``backbone_codes``, ``dtype``, ``budget`` (bytes): the defaults of :meth:`from_pretrained` for this weave; the
          first is its ``backbone``, "int8" or None

        Raises :class:`UserError` if a pack belongs on another base, if the router knows a pack that is not given, or if
        the delta makes another model than ``base``.
        """
        check_names(packs)
        check_form(backbone_codes)
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
            backbone_codes=backbone_codes,
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
        opened = open_base_of(folder, card, base, dtype, device, budget)
        if (backbone or card.backbone_codes) == INT8 and not is_int8(opened):
            if backbone is None and isinstance(base, Base):
                say_once(f"{folder} is served with an int8 backbone by default; the open base is used as it is")
            elif isinstance(base, Base):
                raise UserError(
                    "backbone int8 changes the base's layers, and an open base is used as it is: name the base by its "
                    "reference, or call skillweave.weave.put_into_int8(base) before"
                )
            else:
                put_into_int8(opened)
        router = None
        if card.router:
            check_part(folder, card, f"router/{ROUTER_FILE}")
            router = Router.load(folder / "router")
            router.check_fits(card.packs, opened)
        weave = cls(
            folder,
            card,
            opened,
            router,
            budget,
            lambda name: read_pack(folder, card, name),
            require_audit,
            unpacked_packs,
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
    def of(
        cls, base: Base, packs: Mapping[str, Skillpack] | None = None, *, unpacked_packs: int | None = UNPACKED_PACKS
    ) -> Weave:
        """A weave in memory, without a router, of an open base and any number of packs, which are all loaded.

        ``unpacked_packs``: as in :meth:`from_pretrained`.
        """
        packs = dict(packs or {})
        check_names(packs)
        card = WeaveCard(base=BaseRef(ref=base.ref, fingerprint=base.fingerprint), packs=list(packs))
        weave = cls(None, card, base, None, None, packs.__getitem__, unpacked_packs=unpacked_packs)
        for name in packs:
            weave.load(name)
        return weave

    # -- residency -----------------------------------------------------------------------------------------------

    @property
    def packs(self) -> list[str]:
        """The names of all packs of the weave, loaded or not, and of those that were added to it."""
        return [*self.card.packs, *self._added]

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

    @property
    def unpacked(self) -> list[str]:
        """The names of the loaded packs that are unpacked now; the one that was used last stands last."""
        return self.packed_model.unpacked

    def load(self, name: str) -> None:
        """Read one pack of the weave, load it, and prove that it acts (:func:`skillweave.weave.prove.prove`).

        Raises :class:`UserError` as :meth:`read_for_load` and :meth:`put` do.
        """
        self.put(self.read_for_load(name))

    def read_for_load(self, name: str, *, keep: bool = False) -> ReadPack:
        """Return a pack of the weave, read, checked and prepared for :meth:`put`.

        It may be called in any thread while batches run, after ``packed_model.watch()``. ``keep``: write a copy of what
        was prepared into the cache folder (:mod:`skillweave.weave.kept`). As long as the pack's files have the same
        hashes, later calls read this copy, which takes milliseconds. Raises :class:`UserError` for a name that the
        weave does not have, a pack that is damaged or made for another base, and for one without the audit that was
        required.
        """
        self._check_known(name)
        if self._unchanged(name) and (kept := self._kept.read(name)) is not None:
            return kept
        pack = self._read(name)
        pack.check_base(self.base.fingerprint)
        if self._require_audit:
            pack.check_audit()
        voice = pack.voice(self.base)
        if pack.carried.has_tokenizer and (self.folder is not None or name in self._added):
            voice.tokenizer.travels_with = f"the pack '{name}' of {self.where}"  # what errors call the template
        ready = self.packed_model.prepare(name, pack)
        card_hash = self._card_hash(name)
        files = {} if card_hash is None else {CARD_FILE: card_hash, **pack.card.files}
        read = ReadPack(ready, voice, pack.card.probe, files, pack.carried.has_tokenizer, pack.card.prefill)
        if keep:
            self._kept.keep(read)
        return read

    def _unchanged(self, name: str) -> bool:
        """Whether a pack has a copy in the cache folder, and all its files still have the hashes of that time."""
        files = self._kept.files(name)
        if files is None:
            return False
        try:
            self._check_card(name)
            Folder(self._pack_folder(name), CARD_FILE, AGAIN).verified(files)
        except UserError:  # reading the pack says what is wrong with it
            self._kept.drop(name)
            return False
        return True

    def must_prove(self, read: ReadPack) -> bool:
        """Whether :meth:`put` will prove that the pack acts: its files were not loaded before in this process."""
        return read.probe is not None and (read.card_hash is None or read.card_hash not in self._proven)

    def base_says(self, read: ReadPack) -> list[float]:
        """What the plain base says about the text on the card of a pack that must be proven: one short forward pass.

        It runs between batches. Raises :class:`UserError` if the text has tokens that the model lacks.
        """
        assert read.probe is not None
        return base_says(self.packed_model, read.name, read.probe, self._fix())

    def put(self, read: ReadPack, base: Sequence[float] | None = None) -> None:
        """Load a pack that :meth:`read_for_load` gave. It runs between batches, and takes one short forward pass.

        A pack is proven when its files are loaded for the first time in this process. ``base``: what
        :meth:`base_says` gave; without it, a second forward pass finds it out. Raises :class:`UserError` if the pack
        does not act as it did when it was zipped, if it is already loaded, and if the budget has no room for it. The
        weave is then as before.
        """
        ready, name = read.ready, read.name
        used, needed = self.packed_model.needed_bytes(), self.packed_model.needed_bytes(ready)
        if self.budget is not None and self.base_bytes + needed > self.budget:
            raise UserError(
                f"the pack '{name}' takes {_mb(needed - used)}; the base ({_mb(self.base_bytes)}) and the loaded packs "
                f"({_mb(used)}) leave {_mb(self.budget - self.base_bytes - used)} of the budget of {_mb(self.budget)}. "
                f"Unload one of: {', '.join(self.loaded) or 'none is loaded'}; or give a larger budget."
            )
        self.packed_model.add(ready)
        try:
            self._check_prefill(read)
            self._proofs[name] = self._prove(read, base)
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

    def _check_prefill(self, read: ReadPack) -> None:
        """Raise :class:`UserError` if the backbone cannot read the prompts of a pack that was made for that."""
        why = self.packed_model.why_own_steps(read.name) if read.prefill == "backbone" else None
        if why is not None:
            raise UserError(
                f"the card of the pack '{read.name}' says that the backbone reads its prompts, which is impossible "
                f"here, because {why}: zip the skill again without prefill"
            )

    def _prove(self, read: ReadPack, base: Sequence[float] | None) -> Outcome | None:
        if read.probe is None:
            say_once(
                f"the card of the pack '{read.name}' has no probe, so nothing proves that it acts: packs that are "
                "zipped by this version have one"
            )
            return None
        if not self.must_prove(read):
            return self._proven[read.files[CARD_FILE]]
        outcome = prove(self.packed_model, read.name, read.probe, self._fix(), base).outcome
        if read.card_hash is not None:
            self._proven[read.card_hash] = outcome
        return outcome

    def _fix(self) -> str:
        return f"Zip it again on {self.base.ref}, or copy the weave and the base again."

    def _pack_folder(self, name: str) -> Path:
        if name in self._added:
            return self._added[name].folder
        assert self.folder is not None
        return self.folder / "packs" / name

    def _check_card(self, name: str) -> None:
        """Raise :class:`UserError` unless the card of a pack, which lies in a folder, is the one that was named."""
        if name in self._added:
            self._added[name].check()
        elif self.folder is not None:
            check_part(self.folder, self.card, pack_card(name))

    def _read(self, name: str) -> Skillpack:
        return self._added[name].read() if name in self._added else self._read_pack(name)

    def _card_hash(self, name: str) -> str | None:
        """The hash of the card that a pack's files were checked by; None if no file names one."""
        return self._added[name].card_hash if name in self._added else self.card.files.get(pack_card(name))

    def add_pack(self, source: str | Path) -> str:
        """Make a pack known that is not of this weave, and return its name. It is not loaded; no file is written.

        ``source`` is the folder of a pack, or a hub id (``owner/name``), whose pack is downloaded. Raises
        :class:`UserError` if its name is taken, if it is damaged, or made for another base.
        """
        added, pack = AddedPack.of(source)
        pack.check_base(self.base.fingerprint)
        check_names([*self.packs, added.name])
        if added.name in self.packs:
            raise UserError(
                f"{self.where} has a pack '{added.name}' already: give the pack in {added.folder} another name"
            )
        self._added[added.name] = added
        return added.name

    def check_added(self, name: str) -> None:
        """Raise :class:`UserError` unless :meth:`add_pack` made the pack known."""
        self._check_known(name)
        if name not in self._added:
            raise UserError(f"the pack '{name}' belongs to {self.where}: only packs that were added can be forgotten")

    def proof(self, name: str) -> Outcome | None:
        """What the proof that a loaded pack acts said; None: its card has no probe, so nothing proves it."""
        return self._proofs[name]

    def pack_bytes(self, name: str) -> int:
        """The most bytes that a loaded pack takes in memory (:meth:`PackedModel.pack_bytes`)."""
        return self.packed_model.pack_bytes(name)

    def forget_pack(self, name: str) -> None:
        """Forget a pack that :meth:`add_pack` made known, and unload it. Its files stay.

        Raises :class:`UserError` for other packs, and while a batch is running.
        """
        self.check_added(name)
        if name in self.loaded:
            self.unload(name)
        del self._added[name]
        self._kept.drop(name)

    def unload(self, name: str) -> None:
        """Free a loaded pack's memory. Raises :class:`UserError` if it is not loaded, or while a batch is running."""
        self._check_known(name)
        self.packed_model.remove(name)
        del self._voices[name], self._proofs[name]
        self._openings.pop(name, None)

    def _check_known(self, name: str) -> None:
        if name not in self.packs:
            raise UserError(f"{self.where} has no pack '{name}'; {nearest(name, self.packs)}")

    def voice(self, name: str | None) -> Voice:
        """The tokenizer, chat template and end tokens with which a loaded pack (None: the plain base) answers."""
        return self._voices[name]

    def backbone_tokens(self, name: str | None, ids: Sequence[int]) -> int:
        """How many leading tokens of a prompt the plain base reads if a loaded pack (None: the plain base) answers it.

        It is 0 for a pack without ``prefill: backbone`` on its card.
        """
        return backbone_tokens(ids, self._openings[name]) if name in self._openings else 0

    def pack_digest(self, name: str) -> str:
        """The :attr:`Skillpack.digest` of a pack of the weave, which is read for it.

        Raises :class:`UserError` for a name that the weave does not have, and for a pack whose files have changed.
        """
        self._check_known(name)
        return self._read(name).digest

    # -- answering -----------------------------------------------------------------------------------------------

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
        """Answer every prompt with its pack, and return the replies in the order of the prompts.

        - ``prompts``: as in :class:`Request`; each gets one reply, so repeat a prompt to sample it again
        - ``packs``: for each prompt a pack's name, :data:`AUTO` or None (the plain base); or one of them for all
        - ``sampling``: for all prompts; None: greedy. With tools, prompt number i has the seed ``sampling.seed`` + i
        - ``tools``: what all prompts may call; None: nothing
        - ``streamer``, ``label``: as in :meth:`answer`

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
        return self.answer(requests, streamer=streamer, label=label)

    def answer(self, requests: Sequence[Request], *, streamer: Any = None, label: str | None = None) -> list[Reply]:
        """Answer every request, and return the replies in the order of the requests.

        Requests without tools and with equal sampling share batches, whatever their packs. Only a pack that cannot do
        so (:meth:`PackedModel.why_alone`) answers in batches of its own, which is said once. Conversations with tools
        are played side by side, one pack after the other. A pack answers with the tokenizer, chat template, end tokens
        and sampling defaults that it brings. The router reads a prompt without the description of the tools.

        - ``streamer``: a transformers streamer, for a single request without tools
        - ``label``: the label of a progress bar; None: no bar

        Raises :class:`UserError`, before anything is generated: for a pack that is unknown or not loaded, for a prompt
        that does not fit into the model's context, and for tools with a pack or base without a chat template, or with
        a pack whose prompts the backbone reads (``prefill: backbone``). Also
        raises it for a pack whose weights give NaN, when this pack answers.
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
            replies.update(zip(group.numbers, group.answer(streamer, label), strict=True))
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
            if name not in (None, AUTO):
                self._check_loaded(name)
        routes = [Route(name, None) for name in packs]
        to_route = [number for number, name in enumerate(packs) if name == AUTO]
        if to_route:
            for number, route in zip(to_route, self.route([prompts[number] for number in to_route]), strict=True):
                if route.pack is not None:
                    self._check_loaded(route.pack)
                routes[number] = route
        return routes

    def route(self, prompts: Sequence[PromptOrIds]) -> list[Route]:
        """Where the router sends each prompt. It may choose a pack that is not loaded.

        Raises :class:`UserError` if the weave has no router.
        """
        if self.router is None:
            raise UserError(f"{self.where} has no router: name a pack for every prompt")
        if not prompts:
            return []
        return self.router.route_all(features(self.base, prompts, self.router.layer))

    def _say_alone(self, packs: set[str | None]) -> None:
        """Say, once for each pack, why it shares no batch. If all prompts have one pack, it makes no difference."""
        for name in sorted(name for name in packs if name is not None and name not in self._said_alone):
            why = self.packed_model.why_alone(name)
            if why and len(packs) > 1:
                console.print(f"The pack '{name}' answers in batches of its own: {why}.", markup=False, soft_wrap=True)
                self._said_alone.add(name)

    def _check_loaded(self, name: str) -> None:
        self._check_known(name)
        if name not in self.loaded:
            raise UserError(f"the pack '{name}' is not loaded: call load('{name}') first")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
