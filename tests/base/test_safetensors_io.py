"""Safetensors files: their size is known from shapes alone, and the library reads what is written."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from skillweave.base.safetensors_io import DTYPES, file_bytes, write_stream


def _specs(tensors):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _examples():
    every_dtype = {f"tensor.{name}": torch.ones(3, 2).to(dtype) for name, dtype in DTYPES.items()}
    large = {f"model.layers.{at}.weight": torch.randn(at + 1, 17) for at in range(40)}
    odd_shapes = {"scalar": torch.tensor(1.0), "empty": torch.zeros(0, 4), 'é"name': torch.ones(2, 1, 3)}
    return [{}, every_dtype, large, odd_shapes]


def test_the_size_of_a_file_is_known_before_it_is_written(tmp_path):
    for at, tensors in enumerate(_examples()):
        for metadata in (None, {"skillpack": "7", "long": "é" * at}):
            file = tmp_path / "x.safetensors"
            write_stream(file, _specs(tensors), tensors.__getitem__, metadata)
            assert file_bytes(_specs(tensors), metadata) == file.stat().st_size


def test_the_library_reads_what_is_written_and_writes_the_same_values(tmp_path):
    for at, tensors in enumerate(_examples()):
        ours, theirs = tmp_path / f"{at}.safetensors", tmp_path / f"{at}-library.safetensors"
        write_stream(ours, _specs(tensors), tensors.__getitem__)
        save_file(tensors, theirs, metadata={"format": "pt"})
        expected = load_file(theirs)
        read = load_file(ours)
        assert read.keys() == expected.keys() == tensors.keys()
        for name, tensor in read.items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor.float(), expected[name].float())
