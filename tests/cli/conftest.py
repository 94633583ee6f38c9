"""A micro base and the results of commands on it, made once for all tests here (read only)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from helpers.micro import save_micro
from helpers.terminal import Bench, Ran, made
from helpers.tiny import TASK, TINY

SPELL = {**TASK, "name": "reverse_words", "config": {"unit": "letters", "least": 1, "most": 1}}


@pytest.fixture(scope="session", autouse=True)
def no_bars() -> Iterator[None]:
    """Switch off the progress bars: the commands do so only before transformers is imported."""
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="session")
def bench(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Base, delta, adapter and pack; ``specialise`` made the delta, and ``zip`` the pack."""
    folder = tmp_path_factory.mktemp("bench")
    task, settings = folder / "task.yaml", folder / "settings.yaml"
    task.write_text(yaml.safe_dump(TASK))
    settings.write_text(yaml.safe_dump(TINY))
    made("specialise", "-b", micro_base, "-t", task, "-c", settings, "-o", folder / "run")
    made("zip", "-b", micro_base, "--delta", folder / "run" / "delta", "--ratio", "0.5", "-o", folder / "sort")
    return Bench(
        folder=folder,
        base=micro_base,
        other_base=save_micro(folder / "other", seed=2),
        task=task,
        settings=settings,
        delta=folder / "run" / "delta",
        adapter=_adapter(micro_base, folder / "adapter"),
        pack=folder / "sort",
    )


def _adapter(base: Path, folder: Path) -> Path:
    """A PEFT adapter that changes the weights (a new adapter of PEFT is zero)."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def built(bench: Bench) -> tuple[Path, Ran]:
    """A weave of two skills that ``build`` made, and its output in a terminal of 80 columns."""
    config = {
        "name": "micro",
        "base": str(bench.base),
        "dtype": "float32",
        "skills": {"sort": {"task": TASK, "pack": str(bench.pack)}, "spell": {"task": SPELL, "settings": TINY}},
        "zip": {"ratio": 0.5},
        "score": {"max_new_tokens": 4},
    }
    file = bench.folder / "weave.yaml"
    file.write_text(yaml.safe_dump(config))
    ran = made("build", file, "-o", bench.folder / "weave")
    return bench.folder / "weave", ran


@pytest.fixture(scope="session")
def weave(built: tuple[Path, Ran]) -> Path:
    """The folder of :func:`built`."""
    return built[0]
