"""Base + delta as one checkpoint: what it reads is what is written, hashed and loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.travelling import model, save, tokenizer, tuned
from skillweave.base import Checkpoint, fingerprint
from skillweave.delta import Delta, write_tuned
from skillweave.delta.source import GivenTensors
from skillweave.errors import UserError


@pytest.fixture(params=[112, 115, 104], ids=["as many tokens", "more tokens", "fewer tokens"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Delta]:
    """(base in bfloat16, fine-tune in float32, their delta in float32)."""
    base = save(tmp_path / "base", model().bfloat16(), tokenizer())
    folder = save(tmp_path / "tuned", tuned(model(), request.param, vocabulary=True), tokenizer("<a>"))
    delta = Delta.between(base, folder, dtype="float32")
    return base, folder, delta


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_it_reads_what_is_written(pair: tuple[Path, Path, Delta], tmp_path: Path, dtype: torch.dtype | None) -> None:
    base, _, delta = pair
    tuned = delta.on(Checkpoint(base), dtype)
    written = Checkpoint(write_tuned(base, delta, tmp_path / "out", dtype=dtype))
    assert tuned.names() == written.names()
    for name in tuned.names():
        assert (tuned.shape(name), tuned.dtype(name)) == (written.shape(name), written.dtype(name))
        assert torch.equal(tuned.tensor(name), written.tensor(name))
    rows = written.shape("lm_head.weight")[0]
    assert tuned.token_rows == (None if rows == 112 else rows)


def test_its_fingerprint_is_that_of_the_written_folder_and_not_of_the_base(
    pair: tuple[Path, Path, Delta], tmp_path: Path
) -> None:
    base, _, delta = pair
    made = fingerprint(delta.on(Checkpoint(base)))
    assert made == fingerprint(write_tuned(base, delta, tmp_path / "out"))
    assert made != fingerprint(base)


def test_it_is_loaded_into_the_base_model(pair: tuple[Path, Path, Delta]) -> None:
    base, folder, delta = pair
    opened = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    untouched = copy.deepcopy(opened)
    delta.on(Checkpoint(untouched)).load_into(opened)
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in opened.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    assert untouched.get_input_embeddings().weight.shape[0] == 112


def test_a_tied_name_reads_the_changed_tensor(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model(tie=True), tokenizer())
    name = "model.embed_tokens.weight"
    delta = Delta({name: torch.ones(112, 32)}, base_fingerprint=fingerprint(base))
    checkpoint = Checkpoint(base)
    assert torch.equal(delta.on(checkpoint).tensor("lm_head.weight"), checkpoint.tensor(name) + 1)


def test_a_delta_that_does_not_fit_is_refused_by_name(pair: tuple[Path, Path, Delta]) -> None:
    base = Checkpoint(pair[0])
    for tensors, message in (
        ({"model.norm.weight": torch.ones(3)}, r"changes 'model.norm.weight' in the shape \(3,\)"),
        ({"model.ghost.weight": torch.ones(3)}, "changes 'model.ghost.weight', which .* does not have"),
    ):
        with pytest.raises(UserError, match=message):
            Delta(tensors, base_fingerprint=pair[2].base_fingerprint).on(base)


def test_what_is_whole_is_said_once() -> None:
    source = GivenTensors({"a": torch.ones(2)}, whole={"a"})
    assert Delta(source, base_fingerprint="sha256:0").whole("a")
    with pytest.raises(ValueError, match="says itself which tensors are whole"):
        Delta(source, base_fingerprint="sha256:0", whole={"a"})
    with pytest.raises(ValueError, match="names no tensor of the delta"):
        Delta({"a": torch.ones(2)}, base_fingerprint="sha256:0", rows={"b": 1})
