"""A micro weave whose packs answer differently, what each answers alone, and the server in a process of its own."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import torch

from skillweave.base import Base, Sampling, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.pack import Skillpack
from skillweave.serve.child import free_port
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import BASE, Weave

PACKS = ("p0", "p1", "p2", "p3", "p4")
GUEST = "guest"
"""The name of two packs beside the weave, which differ; they are added and removed over HTTP."""
GUESTS = ("guest-0", "guest-1")
KEY = "sw-faults"
TOKENS = 12
"""The longest answer. Packs and base differ within it at nearly every prompt."""
_START = 120.0
"""Seconds within which a server has to be ready."""
_CONTEXT = 1024


# -- what is served ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A weave folder, the folders of the guests, and the answer of each (who, prompt), computed alone in float32."""

    weave: Path
    guests: Mapping[str, Path]
    prompts: Sequence[str]
    answers: Mapping[tuple[str, str], str]
    pack_bytes: int
    """of the largest pack, in memory"""


def make_served(folder: Path, prompts: int) -> Served:
    """Return a weave of :data:`PACKS` in a folder, with its reference. Half of the prompts begin alike.

    Raises ``RuntimeError`` if two of those who answer cannot be told apart by their answers.
    """
    base = _base(folder / "base")
    packs = {name: _pack(base, name, seed) for seed, name in enumerate(PACKS)}
    guests = {name: _pack(base, GUEST, 100 + seed) for seed, name in enumerate(GUESTS)}
    for name, pack in guests.items():
        pack.save_pretrained(folder / name)
    Weave.write(folder / "weave", base, packs)
    asked = _prompts(prompts)
    answers, largest = {}, 0
    for name, pack in {BASE: None, **packs, **guests}.items():
        weave = Weave.of(_base(folder / "base"), {} if pack is None else {"it": pack})
        largest = max(largest, 0 if pack is None else weave.packed_model.pack_bytes("it"))
        for prompt in asked:  # one at a time: nothing is shared
            (reply,) = weave.generate([prompt], [None if pack is None else "it"], Sampling(TOKENS, temperature=0))
            answers[name, prompt] = reply.text
    _check_different(answers, asked)
    guest_folders = {name: folder / name for name in GUESTS}
    return Served(folder / "weave", guest_folders, asked, answers, largest)


def _base(folder: Path) -> Base:
    if not folder.exists():
        micro_model(MicroShape(context=_CONTEXT), 1).save_pretrained(folder)
        micro_tokenizer().save_pretrained(folder)
    return open_base(folder, dtype="float32")


def _pack(base: Base, name: str, seed: int) -> Skillpack:
    source = torch.Generator().manual_seed(seed)
    changes = {
        key: 0.1 * torch.randn(base.checkpoint.shape(key), generator=source)
        for key in base.checkpoint.names()
        if "proj" in key
    }
    delta = Delta(changes, base_fingerprint=base.fingerprint)
    return zip_delta(delta, base, None, ZipConfig(ratio=0.5), name=name)


def _prompts(count: int) -> list[str]:
    """Prompts of letters. Every second one begins with the same 80, so that blocks of the cache are shared."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    begin = "".join(draw.choices(letters, k=80))
    return [
        (begin if number % 2 else "") + "".join(draw.choices(letters, k=draw.randrange(8, 40)))
        for number in range(count)
    ]


def _check_different(answers: Mapping[tuple[str, str], str], prompts: Sequence[str]) -> None:
    names = sorted({name for name, _ in answers})
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            same = sum(answers[one, prompt] == answers[other, prompt] for prompt in prompts)
            if same > len(prompts) / 4:
                raise RuntimeError(f"{one} and {other} give the same answer to {same} of {len(prompts)} prompts")


# -- the server --------------------------------------------------------------------------------------------------------


@dataclass
class ServerProcess:
    """``skillweave serve`` in a process of its own, which can be killed and started again at the same port."""

    weave: Path
    log: Path
    options: Sequence[str]
    port: int = 0
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start it, wait until it is ready, and return the seconds that this took. Raises :class:`UserError`."""
        if self.port == 0:
            self.port = free_port()
        command = [sys.executable, "-m", "skillweave", "serve", str(self.weave), "--port", str(self.port)]
        began = time.monotonic()
        with self.log.open("ab") as output:
            self.child = subprocess.Popen(
                [*command, "--dtype", "float32", "--allow-pack-management", *self.options],
                stdout=subprocess.DEVNULL, stderr=output,
                env={**os.environ, "SKILLWEAVE_API_KEY": KEY, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        while time.monotonic() < began + _START:
            if self.child.poll() is not None:
                raise UserError(f"the server ended with status {self.child.returncode}:\n{self.tail()}")
            if self.is_ready():
                return time.monotonic() - began
            time.sleep(0.05)
        raise UserError(f"the server was not ready after {_START:.0f} s:\n{self.tail()}")

    def is_ready(self) -> bool:
        """Whether it takes requests."""
        try:
            return httpx2.get(f"{self.url}/ready", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if self.log.is_file() else ""

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self.child is not None
        return self.child.pid

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.child is not None and self.child.poll() is None

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        assert self.child is not None
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self) -> int | None:
        """Let it end by itself, and return its status; kill it after a minute."""
        if self.child is None:
            return None
        self.child.terminate()
        try:
            return self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def largest_file(self, size: int) -> None:
        """Let no file of the process grow beyond so many bytes: every write then fails, as on a full disk."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size if size >= 0 else hard, hard))

    def rss(self) -> float:
        """The resident memory in MB."""
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert match is not None
        return int(match[1]) * 1024 / 1e6

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of a metric that have these labels."""
        text = httpx2.get(f"{self.url}/metrics", headers=headers(), timeout=10).text
        total = 0.0
        for line in text.splitlines():
            if re.match(rf"{name}[{{ ]", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


def headers() -> dict[str, str]:
    """The headers of every request."""
    return {"Authorization": f"Bearer {KEY}"}
