"""The statistics of calibration, compared with plain sums over tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skillweave.base import Base, answer_ids, open_base, prompt_ids
from skillweave.errors import UserError
from skillweave.skillzip.calibrate import (
    bounded,
    calibrate,
    calibration_rows,
    group_name,
    input_groups,
    linear_modules,
    token_weights,
)

EXAMPLES = [("add 2 and 3", "the sum is 5"), ("say hi", "hi there, friend"), ("one", "two")]


@pytest.fixture(scope="module")
def base(micro_base: Path) -> Base:
    return open_base(micro_base, dtype="float32")


def test_groups_are_found_by_the_shared_input(base: Base) -> None:
    groups = input_groups(base.model)
    first = {name: members for name, members in groups.items() if "layers.0" in name}
    assert first == {
        "model.layers.0.self_attn:q_proj+k_proj+v_proj": [
            f"model.layers.0.self_attn.{part}_proj" for part in ("q", "k", "v")
        ],
        "model.layers.0.self_attn:o_proj": ["model.layers.0.self_attn.o_proj"],
        "model.layers.0.mlp:gate_proj+up_proj": ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
        "model.layers.0.mlp:down_proj": ["model.layers.0.mlp.down_proj"],
    }
    assert sorted(name for members in groups.values() for name in members) == sorted(linear_modules(base.model))
    assert not any(module._forward_pre_hooks for module in base.model.modules())


def test_group_names() -> None:
    assert group_name(["a.b.q", "a.b.k"]) == "a.b:q+k"
    assert group_name(["a.b.q", "a.c.k"]) == "a:b.q+c.k"
    assert group_name(["head"]) == ":head"


def test_token_weights() -> None:
    # Positions 0..3 are the prompt, 4..6 the answer; 3, 4, 5 predict 4, 5, 6.
    assert token_weights(4, 3) == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0])
    assert token_weights(1, 1) == [0, 0]
    assert token_weights(1, 3) == pytest.approx([0, 0.5, 0.5, 0])


def test_bounded_shortens_only_the_longest() -> None:
    x = torch.eye(40)
    x[7] *= 1000
    out = bounded(x)
    assert float(out[7].norm()) == pytest.approx(1, rel=0.01)
    assert torch.equal(out[:7], x[:7])
    assert torch.equal(out[8:], x[8:])
    assert torch.equal(bounded(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_moments_equal_a_sum_over_tokens(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillweave.skillzip.calibrate._NORM_QUANTILE", 1.0)  # the bound is tested above
    group = "model.layers.1.mlp:gate_proj+up_proj"
    rows = calibration_rows(base.model, base.tokenizer, EXAMPLES)
    found = calibrate(base.model, rows, {group: input_groups(base.model)[group]})
    second, largest = torch.zeros(64, 64, dtype=torch.float64), torch.zeros(64)
    inputs: list[torch.Tensor] = []
    handle = base.model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for prompt, answer in EXAMPLES:  # one at a time: no padding at all
        before, after = prompt_ids(base.tokenizer, prompt), answer_ids(base.tokenizer, answer)
        with torch.no_grad():
            base.model(input_ids=torch.tensor([before + after]))
        for x, weight in zip(inputs.pop()[0], token_weights(len(before), len(after)), strict=True):
            second += weight * torch.outer(x, x).double() / len(EXAMPLES)
            if weight:
                largest = torch.maximum(largest, x.abs())
    handle.remove()
    assert torch.allclose(found[group].second.double(), second, rtol=1e-3, atol=1e-5)
    assert torch.allclose(found[group].largest, largest, rtol=1e-3, atol=1e-5)


def test_examples_without_an_answer_are_refused(base: Base) -> None:
    with pytest.raises(UserError, match="no calibration example"):
        calibration_rows(base.model, base.tokenizer, [])


def test_examples_beyond_the_context_are_left_out_and_counted(base: Base, capsys: pytest.CaptureFixture[str]) -> None:
    long = ("one", "x" * base.model.config.max_position_embeddings)
    assert len(calibration_rows(base.model, base.tokenizer, [*EXAMPLES, long])) == 3
    assert "1 of 4 calibration examples (25%) are longer than the base's context" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"can be used.*1 of 1 calibration examples \(100%\)"):
        calibration_rows(base.model, base.tokenizer, [long])
