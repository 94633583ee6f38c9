"""Spectral statistics of a delta, matrix by matrix. A screen only.

The statistics are those that weight-spectrum detectors use (2602.15195: top singular value, norm, energy
concentration, spectral entropy, kurtosis) [relative], and the stable rank [ours]. What is usual depends on the base,
the data and the training, so the figures mean nothing without clean checkpoints that were trained alike, and a person
who knows the statistics can train around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from skillweave.audit.statistics import robust_spread
from skillweave.delta import Delta
from skillweave.progress import bar, say_once, share_of

TOP = 4
"""The energy concentration is the share of the squared singular values that this many of them hold."""
STATISTICS = ("top", "norm", "concentration", "entropy", "stable_rank", "kurtosis")
_KINDS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class MatrixSpectrum:
    """The statistics of one changed matrix. Singular values are s_1 >= s_2 >= ..., the energy is their squares."""

    name: str
    kind: str
    """q, k, v, o, gate, up, down, or other"""
    layer: int | None
    top: float
    """s_1"""
    norm: float
    """the Frobenius norm"""
    concentration: float
    """the share of the energy in the first :data:`TOP` singular values"""
    entropy: float
    """the entropy of the energy over the singular values, in nats"""
    stable_rank: float
    """norm^2 / s_1^2"""
    kurtosis: float
    """the fourth central moment of the entries over their squared variance; 3 for a normal distribution"""


def delta_spectra(delta: Delta) -> list[MatrixSpectrum]:
    """Return the statistics of every changed matrix of a delta; one tensor is in memory at a time.

    Factors of a LoRA or of a pack are used as they are; their product is formed in strips only. Vectors, and tensors
    that are stored as tuned and not as a difference, are left out, and the console says how many. A matrix that did
    not change is left out too.
    """
    names = delta.names()
    used = [name for name in names if len(delta.shape(name)) >= 2 and not delta.whole(name)]
    if len(used) < len(names):
        say_once(f"Spectra are of matrices: {share_of(len(names) - len(used), len(names), 'tensors')} are left out.")
    spectra = []
    with bar("spectra", len(used)) as advance:
        for name in used:
            factors = delta.factors(name)
            matrix = factors if factors is not None else _as_matrix(delta.tensor(name)[: delta.shared_rows(name)])
            found = matrix_statistics(matrix)
            if found["norm"] > 0:
                layer = _LAYER.search(name)
                spectra.append(MatrixSpectrum(name, _kind(name), int(layer[1]) if layer else None, **found))
            advance()
    return spectra


def spectrum_features(spectra: Iterable[MatrixSpectrum]) -> dict[str, float]:
    """Return ``KIND.STATISTIC`` -> its mean over the layers, for every kind of matrix that changed.

    ``top`` and ``norm`` are averaged as logarithms, because the strength of a training changes them by factors.
    """
    grouped: dict[str, list[MatrixSpectrum]] = {}
    for spectrum in spectra:
        grouped.setdefault(spectrum.kind, []).append(spectrum)
    return {
        f"{kind}.{statistic}": float(np.mean([_scaled(statistic, getattr(one, statistic)) for one in members]))
        for kind, members in sorted(grouped.items())
        for statistic in STATISTICS
    }


def oddness(features: Mapping[str, float], clean: list[Mapping[str, float]]) -> float:
    """Return how unusual the features are among clean checkpoints: the mean of their robust z-scores, absolute.

    z = (x - median) / (1.4826 * median absolute deviation) [ours]. Features that a checkpoint lacks (its training
    changed other matrices), and those that do not vary, are left out; NaN if none is left.
    """
    scores = []
    for name, value in features.items():
        known = np.array([one[name] for one in clean if name in one])
        if not len(known):
            continue
        middle = np.median(known)
        spread = robust_spread(known)
        if spread > 0:
            scores.append(abs(value - middle) / spread)
    return float(np.mean(scores)) if scores else float("nan")


def matrix_statistics(matrix: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Return the figures of :class:`MatrixSpectrum` for a matrix (out, in), or for the product of two factors."""
    values = singular_values(matrix)
    energy = values.square()
    total = float(energy.sum())
    if total == 0:
        return dict.fromkeys(STATISTICS, 0.0)
    share = energy / total
    present = share[share > 0]
    return {
        "top": float(values[0]),
        "norm": total**0.5,
        "concentration": float(share[:TOP].sum()),
        "entropy": float(-(present * present.log()).sum()),
        "stable_rank": total / float(energy[0]),
        "kurtosis": _kurtosis(matrix),
    }


def singular_values(matrix: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the singular values, largest first, float64 (min(out, in),) or (r,) for factors.

    They are roots of eigenvalues of the smaller Gram matrix: those below 1e-8 of the largest are noise. Factors
    L (out, r) and R (r, in) are reduced by QR first: L R = Q1 (T1 T2^T) Q2^T has the singular values of T1 T2^T.
    """
    if isinstance(matrix, tuple):
        left, right = (factor.double() for factor in matrix)
        return torch.linalg.svdvals(torch.linalg.qr(left, mode="r")[1] @ torch.linalg.qr(right.T, mode="r")[1].T)
    wide = matrix.double()
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp_min(0).sqrt().flip(0)


def _kurtosis(matrix: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the kurtosis of all entries, from sums over strips of rows."""
    count, sums = 0, torch.zeros(4, dtype=torch.float64)
    rows = matrix[0] if isinstance(matrix, tuple) else matrix
    for strip in rows.split(_ROWS_AT_ONCE):
        entries = (strip @ matrix[1] if isinstance(matrix, tuple) else strip).double()
        count += entries.numel()
        sums += torch.stack([entries.pow(power).sum() for power in (1, 2, 3, 4)]).cpu()
    one, two, three, four = (sums / count).tolist()
    variance = two - one**2
    fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    return fourth / variance**2 if variance > 0 else 0.0


def _scaled(statistic: str, value: float) -> float:
    return float(np.log(value)) if statistic in ("top", "norm") else value


def _as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a matrix: a stack of matrices (..., out, in) becomes one under the other."""
    return tensor.float().reshape(-1, tensor.shape[-1])


def _kind(name: str) -> str:
    return next((kind for part, kind in _KINDS.items() if f".{part}." in f".{name}."), "other")
