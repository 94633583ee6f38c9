"""Every model family is zipped, unzipped and served in mixed batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.family_proof import PASS, prove
from helpers.micro_families import FAMILIES

# One of each kind: plain, turned weights, fused and shifted positions, flattened, tied, experts in one tensor and in
# many, shared experts, state-space layers, hybrids.
QUICK = ("bloom", "falcon", "gemma3_text", "gpt2", "gpt_oss", "mamba", "mixtral", "opt", "phi3", "qwen2_moe", "zamba2")
# A tied head, one whose input takes the dtype of its weight, a scaled embedding, weights as (in, out), experts whose
# router the rounding moves, a limit of tokens under a name of its own.
INT8 = ("bloom", "mamba", "gemma3_text", "gpt2", "granitemoeshared", "mpt")
# transformers' continuous batching has no state-space layers and no keys that differ from values in size, and it
# computes another result where a model does not use the library's attention functions.
NOT_BATCHED = """
    bamba bloom codegen deepseek_v2 deepseek_v3 diffllama doge falcon falcon_h1 falcon_mamba gpt_neo gpt_neox_japanese
    gptj granitemoehybrid jamba jetmoe lfm2_moe llama4_text mamba mamba2 minicpm3 minimax mpt nemotron olmo_hybrid
    qwen3_5_text qwen3_next recurrent_gemma rwkv stablelm xglm youtu zamba2
"""
KNOWN = {"rwkv": "the base itself answers otherwise in a padded batch than alone"}


def prove_family(family: str, folder: Path, *, int8: bool = False) -> None:
    row = prove(family, folder, int8=int8)
    assert (row.zip, row.unzip) == (PASS, PASS)
    assert row.mixed == KNOWN.get(family, PASS)
    if family in NOT_BATCHED.split():
        assert row.engine.startswith("continuous batching of transformers")
    else:
        assert row.engine == PASS
    assert row.left_out == 0
    assert row.weight_error < 0.02


@pytest.mark.parametrize("family", QUICK)
def test_a_family_of_each_kind(family: str, tmp_path: Path) -> None:
    prove_family(family, tmp_path)


@pytest.mark.parametrize("family", INT8)
def test_a_family_of_each_kind_on_a_base_in_int8(family: str, tmp_path: Path) -> None:
    prove_family(family, tmp_path, int8=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(QUICK)))
def test_every_other_family(family: str, tmp_path: Path) -> None:
    prove_family(family, tmp_path)


@pytest.mark.slow
# The pack of qwen3_5_text is refused: on its random weights, rounding moves it further than a proof allows.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {*INT8, "qwen3_5_text"}))
def test_every_other_family_on_a_base_in_int8(family: str, tmp_path: Path) -> None:
    prove_family(family, tmp_path, int8=True)


def test_there_are_at_least_forty_five() -> None:
    assert len(FAMILIES) >= 45
