"""Faults of too much and too little: twice the sustainable rate, loads and unloads, kills, damage, a full disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.serve_faults.served import GUEST, GUESTS, PACKS, Served, ServerProcess
from benchmarks.serve_faults.traffic import (
    Background,
    Tally,
    ask,
    client_of,
    closed_loop,
    note_refusal,
    open_loop,
)
from skillweave.weave import BASE

MODELS = (BASE, *PACKS)
CALLERS = 8
"""Callers that ask without a pause while something else happens."""


@dataclass
class Trial:
    """What one fault did: how its requests ended, and what else was seen (``figures``, shown in ``note``)."""

    name: str
    count: int
    tally: Tally = field(default_factory=Tally)
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


async def overload(server: ServerProcess, served: Served, count: int) -> Trial:
    """Ask at twice the rate that the server sustains. Memory is measured after a warm-up of the same kind."""
    async with client_of(server) as client:
        trial = Trial(f"{count:,} requests at twice the sustainable rate", count)
        warm, rate = await closed_loop(client, served, MODELS, max(60, count // 8), 24, 1)
        trial.tally.add(warm)
        trial.tally.add(await open_loop(client, served, MODELS, count // 4, 2 * rate, 2))
        before = server.rss()
        began = time.perf_counter()
        trial.tally.add(await open_loop(client, served, MODELS, count, 2 * rate, 3))
        seconds = time.perf_counter() - began
        after = server.rss()
    trial.figures = {"rate": 2 * rate, "sustained": rate, "seconds": seconds, "rss_before": before, "rss_after": after}
    trial.note = f"{rate:.0f} a second sustained, {2 * rate:.0f} sent"
    return trial


async def come_and_go(server: ServerProcess, served: Served, count: int) -> Trial:
    """Add, load, ask and remove a pack, of which two differ under one name, while others are asked and evicted."""
    trial = Trial(f"{count} loads and unloads under traffic", count)
    draw = random.Random(4)
    loads = server.metric("skillweave_pack_loads_total")
    async with client_of(server) as client, Background(client, served, MODELS, CALLERS // 2, 4) as traffic:
        for number in range(count):
            which = GUESTS[number % 2]
            got = await client.post("/v1/packs", json={"folder": str(served.guests[which])})
            if got.status_code != 201:
                note_refusal(500, got.text, trial.tally)
                continue
            prompts = draw.sample(list(served.prompts), 3)
            await asyncio.gather(*(_ask_guest(client, served, which, prompt, trial.tally) for prompt in prompts))
            while (gone := await client.delete(f"/v1/packs/{GUEST}")).status_code == 409:
                await asyncio.sleep(0.01)
            if gone.status_code != 200:
                note_refusal(500, gone.text, trial.tally)
    trial.tally.add(traffic.tally)
    loads = server.metric("skillweave_pack_loads_total") - loads
    trial.note = f"{loads:.0f} further loads of the weave's packs"
    trial.figures = {"loads": loads}
    return trial


async def _ask_guest(client: httpx2.AsyncClient, served: Served, which: str, prompt: str, tally: Tally) -> None:
    await ask(client, served, GUEST, prompt, tally, stream=len(prompt) % 2 == 0, reference=which)


# -- the process dies --------------------------------------------------------------------------------------------------


async def kill(server: ServerProcess, served: Served, count: int) -> Trial:
    """Kill the server in the middle of its work and start it again; nothing on the disk may have changed."""
    trial = Trial("kill -9 under traffic, and a restart", count)
    files = _hashes(served.weave)
    starts = []
    async with client_of(server) as client:
        for number in range(count):
            async with Background(client, served, MODELS, CALLERS, 50 + number) as traffic:
                await asyncio.sleep(1.0)
                server.kill()
                starts.append(await asyncio.to_thread(server.start))
                await asyncio.sleep(0.5)
            trial.tally.add(traffic.tally)
    changed = sum(_hashes(served.weave)[name] != found for name, found in files.items())
    trial.tally.lost += ["a file of the weave changed"] * changed
    trial.note = f"ready again after {max(starts):.1f} s; no file changed" if not changed else "files changed"
    trial.figures = {"start_seconds": starts}
    return trial


def _hashes(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- files -------------------------------------------------------------------------------------------------------------


async def damage(server: ServerProcess, served: Served, rounds: int) -> Trial:
    """Damage a pack's files in several ways while it is asked, and heal them. Others must not notice.

    The pack may answer rightly (it is in memory still) or be refused. After each repair it must answer again.
    """
    name = PACKS[0]
    files = [path for path in sorted((served.weave / "packs" / name).rglob("*")) if path.is_file()]
    trial = Trial("a pack's file is damaged on disk while serving", 0)
    others = [model for model in MODELS if model != name]
    async with client_of(server) as client, Background(client, served, others, CALLERS, 6) as traffic:
        for _ in range(rounds):
            for path in files:
                for way in _DAMAGE:
                    trial.count += 1
                    with _damaged(path, way):
                        await _crowd_out(client, served, trial.tally)
                        await asyncio.gather(
                            *(ask(client, served, name, prompt, trial.tally) for prompt in served.prompts[:4])
                        )
                    healed = Tally()
                    await ask(client, served, name, served.prompts[0], healed)
                    if not healed.right:
                        trial.tally.lost.append(f"{path.name}, {way.__name__}: not healed ({healed})")
    trial.tally.add(traffic.tally)
    trial.note = f"{len(files)} files in {len(_DAMAGE)} ways"
    return trial


async def _crowd_out(client: httpx2.AsyncClient, served: Served, tally: Tally) -> None:
    """Ask all other packs at once, so that the first one has to leave memory."""
    await asyncio.gather(*(ask(client, served, name, served.prompts[1], tally) for name in PACKS[1:]))


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _empty(_: bytes) -> bytes:
    return b""


def _remove(_: bytes) -> None:
    return None


_DAMAGE: tuple[Callable[[bytes], bytes | None], ...] = (_flip, _cut, _empty, _remove)


class _damaged:
    """Context in which a file is damaged in place, as a disk damages it; its bytes come back afterwards."""

    def __init__(self, path: Path, way: Callable[[bytes], bytes | None]) -> None:
        self._path, self._before = path, path.read_bytes()
        self._after = way(self._before)

    def __enter__(self) -> None:
        if self._after is None:
            self._path.unlink()
        else:
            self._path.write_bytes(self._after)

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._before)


async def full_disk(server: ServerProcess, served: Served, count: int) -> Trial:
    """Ask while no file of the server may grow, its log among them; then let it grow again."""
    trial = Trial("a disk that fills (every write of the server fails)", count)
    size = os.path.getsize(server.log)
    async with client_of(server) as client:
        server.largest_file(size)
        tally, _ = await closed_loop(client, served, MODELS, count, CALLERS, 7)
        grown = os.path.getsize(server.log) - size
        server.largest_file(-1)
        after, _ = await closed_loop(client, served, MODELS, 20, CALLERS, 8)
    trial.tally.add(tally)
    trial.tally.add(after)
    added = server.log.read_bytes()[size:].decode("utf-8", "replace")
    told = "could not be written" in added
    if grown or not told:
        trial.tally.lost.append(f"the log grew by {grown} bytes; it tells of lost lines: {told}")
    trial.note = "the log says afterwards how many of its lines are missing" if told else ""
    return trial
