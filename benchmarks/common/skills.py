"""The weave and the deltas that the benchmarks measure: those of a build, or small made-up ones with ``--quick``."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from skillweave.base import Base, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.tasks import Task, load_task, read_spec
from skillweave.weave import Weave, is_weave, read_card

DEMO = Path("runs/demo")
QUICK_BASE = "bundled:smollm2"
QUICK_TASKS = ("json_calls", "reverse_words", "sort_numbers")


@dataclass(frozen=True)
class Skill:
    """One skill of a built weave."""

    name: str
    pack_folder: Path
    delta_folder: Path

    @property
    def delta(self) -> Delta:
        """The delta as the method wrote it."""
        return Delta.from_pretrained(self.delta_folder)

    def task(self) -> Task:
        """The task that the skill was trained on, from its pack's card."""
        return load_task(Skillpack.from_pretrained(self.pack_folder).card.data)


@dataclass(frozen=True)
class Built:
    """The folder of a weave, its base, and its skills."""

    folder: Path
    base_ref: str
    skills: list[Skill]

    def specialist(self, skill: Skill, dtype: str, device: str | None = None) -> Base:
        """The base with the skill's full delta added."""
        return skill.delta.apply(open_base(self.base_ref, dtype=dtype, device=device), in_place=True)


def add_weave_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--weave``: the build that is measured."""
    parser.add_argument(
        "--weave",
        type=Path,
        metavar="FOLDER",
        help=f"a built weave, with its FOLDER.work beside it (default: {DEMO}; with --quick a small made-up one)",
    )


@contextlib.contextmanager
def built(options: argparse.Namespace) -> Iterator[Built]:
    """The weave that the options name. Raises :class:`UserError` if it was not built."""
    if options.weave is not None or not options.quick:
        yield find(options.weave or DEMO)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_up(Path(folder) / "quick")


def find(folder: Path) -> Built:
    """The weave in ``folder`` and the deltas in ``folder.work``."""
    if not is_weave(folder):
        raise UserError(f"{folder} holds no weave. Run `make demo` first, or name one with --weave.")
    card = read_card(folder)
    skills = [Skill(name, folder / "packs" / name, _work(folder) / name / "delta" / "delta") for name in card.packs]
    for skill in skills:
        if not skill.delta_folder.is_dir():
            raise UserError(
                f"{skill.delta_folder} is missing: the specialist of '{skill.name}' is made from it. Build the weave "
                "again (`make demo`), or name with --weave one whose .work folder was kept."
            )
    return Built(folder, card.base.ref, skills)


def make_up(folder: Path) -> Built:
    """A weave like that of a build, made in seconds: three random deltas on the linear layers of the first block."""
    base = open_base(QUICK_BASE)
    layers = {
        name: parameter.shape
        for name, parameter in base.model.named_parameters()
        if ".layers.0." in name and parameter.dim() == 2
    }
    packs = {}
    for seed, name in enumerate(QUICK_TASKS):
        source = torch.Generator().manual_seed(seed)
        tensors = {key: 0.002 * torch.randn(shape, generator=source) for key, shape in layers.items()}
        delta = Delta(tensors, base_fingerprint=base.fingerprint, base_ref=base.ref)
        delta.save_pretrained(_work(folder) / name / "delta" / "delta")
        task = read_spec(f"builtin:{name}").model_dump(mode="json")
        packs[name] = zip_delta(delta, base, None, ZipConfig(), name=name, method="random", data=task)
    Weave.write(folder, base, packs)
    return find(folder)


def _work(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.work")
