"""The config that a written model has: one dtype, one vocabulary size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.travelling import model, save, tokenizer, tuned
from skillweave.delta import Delta, write_tuned
from skillweave.delta.write import main_dtype, with_dtype, with_vocabulary


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"dtype": "float16"}),
        ({"dtype": "bfloat16"}, {"dtype": "float16"}),
        ({"torch_dtype": "bfloat16"}, {"torch_dtype": "float16"}),
        ({"torch_dtype": "bfloat16", "dtype": None}, {"torch_dtype": "float16", "dtype": "float16"}),
        (
            {"dtype": "float32", "text_config": {"torch_dtype": "bfloat16", "n": 1}},
            {"dtype": "float16", "text_config": {"torch_dtype": "float16", "n": 1}},
        ),
        ({"rope": {"type": "x"}}, {"rope": {"type": "x"}, "dtype": "float16"}),
    ],
)
def test_every_dtype_key_says_the_same(config, expected) -> None:
    assert with_dtype(config, torch.float16) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vocab_size": 5}, {"vocab_size": 7}),
        ({"text_config": {"vocab_size": 5}}, {"text_config": {"vocab_size": 7}}),
        ({"vocab_size": 5, "text_config": {"vocab_size": 5}}, {"vocab_size": 7, "text_config": {"vocab_size": 7}}),
    ],
)
def test_the_vocabulary_size_stands_where_it_stood(config, expected) -> None:
    assert with_vocabulary(config, 7) == expected
    assert with_vocabulary(config, None) is config


def test_the_main_dtype_is_that_of_most_numbers() -> None:
    specs = {"a": ((4, 4), torch.bfloat16), "b": ((4,), torch.float32), "c": ((99,), torch.int64)}
    assert main_dtype(specs) is torch.bfloat16
    assert main_dtype({"c": ((99,), torch.int64)}) is None


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_base_whose_keys_disagree_is_written_with_one_truth(tmp_path: Path, dtype: str | None) -> None:
    base = save(tmp_path / "base", model().bfloat16(), tokenizer())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "float16"}))
    folder = save(tmp_path / "tuned", tuned(model().bfloat16()), tokenizer())
    out = write_tuned(base, Delta.between(base, folder), tmp_path / "out", dtype=dtype)
    written = json.loads((out / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == (dtype or "bfloat16")
    assert str(AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype) == f"torch.{dtype or 'bfloat16'}"


def test_a_delta_with_added_rows_is_saved_opened_and_applied_alike(tmp_path: Path) -> None:
    """A difference of the shared rows with tuned rows behind, as a pack unzips to, and a tensor held whole."""
    base = save(tmp_path / "base", model(), tokenizer())
    folder = save(tmp_path / "tuned", tuned(model(), 115, vocabulary=True), tokenizer("<a>"))
    whole = Delta.between(base, folder)
    name = "lm_head.weight"
    tensors = {key: whole.tensor(key) for key in whole.names()}
    tensors[name] = tensors[name].clone()
    tensors[name][:112] -= model().lm_head.weight.detach()
    made = Delta(
        tensors,
        base_fingerprint=whole.base_fingerprint,
        whole={k for k in tensors if whole.whole(k)} - {name},
        rows={name: 112},
        carried=whole.carried,
    )
    opened = Delta.from_pretrained(made.save_pretrained(tmp_path / "delta"))
    assert opened.shared_rows(name) == 112
    assert opened.carried == made.carried
    written = AutoModelForCausalLM.from_pretrained(write_tuned(base, opened, tmp_path / "out"))
    assert torch.allclose(
        written.lm_head.weight, AutoModelForCausalLM.from_pretrained(folder).lm_head.weight, atol=1e-6
    )
