"""Open what the user names, as the service behind the API: an engine, its packs and its limits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from skillweave import __version__
from skillweave.engine import AsyncEngine, open_engine
from skillweave.engine.vllm import VllmEngine, VllmFolder, VllmServer
from skillweave.errors import UserError, nearest
from skillweave.pack.stored import CODED_FILE, DATA_FILE
from skillweave.progress import say_once, share_of
from skillweave.serve.engine_service import EngineService
from skillweave.serve.exported_packs import ExportedPacks
from skillweave.serve.residency import PackMemory
from skillweave.serve.service import RequestLimits
from skillweave.serve.settings import ServeConfig
from skillweave.units import human_bytes
from skillweave.weave import AUTO, BASE, Weave, is_weave

_NAMED = 5
"""Packs that a note names."""


def open_service(
    target: str,
    settings: ServeConfig,
    *,
    base: str | None = None,
    dtype: str | None = None,
    backbone: str | None = None,
    device: str | None = None,
    require_audit: bool = False,
) -> EngineService:
    """Return the service of a weave, skillpack or delta folder, or of a model, computed in this process.

    Packs of a weave are loaded when they are first needed if there is a budget for them, else now. Raises
    :class:`UserError`.
    """
    if is_weave(Path(target)):
        packs = None if settings.pack_memory is None else ()
        weave = Weave.from_pretrained(
            target, base=base, dtype=dtype, backbone=backbone, device=device, packs=packs, require_audit=require_audit,
            unpacked_packs=None,
        )  # fmt: skip
        default = AUTO if weave.router is not None else BASE
    else:
        opened = open_engine(
            target, base=base, dtype=dtype, backbone=backbone, device=device, require_audit=require_audit
        )
        weave, default = opened.weave, opened.default or BASE
    _check_pins(settings.pin, weave.packs)
    if settings.pack_memory is not None and is_weave(Path(target)):
        _check_budget(settings.pack_memory, Path(target), weave.packs)
    engine = AsyncEngine(
        weave,
        max_requests=settings.max_requests,
        max_waiting=settings.max_waiting,
        cache_tokens=settings.cache_tokens,
    )
    memory = PackMemory(weave, engine.between_steps, settings.pack_memory)
    if settings.pack_memory is not None and memory.used_bytes > settings.pack_memory:
        raise UserError(
            f"the pack of {target} takes {human_bytes(memory.used_bytes)} in memory, more than the pack_memory of "
            f"{human_bytes(settings.pack_memory)}: give more"
        )
    return EngineService(
        engine,
        memory,
        limits=_limits(settings),
        fingerprint=_fingerprint(weave.base.fingerprint),
        routed=weave.router is not None,
        default=default,
        pins=settings.pin,
        forget=engine.forget,
    )


def open_vllm_service(target: str, settings: ServeConfig, servers: Sequence[str]) -> EngineService:
    """Return the service of a folder that ``skillweave export vllm`` wrote, computed by vLLM.

    ``servers``: URLs of running vLLM servers; without one, a server is started and stopped with this one. There is no
    router, because vLLM does not give the hidden states that it reads. Raises :class:`UserError`.
    """
    if settings.pack_memory is not None or settings.pin:
        raise UserError("vLLM has its own memory for packs: leave out --pack-memory and --pin")
    folder = VllmFolder(target)
    engine = VllmEngine(target, servers or [VllmServer(target)], max_waiting=settings.max_waiting)
    return EngineService(
        engine,
        ExportedPacks(list(folder.card.packs)),
        limits=_limits(settings),
        fingerprint=_fingerprint(folder.card.base.fingerprint),
    )


def _limits(settings: ServeConfig) -> RequestLimits:
    limits = RequestLimits()
    shorter = min(limits.default_max_tokens, settings.max_tokens)
    return replace(limits, max_tokens=settings.max_tokens, default_max_tokens=shorter)


def _fingerprint(base: str) -> str:
    digest = hashlib.sha256(f"{__version__} {base}".encode()).hexdigest()
    return f"fp_{digest[:12]}"


def _check_budget(budget: int, weave: Path, packs: Collection[str]) -> None:
    """Raise :class:`UserError` if no pack fits into the memory for packs, and name those that do not fit."""
    # In memory, a pack takes at least what its numbers take in its file. A file that is missing is told at the load.
    files = {name: [weave / "packs" / name / file for file in (CODED_FILE, DATA_FILE)] for name in packs}
    sizes = {name: sum(one.stat().st_size for one in both if one.is_file()) for name, both in files.items()}
    larger = [name for name, size in sizes.items() if size > budget]
    if larger and len(larger) == len(sizes):
        name = min(larger, key=sizes.__getitem__)
        raise UserError(
            f"--pack-memory of {human_bytes(budget)} has room for no pack: the smallest one, '{name}', takes at least "
            f"{human_bytes(sizes[name])}. Give more, with its unit: 256MiB"
        )
    if larger:
        say_once(
            f"{share_of(len(larger), len(sizes), 'packs')} cannot be used, because each takes more than the "
            f"--pack-memory of {human_bytes(budget)}: {', '.join(larger[:_NAMED])}{', ...' if larger[_NAMED:] else ''}"
        )


def _check_pins(pins: Sequence[str], packs: Collection[str]) -> None:
    for name in pins:
        if name not in packs:
            raise UserError(f"--pin {name}: there is no such pack; {nearest(name, packs)}")
