"""The saves that are cut off: files, folders in each of the ways they are put in place, and the product's artefacts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from benchmarks.crash.faults import Save
from skillweave.artefact import atomic_file, atomic_folder, write_json, write_text
from skillweave.base import open_base
from skillweave.base.safetensors_io import write_tensors
from skillweave.delta import Delta
from skillweave.files import place
from skillweave.files.read import read_json
from skillweave.files.recover import sweep
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.pack import Skillpack
from skillweave.pipeline.step import run_step
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Router, Weave, read_card


@contextlib.contextmanager
def _plainly(root: Path) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _mounted(root: Path) -> Iterator[None]:
    """Within, ``root/place`` is taken for a mount point."""
    with mock.patch.object(place, "is_mount", lambda path: path.name == "place"):
        yield


def file_saves() -> list[Save]:
    """Saves of files and of plain folders, in each way that a place can be."""

    def text(version: str) -> Callable[[Path], object]:
        def write(root: Path) -> None:
            with atomic_file(root / "in" / "x.json") as temporary:
                temporary.write_text(f'"{version * 1000}"')

        return write

    def folder(version: str, around: Callable[[Path], contextlib.AbstractContextManager] = _plainly) -> Callable:
        def write(root: Path) -> None:
            with around(root), atomic_folder(root / "place") as temporary:
                (temporary / "sub").mkdir()
                (temporary / "sub" / version).write_text(version)
                write_json(temporary / "card.json", {"version": version})
                write_tensors(temporary / "x.safetensors", {"x": torch.full((100,), float(len(version)))}, {})

        return write

    def link(root: Path) -> None:
        (root / "disk").mkdir()
        (root / "link").symlink_to("disk/place")
        through(root, old)

    def through(root: Path, version: str) -> None:
        with atomic_folder(root / "link") as temporary:
            (temporary / version).write_text(version)

    old, new = "old", "newer"
    return [
        Save("file, new", "in/x.json", None, text(new)),
        Save("file, replacing", "in/x.json", text(old), text(new)),
        Save("folder, new", "place", None, folder(new)),
        Save("folder, replacing", "place", folder(old), folder(new)),
        Save("folder, no exchange", "place", folder(old), folder(new), without_exchange=True),
        Save("folder, new, no exchange", "place", None, folder(new), without_exchange=True),
        Save("folder, mount point", "place", folder(old), folder(new, _mounted)),
        Save("folder behind a link", "disk/place", link, lambda root: through(root, new)),
    ]


def artefact_saves(folder: Path, shape: MicroShape) -> list[Save]:
    """Saves of the product's artefacts, made from a base and two fine-tunes in ``folder``."""
    model = micro_model(shape, 1)
    model.save_pretrained(folder / "base")
    micro_tokenizer().save_pretrained(folder / "base")
    base = open_base(folder / "base")
    deltas = {version: _tuned(folder, base.path, seed) for seed, version in enumerate(("old", "new"), 2)}
    packs = {version: zip_delta(delta, base, None, ZipConfig(ratio=0.5), name="a") for version, delta in deltas.items()}
    routers = {version: _router(shape.hidden, seed) for seed, version in enumerate(("old", "new"))}

    def saves(name: str, write: Callable[[str, Path], object], read: Callable[[Path], object]) -> list[Save]:
        return [
            Save(f"{name}, new", name, None, lambda root: write("new", root / name), read),
            Save(
                f"{name}, replacing",
                name,
                lambda root: write("old", root / name),
                lambda root: write("new", root / name),
                read,
            ),
        ]

    def weave(version: str, path: Path) -> None:
        Weave.write(path, base, {"a": packs[version]}, routers[version])

    return [
        *saves("delta", lambda version, path: deltas[version].save_pretrained(path), Delta.from_pretrained),
        *saves("pack", lambda version, path: packs[version].save_pretrained(path), Skillpack.from_pretrained),
        *saves("router", lambda version, path: routers[version].save(path), Router.load),
        *saves("weave", weave, read_card),
        Save(
            "build step",
            "step/pack",
            lambda root: _step(root, "old", packs["old"]),
            lambda root: _step(root, "new", packs["new"]),
            Skillpack.from_pretrained,
            may_be_absent=True,
        ),
    ]


def training_save(folder: Path, steps: int) -> Save:
    """A training run with a checkpoint after every step; the next save resumes from the newest complete one.

    Its result must equal that of an uninterrupted run, to the bit.
    """
    from skillweave.methods.training.order import batch_order
    from skillweave.methods.training.processes import Processes
    from skillweave.methods.training.settings import TrainingSettings
    from skillweave.methods.training.sft import AnswerTrainer, encode, row_length
    from skillweave.methods.training.trainer import fit, quiet, trainer_arguments

    tokenizer, shape = micro_tokenizer(), MicroShape(hidden=32, intermediate=64, layers=1)
    rows = encode(tokenizer, [(f"{number} + 1 =", str(number + 1)) for number in range(6)], shape.context)
    settings = TrainingSettings(steps=steps, batch_size=2, learning_rate=1e-2)
    order = batch_order([row_length(row) for row in rows], settings.batch_size, steps, 0)

    def train(root: Path) -> None:
        sweep(root / "run")  # a run of a method does this when it begins
        with quiet():
            processes = Processes()
            arguments = trainer_arguments(
                settings,
                processes,
                folder=root / "run",
                steps=steps,
                seed=0,
                bf16=False,
                device="cpu",
                save_every=1,
                gradient_checkpointing=False,
            )
            trainer = AnswerTrainer(micro_model(shape, 0), tokenizer, arguments, rows, order)
            fit(trainer, "training", processes)
        weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        write_tensors(root / "run" / "model.safetensors", weights, {})

    return Save("training, a checkpoint each step", "run/model.safetensors", None, train)


def _step(root: Path, version: str, pack: Skillpack) -> None:
    """A step of a build that saves a pack. The marker of a finished step must never lie beside files of another one."""
    mark = root / "step" / "step.json"
    if os.path.exists(mark) and (told := read_json(mark))["done"]:
        assert (root / "step" / "version.txt").read_text() == told["inputs"]["version"], "marked as another version"

    def work(folder: Path) -> None:
        write_text(folder / "version.txt", version)
        pack.save_pretrained(folder / "pack")

    run_step("step", root / "step", {"version": version}, work)


def _tuned(folder: Path, base: Path, seed: int) -> Delta:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / f"tuned-{seed}")
    return Delta.between(base, folder / f"tuned-{seed}")


def _router(hidden: int, seed: int) -> Router:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((2, hidden), generator=generator)
    zeros = torch.zeros(hidden)
    return Router(["a", "base"], weight, torch.zeros(2), zeros, zeros + 1, layer=1, threshold=0.5)
