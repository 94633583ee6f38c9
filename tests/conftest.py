"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from micro import save_micro

torch.set_num_threads(1)  # micro models: threads cost more than they give, and two workers share two cores


@pytest.fixture(scope="session")
def micro_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random micro Llama (read only: tests must not write into it)."""
    return save_micro(tmp_path_factory.mktemp("base") / "micro")
