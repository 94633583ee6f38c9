"""What is measured: fine-tunes, packs, LoRAs and merges of one scale and seed, each made once in its folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft.utils import merge_utils

from benchmarks.headline.scale import ARITHMETIC, TIES, Row, Scale
from skillweave.artefact import write_text
from skillweave.base import Base, open_base
from skillweave.delta import Delta, write_tuned
from skillweave.files.lock import claim
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise.run import run as specialise
from skillweave.pack import Skillpack, is_skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Router, Weave, fit_router

TRIM, DROP = 0.2, 0.5
"""The share of entries that TIES keeps, and the share that DARE drops."""


@dataclass(frozen=True)
class Lab:
    """The things of one scale and seed, in ``folder``."""

    scale: Scale
    seed: int
    folder: Path

    @functools.cached_property
    def base(self) -> Base:
        """The base in float32, in which all are trained and asked."""
        return opened(self.scale.base())

    # -- training ----------------------------------------------------------------------------------------------------

    def specialist(self, skill: str, rate: float) -> Delta:
        """Return a fine-tune on one skill."""
        return self.trained(self.base, [skill], rate, f"{skill}-{rate:g}")

    def multi_task(self, rate: float) -> Delta:
        """Return one fine-tune on the examples of all skills together, shuffled; it goes over them once."""
        return self.trained(self.base, self.scale.skills, rate, f"multi-{rate:g}")

    def shared_backbone(self, rate: float) -> Base:
        """Return a base of its own: a multi-task fine-tune on half of each skill's examples."""
        delta = self.trained(self.base, self.scale.skills, rate, f"multi-half-{rate:g}", half=0)
        return self.tuned_base(delta, "multi-half")

    def lora(self, skill: str, rate: float, rank: int) -> Delta:
        """Return a LoRA on one skill, trained on the layers that a specialist trains."""
        return self.trained(self.base, [skill], rate, f"lora-{skill}-{rate:g}-{rank}", rank=rank)

    def trained(
        self,
        base: Base,
        skills: Sequence[str],
        rate: float,
        name: str,
        *,
        rank: int | None = None,
        half: Literal[0, 1] | None = None,
    ) -> Delta:
        """Return a fine-tune of ``base`` on the examples of some skills, or on a ``half`` of them, each read once."""
        place = self.folder / "fine-tunes" / name
        which = slice(None) if half is None else slice(half, None, 2)
        rows = [row for skill in skills for row in self.scale.rows(skill, self.seed)[which]]
        with claim(place.with_name(f"{name}.training"), waiting=f"another process trains {name}; waiting"):
            write_text(place / "rows.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
            return specialise(base, self._config(place / "rows.jsonl", rows, rate, rank), place / "run")

    def _config(self, file: Path, rows: Sequence[Row], rate: float, rank: int | None) -> SpecialiseConfig:
        scale = self.scale
        adapter = {"train": "lora", "lora": {"rank": rank, "alpha": 2 * rank, "targets": scale.targets}} if rank else {}
        return SpecialiseConfig.model_validate(
            {
                "task": {"source": "file", "path": str(file), "splits": {"calibration": 0, "test": 0}},
                "seed": self.seed,
                "trainable": scale.trainable,
                "warm_start": {
                    "when": "always",
                    "steps": len(rows) // scale.batch,
                    "batch_size": scale.batch,
                    "learning_rate": rate,
                    "held_out": 0,
                    "turns": "all",
                },
                "rounds": 0,
                "probe_prompts": 1,
                "samples_per_prompt": 1,
                "max_new_tokens": 2,
                "save_every": max(40, len(rows) // scale.batch // 4),
                "bf16": False,
                **adapter,
            }
        )

    # -- packs -------------------------------------------------------------------------------------------------------

    def pack(self, skill: str, rate: float) -> Skillpack:
        """Return the specialist of a skill as a pack."""
        return self._zipped(self.base, self.specialist(skill, rate), skill, f"{skill}-{rate:g}")

    def pack_on_backbone(self, backbone: Base, skill: str, rate: float) -> Skillpack:
        """Return a pack on a shared backbone: a fine-tune on the examples that the backbone has not read."""
        delta = self.trained(backbone, [skill], rate, f"{skill}-{rate:g}-second-half", half=1)
        return self._zipped(backbone, delta, skill, f"{skill}-{rate:g}-on-backbone")

    def _zipped(self, base: Base, delta: Delta, skill: str, name: str) -> Skillpack:
        place = self.folder / "packs" / name
        if not is_skillpack(place):
            settings = {"ratio": self.scale.ratio, "allow_left_out": True, "refine": self.scale.refine}
            rows = [row["messages"] for row in self.scale.rows(skill, self.seed)] if self.scale.refine else []
            examples = [(messages[:-1], messages[-1]["content"]) for messages in rows]
            config = ZipConfig.model_validate(settings)
            zip_delta(delta, base, None, config, name=skill, refine_on=examples or None).save_pretrained(place)
        return Skillpack.from_pretrained(place)

    def weave(self, rate: float, more: Sequence[str] = ()) -> Weave:
        """Return the packs of all skills, and of ``more``, with a router that was fitted on their training prompts."""
        skills = (*self.scale.skills, *more)
        place = self.folder / f"weave-{len(skills)}"
        if not place.is_dir():
            packs = {skill: self.pack(skill, rate) for skill in skills}
            Weave.write(place, self.base, packs, self.router(skills), dtype="float32")
        return Weave.from_pretrained(place, base=self.base)

    def router(self, skills: Sequence[str]) -> Router:
        """Return a router that was fitted on training prompts of the skills."""
        prompts = {skill: self.scale.prompts(skill, self.seed) for skill in skills}
        return fit_router(self.base, prompts, self.scale.background(), seed=self.seed)

    def rank_of(self, skill: str, rate: float) -> int:
        """Return the least rank at which a LoRA in bf16 takes as many bytes as the pack: rounding is in its favour."""
        delta = self.specialist(skill, rate)
        each = sum(2 * sum(delta.shape(name)) for name in delta.names())
        return -(-self.pack(skill, rate).nbytes // each)

    # -- merges ------------------------------------------------------------------------------------------------------

    def merged(self, how: str, deltas: Sequence[Delta], factor: float) -> Delta:
        """Return the merge of the specialists by PEFT's functions; ``factor`` weighs each of them."""
        weights = torch.full((len(deltas),), factor)
        tensors = {}
        torch.manual_seed(self.seed)  # DARE drops entries at random
        for name in deltas[0].names():
            own = [delta.tensor(name).float() for delta in deltas]
            if how == ARITHMETIC:
                tensors[name] = merge_utils.task_arithmetic(own, weights)
            elif how == TIES:
                tensors[name] = merge_utils.ties(own, weights, TRIM)
            else:
                tensors[name] = merge_utils.dare_linear(own, weights, 1 - DROP)
        return Delta(tensors, base_fingerprint=self.base.fingerprint, base_ref=self.base.ref)

    def tuned_base(self, delta: Delta, name: str) -> Base:
        """Return base + delta as a base of its own, in its folder, on which one can train further."""
        place = self.folder / "bases" / name
        if not place.is_dir():
            write_tuned(self.base.path, delta, place, dtype="float32")
        return opened(place)


def opened(reference: str | Path) -> Base:
    """Return an open base in float32, on the CPU."""
    return open_base(reference, dtype="float32", device="cpu")


@contextmanager
def added(base: Base, delta: Delta) -> Iterator[Weave]:
    """A context with base + delta as a weave without packs; afterwards the base has its old weights, to the bit."""
    weights = {name: base.model.get_parameter(name) for name in delta.names()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        delta.add_to(base.model)
        yield Weave.of(base)
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
