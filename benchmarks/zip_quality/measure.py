"""Measure one cell of the benchmark: the KL of a pack to its specialist, or its score; everything is made once."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common.closeness import kl_of_rows, said, said_to
from benchmarks.zip_quality.codecs import ALL, PLAIN, SMALLEST, SPECIALIST, allocation, zip_settings
from benchmarks.zip_quality.skills import base_of, fine_tune, scale_named, task_spec
from skillweave.artefact import write_json
from skillweave.base import Answer, Base, Prompt, Sampling, open_base
from skillweave.base.generate import generate
from skillweave.delta import Delta
from skillweave.errors import TooSmall
from skillweave.files.hashes import digest
from skillweave.files.read import read_json
from skillweave.files.recover import drop
from skillweave.pack import Skillpack, is_skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.skillzip.config import FIXED_SIZE
from skillweave.skillzip.refine import run as refine_run
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.teacher import TeacherRow
from skillweave.tasks import Task, evaluate, load_task
from skillweave.weave import Weave

KL, SCORE = "kl", "score"
SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Cell:
    """One measurement. ``ratio`` is empty for the base and the specialist, which are not zipped.

    ``recipe`` (:func:`benchmarks.zip_quality.skills.recipe`) changes with the fine-tune, so that its cells do.
    """

    scale: str
    skill: str
    length: str
    codec: str
    ratio: str
    seed: int
    measure: str
    recipe: str
    device: str | None = None


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the row of a cell. What it needs is made in ``folder`` once: base, fine-tune, packs."""
    began = time.monotonic()
    found = specialist_of(cell.scale, cell.skill, cell.length, cell.device, folder)
    row: dict[str, Any] = asdict(cell)
    row |= {"delta_bytes": found.delta.bf16_nbytes, "pack_bytes": 0, "weight_error": 1.0, "smallest": False}
    if cell.codec == PLAIN:
        row |= found.kl(nullcontext) if cell.measure == KL else found.score(None)
    elif cell.codec == SPECIALIST:
        row |= {"pack_bytes": found.delta.nbytes, "weight_error": 0.0}
        row |= {"kl_of_prompts": [0.0] * len(found.test_rows)} if cell.measure == KL else found.score_of_specialist()
    else:
        pack, smallest = found.pack(cell.codec, cell.ratio, cell.seed)
        measured = pack.card.codec.measured
        row |= {"pack_bytes": pack.nbytes, "weight_error": measured["weight_error"], "smallest": smallest}
        row |= {"left_out_share": measured["left_out_share"]}
        row |= found.measured_once(pack, replace(cell, ratio=SMALLEST) if smallest else cell)
    gc.collect()
    return {**row, "seconds": round(time.monotonic() - began, 1)}


@functools.lru_cache(maxsize=1)
def _opened(scale: str, device: str | None, folder: Path) -> Base:
    """Return the base in float32, which the fine-tunes were made on and which a CPU multiplies fastest."""
    return open_base(base_of(scale_named(scale), folder / "fine-tunes"), dtype="float32", device=device)


@functools.lru_cache(maxsize=8)
def specialist_of(scale: str, skill: str, length: str, device: str | None, folder: Path) -> Specialist:
    """Return the specialist of a cell, ready to be zipped and measured."""
    return Specialist(_opened(scale, device, folder), scale, skill, length, folder)


class Specialist:
    """A fine-tune of the base, its prompts, and what it says on them."""

    def __init__(self, base: Base, scale: str, skill: str, length: str, folder: Path) -> None:
        self.base = base
        self.scale = scale_named(scale)
        self.tokens = self.scale.skills[skill].tokens
        delta = fine_tune(base, self.scale, skill, length, folder / "fine-tunes")
        self.delta = Delta.from_pretrained(delta)
        self.packs = folder / "packs" / delta.parent.name
        self.said = folder / "said" / delta.parent.name
        self.task: Task = load_task(task_spec(self.scale, skill))

    def opened(self) -> Base:
        """Return base + delta in float32: a second model."""
        return self.delta.apply(
            open_base(self.base.path, dtype="float32", device=self.base.model.device), in_place=True
        )

    def calibration(self, seed: int) -> list[tuple[Prompt, Answer]]:
        """Return the calibration prompts of a seed, with gold answers."""
        size = self.scale.calibration
        return self.task.pairs("calibration")[seed * size : (seed + 1) * size]

    # -- packs ---------------------------------------------------------------------------------------------------

    def pack(self, codec: str, ratio: str, seed: int) -> tuple[Skillpack, bool]:
        """Return the pack of a codec at a ratio, and whether it is only the smallest that the codec can write."""
        fixed = ALL[codec].settings["codec"] in FIXED_SIZE
        try:
            return self.zipped(codec, seed, zip_settings(codec, seed, **({} if fixed else {"ratio": ratio}))), fixed
        except TooSmall as error:
            return self.zipped(codec, seed, zip_settings(codec, seed, budget=error.least)), True

    def zipped(self, codec: str, seed: int, config: ZipConfig) -> Skillpack:
        """Return the pack that a zip with these settings makes on the calibration prompts of a seed; it is kept."""
        place = self.packs / digest([codec, seed, config.model_dump(mode="json")])
        if not is_skillpack(place):
            examples = self.calibration(seed)
            with allocation(codec), self._teacher(seed, config.refine):
                pack = zip_delta(
                    self.delta,
                    self.base,
                    examples if config.needs_calibration else None,
                    config,
                    name="pack",
                    refine_on=examples if config.refine is not None else None,
                    work=place.with_suffix(".work") if config.refine is not None else None,
                )
            if config.codec in FIXED_SIZE and config.refine is None:
                return pack  # large, and made in seconds: not worth the disk
            pack.save_pretrained(place)
            drop(place.with_suffix(".work"))
        return Skillpack.from_pretrained(place)

    @contextlib.contextmanager
    def _teacher(self, seed: int, config: RefineConfig | None) -> Iterator[None]:
        """A context in which all packs of a seed are refined with one copy of the specialist's answers."""
        if config is None:
            yield
            return
        # The answers and probabilities depend on nothing else of the settings.
        answers = digest([config.top_k, config.answers, config.max_new_tokens, config.prompts])
        place = self.said / f"{seed}-{answers}"

        def shared(
            opener: Callable[[], Base], examples: Sequence[tuple[Prompt, Answer]], config: RefineConfig, _: Path
        ) -> list[TeacherRow]:
            return said(opener, examples, config, place)

        with mock.patch.object(refine_run, "teacher_rows", shared):
            yield

    # -- measures ------------------------------------------------------------------------------------------------

    def measured_once(self, pack: Skillpack, cell: Cell) -> dict[str, Any]:
        """Return the measure of a pack. The smallest pack of a codec, which stands for several ratios, is kept."""
        file = self.packs / "smallest" / f"{digest([asdict(cell), pack.nbytes])}.json"
        if cell.ratio != SMALLEST:
            return self.measured(pack, cell.measure)
        if not file.exists():
            write_json(file, self.measured(pack, cell.measure))
        return read_json(file)

    def measured(self, pack: Skillpack, what: str) -> dict[str, Any]:
        """Return a measure of a pack, as it is served on the base."""
        woven = Weave.of(self.base, {"pack": pack})
        if what == SCORE:
            return self.score(woven)
        return self.kl(lambda: woven.packed_model.every_row("pack"))

    @functools.cached_property
    def test_rows(self) -> list[TeacherRow]:
        """What the specialist answers to the first test prompts, and its probabilities along its answers."""
        prompts = [entry.prompt for entry in self.task.distinct("test")[: self.scale.prompts]]
        return said_to(self.opened, prompts, self.tokens, self.said / "test")

    def kl(self, around: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
        """Return the KL of each test prompt in nats a token, along the specialist's answer, inside ``around()``."""
        found = kl_of_rows(self.base.model, self.test_rows, around)
        return {"kl_of_prompts": [float(f"{value:.5g}") for value in found]}

    def score(self, woven: Weave | None) -> dict[str, Any]:
        """Return the score of each test prompt, of the pack or (None) of the base."""
        weave = woven or Weave.of(self.base)

        def answers(prompts: list[Prompt]) -> list[str]:
            return [reply.text for reply in weave.generate(prompts, "pack" if woven else None, self._sampling)]

        return self._scored(answers)

    def score_of_specialist(self) -> dict[str, Any]:
        """Return the score of each test prompt, of base + delta."""
        base = self.opened()

        def answers(prompts: list[Prompt]) -> list[str]:
            return [texts[0] for texts in generate(base.model, base.tokenizer, prompts, self._sampling)]

        return self._scored(answers)

    def _scored(self, answers: Callable[[list[Prompt]], list[str]]) -> dict[str, Any]:
        return {"score_of_prompts": evaluate(self.task, answers, limit=self.scale.scored).scores}

    @property
    def _sampling(self) -> Sampling:
        return Sampling(max_new_tokens=self.tokens, batch_size=SCORED_AT_ONCE)
