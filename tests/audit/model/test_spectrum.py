"""Spectral statistics against torch's SVD and scipy, on matrices, on factors, on LoRA deltas and on packs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.small_pack import NORM, Q, make_pack
from helpers.tuned import save_lora
from skillweave.audit.model.spectrum import (
    TOP,
    delta_spectra,
    matrix_statistics,
    oddness,
    singular_values,
    spectrum_features,
)
from skillweave.delta import Delta

MATRIX = torch.randn(700, 9, generator=torch.Generator().manual_seed(0)) ** 3  # more rows than one strip


def slow_statistics(matrix: torch.Tensor) -> dict[str, float]:
    values = torch.linalg.svdvals(matrix.double()).numpy()
    share = values**2 / (values**2).sum()
    return {
        "top": values[0],
        "norm": float(matrix.double().norm()),
        "concentration": share[:TOP].sum(),
        "entropy": float(stats.entropy(share)),
        "stable_rank": float((values**2).sum() / values[0] ** 2),
        "kurtosis": float(stats.kurtosis(matrix.double().numpy().ravel(), fisher=False)),
    }


@pytest.mark.parametrize("matrix", [MATRIX, MATRIX.T.contiguous(), MATRIX[:1]], ids=["tall", "wide", "one row"])
def test_the_statistics_are_those_of_the_svd(matrix: torch.Tensor) -> None:
    assert matrix_statistics(matrix) == pytest.approx(slow_statistics(matrix), rel=1e-6)


def test_factors_give_the_statistics_of_their_product() -> None:
    left, right = MATRIX[:, :4], MATRIX[:30, :4].T.contiguous()
    found = matrix_statistics((left, right))
    assert found == pytest.approx(slow_statistics(left.double() @ right.double()), rel=1e-5)
    assert len(singular_values((left, right))) == 4


def test_rank_one_and_zero() -> None:
    found = matrix_statistics(torch.outer(torch.arange(1.0, 5.0), torch.ones(6)))
    assert found["stable_rank"] == pytest.approx(1)
    assert found["entropy"] == pytest.approx(0, abs=1e-6)
    assert set(matrix_statistics(torch.zeros(3, 4)).values()) == {0.0}


def test_a_lora_and_a_pack_are_read_by_their_factors(micro_base: Path, tmp_path: Path) -> None:
    lora = Delta.from_lora(save_lora(micro_base, tmp_path / "lora"), micro_base)
    for delta in (lora, make_pack().unzip()):
        spectra = {one.name: one for one in delta_spectra(delta)}
        assert Q in spectra
        assert NORM not in spectra
        assert (spectra[Q].kind, spectra[Q].layer) == ("q", 0)
        assert delta.factors(Q) is not None
        assert delta.factors(NORM) is None
        for name, one in spectra.items():
            dense = slow_statistics(delta.tensor(name))
            assert {key: getattr(one, key) for key in dense} == pytest.approx(dense, rel=1e-4), name
    assert "model.embed_tokens.weight" not in spectra  # it is stored whole: no difference


def test_features_average_layers_and_oddness_counts_robust_deviations() -> None:
    delta = Delta(
        {f"model.layers.{layer}.mlp.up_proj.weight": torch.eye(3) * scale for layer, scale in enumerate((1.0, math.e))},
        base_fingerprint="x",
    )
    features = spectrum_features(delta_spectra(delta))
    assert features["up.top"] == pytest.approx(0.5)  # the mean of log 1 and log e
    assert features["up.stable_rank"] == pytest.approx(3)
    clean = [{"a": value, "b": 1.0} for value in (1.0, 2.0, 3.0, 4.0, 100.0)]
    assert oddness({"a": 3.0 + 1.4826, "b": 7.0, "c": 1.0}, clean) == pytest.approx(1)  # b never varies, c is unknown
    assert np.isnan(oddness({"c": 1.0}, clean))
