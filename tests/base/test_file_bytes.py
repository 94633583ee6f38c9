"""The size of a safetensors file, known before it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from skillweave.base.safetensors_io import file_bytes, write_stream

KINDS: dict[str, dict[str, torch.Tensor]] = {
    "nothing": {},
    "one number": {"x": torch.zeros(())},
    "no numbers": {"x": torch.zeros(0, 4, dtype=torch.int8)},
    "mixed types": {
        "a": torch.zeros(3, 5, dtype=torch.int8),
        "b": torch.zeros(7, dtype=torch.float16),
        "c": torch.zeros(1, 2, 3, dtype=torch.bfloat16),
        "d": torch.zeros(9, dtype=torch.uint8),
        "e": torch.zeros(2, 2),
    },
    "many": {f"model.layers.{at}.weight": torch.zeros(at % 5, 3) for at in range(120)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_that_of_the_written_file_and_of_the_librarys_own(kind: str, tmp_path: Path) -> None:
    tensors = KINDS[kind]
    specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_stream(tmp_path / "x.safetensors", specs, tensors.__getitem__)
    assert file_bytes(specs) == (tmp_path / "x.safetensors").stat().st_size
    assert file_bytes(specs) == len(save(tensors, metadata={"format": "pt"}))
    assert load_file(tmp_path / "x.safetensors").keys() == tensors.keys()


def test_names_beyond_ascii_count_as_they_are_written(tmp_path: Path) -> None:
    tensors = {'é"\\': torch.zeros(3)}
    specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_stream(tmp_path / "x.safetensors", specs, tensors.__getitem__)
    assert file_bytes(specs) == (tmp_path / "x.safetensors").stat().st_size
    assert load_file(tmp_path / "x.safetensors").keys() == tensors.keys()
