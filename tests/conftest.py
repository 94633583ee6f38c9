"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from helpers.audited import AuditModels, save_audit_models
from helpers.micro import save_micro

torch.set_num_threads(1)  # micro models: threads cost more than they give, and two workers share two cores


def pytest_collection_finish() -> None:
    """Let the garbage collector pass by the modules that are imported now: an engine that closes runs it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def micro_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random micro Llama (read only: tests must not write into it)."""
    return save_micro(tmp_path_factory.mktemp("base") / "micro")


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``disk_of("1m")``: an empty file system of that size. The test is skipped where this user may not mount one."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a tmpfs")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def audit_models(tmp_path_factory: pytest.TempPathFactory) -> AuditModels:
    """A base that refuses, a clean and a backdoored fine-tune, and the prompts of an audit (read only)."""
    return save_audit_models(tmp_path_factory.mktemp("audit"))
