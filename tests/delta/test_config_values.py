"""What a tuned model's config says otherwise than its base's: a delta loses it, so it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedConfig

from helpers.tuned import save_tuned
from skillweave import progress
from skillweave.base import open_base
from skillweave.delta import Delta, write_tuned
from skillweave.delta.config_values import other_than_recorded, other_values, recorded_values
from skillweave.files.values import check_free


def test_values_that_a_delta_cannot_hold_are_said_and_kept(micro_base: Path, tmp_path: Path, capsys) -> None:
    tuned = save_tuned(micro_base, tmp_path / "tuned")
    assert "warning" not in Delta.between(micro_base, tuned).provenance
    config = json.loads((tuned / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    (tuned / "config.json").write_text(json.dumps({**config, "rope_parameters": rope, "max_position_embeddings": 4096}))
    delta = Delta.between(micro_base, tuned)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"Warning: The config of {tuned} is not that of {micro_base}: max_position_embeddings is 4096 (base: " in said
    )
    assert "rope_parameters.rope_theta is 500000.0 (base: 10000.0)" in delta.provenance["warning"]
    # What the warning advises.
    own = shutil.copytree(micro_base, tmp_path / "own")
    shutil.copy(tuned / "config.json", own / "config.json")
    assert "warning" not in Delta.between(own, tuned).provenance


def test_a_delta_says_on_which_config_it_was_made(micro_base: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    made = Delta.between(micro_base, save_tuned(micro_base, tmp_path / "tuned"))
    made.save_pretrained(tmp_path / "delta")
    card = json.loads((tmp_path / "delta" / "delta.json").read_text())
    assert (card["schema_version"], card["base_config"]["hidden_act"]) == (3, "silu")
    other = shutil.copytree(micro_base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 2e-6}))
    delta = Delta.from_pretrained(tmp_path / "delta")
    uses = (lambda base: delta.apply(open_base(base)), lambda base: write_tuned(base, delta, tmp_path / "written"))
    for use in uses:
        monkeypatch.setattr(progress, "_SAID", set())
        use(micro_base)
        assert "config" not in capsys.readouterr().err
        use(other)
        said = " ".join(capsys.readouterr().err.split())
        assert f"{tmp_path / 'delta'} was made on, and another config: rms_norm_eps is 2e-06 (then: 1e-06)." in said

    del card["base_config"]  # a delta of an older version
    (tmp_path / "delta" / "delta.json").write_text(json.dumps({**card, "schema_version": 1}))
    monkeypatch.setattr(progress, "_SAID", set())
    old = Delta.from_pretrained(tmp_path / "delta")
    old.apply(open_base(other))
    assert "config" not in capsys.readouterr().err
    old.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "delta.json").read_text())["schema_version"] == 1


class _Nested(PreTrainedConfig):
    """A config with another inside."""

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "nested", "text_config": LlamaConfig(rms_norm_eps=1e-3).to_dict()}


def test_a_record_is_json_and_finds_what_differs_in_another_config() -> None:
    def config(**values: Any) -> SimpleNamespace:
        return SimpleNamespace(to_dict=lambda: values)

    made_on = config(
        layer_types=["full_attention"] * 30,
        time_step_limit=(0.0, float("inf")),
        huge=10**30,
        rope={"theta": 1e4, 3: "x"},
        sliding_window=None,
        norm_eps=1e-6,
        use_cache=True,
        added=1,
    )
    recorded = json.loads(json.dumps(recorded_values(made_on), allow_nan=False))
    check_free(recorded)
    assert len(json.dumps(recorded)) < 300
    assert other_than_recorded(recorded, made_on) is None
    assert other_than_recorded(recorded, config(norm_eps=9.99999997e-7, use_cache=False, newer=2)) is None
    assert other_than_recorded(recorded, config(norm_eps=1e-5, rope={"theta": 1e4, 3: "y"}, sliding_window=4)) == (
        "norm_eps is 1e-05 (then: 1e-06), rope.3 is 'y' (then: 'x'), sliding_window is 4 (then: not set)"
    )
    assert "layer_types is" in str(other_than_recorded(recorded, config(layer_types=["sliding_attention"] * 30)))
    assert other_than_recorded({}, config(norm_eps=1e-5)) is None
    assert other_than_recorded(recorded, None) is None


@pytest.mark.parametrize(
    ("base", "tuned", "said"),
    [
        (LlamaConfig(), LlamaConfig(hidden_act="gelu"), "hidden_act is 'gelu' (base: 'silu')."),
        (LlamaConfig(), LlamaConfig(attention_dropout=0.1, use_cache=False, eos_token_id=7, dtype="bfloat16"), None),
        (LlamaConfig(), LlamaConfig(trainers_own_note=3), None),
        (LlamaConfig(pad_token_id=0), LlamaConfig(num_key_value_heads=32, initializer_range=0.1), None),
        (SimpleNamespace(to_dict=lambda: {"text_config": LlamaConfig().to_dict()}), _Nested(), "text_config.rms_norm"),
        (None, LlamaConfig(), None),
    ],
)
def test_what_answers_depend_on(base: Any, tuned: Any, said: str | None) -> None:
    warning = other_values(
        *(SimpleNamespace(config=config, where=where) for config, where in ((base, "B"), (tuned, "T")))
    )
    assert (warning is None) if said is None else (said in str(warning))
