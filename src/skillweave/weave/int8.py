"""A linear layer in int8: weights rounded for each output channel, inputs for each token, sums in exact integers. Pure.

For a weight W (out, in), a token x (in,) and the layer's outlier channels O, whose products stay in floats [ours]::

    s_w = max|W without O| / 127  of each row     W' = round(W / s_w), 0 in the columns O        int8, made once
    s_x = max|x without O| / 127                  x' = round(x / s_x), 0 in the channels O       int8, for each token
    y   = x' W'^T                                 int32, exact
    output = y s_w s_x + x[O] W[:, O]^T + bias    float32, then rounded to the dtype of x

A token's scale is set by its largest channel. In some layers of a language model, a few input channels are tens to
thousands of times larger than the others, which would then round to a few codes, or to zero. Kept in floats, these
channels cost a few percent of the layer's products, and all others get a fine scale. Smoothing (SmoothQuant [abstract]:
divide the inputs by s and multiply the columns of W by it) needs no floats, but it makes the weights coarser.
The module int8_backbone chooses the channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from skillweave.weave.linear import LARGEST_CODE, int_matmul, token_codes

LONGEST = (2**31 - 1) // LARGEST_CODE**2
"""The most input channels of a layer: a sum of more products of the largest codes could exceed int32."""
Law = Literal["linear", "transposed"]
"""How a layer holds its weight: (out, in) or (in, out)."""


def row_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 codes in [-127, 127] and max|row| of each row: float (out, in) -> int8 (out, in), float32 (out,).

    A row of zeros gets the codes 0. A row with NaN gets NaN as its largest value, so that its outputs stay NaN.
    """
    codes, top = token_codes(weight.to(torch.float32, copy=True))
    return codes, top[:, 0]


def smoothing(largest: torch.Tensor, weight: torch.Tensor, exponent: float) -> torch.Tensor:
    """The factor of each input channel: max|x|^e / max|W column|^(1 - e) for the exponent e, float32 (in,).

    SmoothQuant, equation 4 [abstract], scaled to a geometric mean of 1. ``largest`` is max|x| of each channel, float
    (in,); ``weight`` is (out, in). Where one of the two is 0, the smallest positive value of the others counts.
    """
    x, w = (_positive(side.float()) for side in (largest, weight.abs().amax(dim=0)))
    logarithm = exponent * x.log() - (1 - exponent) * w.log()
    return (logarithm - logarithm.mean()).exp()


def _positive(values: torch.Tensor) -> torch.Tensor:
    above = values[values > 0]
    return values.clamp_min(float(above.min()) if above.numel() else 1.0)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, in place of ``nn.Linear`` or transformers' ``Conv1D``. For inference.

    It has parameters under the names of the layer it replaces, so a pack finds them: ``weight`` is int8 in the shape of
    the layer, and ``bias`` is the layer's own. Beside them are ``weight_scale`` float32 (out,), which is s_w / 127, and
    ``outlier_weight`` (k, out) in the dtype of the layer, which may be empty. A tuned weight has tensors of the same
    names (:meth:`coded`).

    Attributes:
        law: "linear" for a weight (out, in), "transposed" for (in, out).
        outliers: int64 (k,): the input channels that stay in floats, ascending.
        unsmooth: 1 / smooth, float32 (in,), or None.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter
    outlier_weight: nn.Parameter
    outliers: torch.Tensor
    unsmooth: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        law: Law = "linear",
        outliers: torch.Tensor | None = None,
        smooth: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.law = law
        self.out_features, self.in_features = weight.shape if law == "linear" else weight.shape[::-1]
        if self.in_features > LONGEST:
            raise ValueError(f"a layer of {self.in_features} inputs could overflow int32; at most {LONGEST}")
        self._dtype = weight.dtype
        where = weight.device
        picked = torch.empty(0, dtype=torch.int64) if outliers is None else outliers.sort().values
        self.register_buffer("outliers", picked.to(where), persistent=False)
        unsmooth = None if smooth is None else (1 / smooth.float()).to(where)
        self.register_buffer("unsmooth", unsmooth, persistent=False)
        for name, tensor in self.coded(weight.detach()).items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)

    @torch.no_grad()
    def coded(self, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The tensors that stand for a float weight in the shape of the layer, by the names of the parameters."""
        matrix = (weight if self.law == "linear" else weight.T).float()
        kept = matrix[:, self.outliers].T.to(self._dtype).contiguous()
        if self.unsmooth is not None:
            matrix = matrix / self.unsmooth
        codes, top = row_codes(matrix.index_fill(1, self.outliers, 0.0))
        stored = codes if self.law == "linear" else codes.T.contiguous()
        return {"weight": stored, "weight_scale": top / LARGEST_CODE**2, "outlier_weight": kept}

    @torch.no_grad()
    def decoded(self) -> torch.Tensor:
        """The float32 weight that the layer multiplies with, in the shape of the layer."""
        codes = self.weight if self.law == "linear" else self.weight.T
        matrix = codes.float() * (self.weight_scale * LARGEST_CODE)[:, None]
        if self.unsmooth is not None:
            matrix *= self.unsmooth
        matrix[:, self.outliers] = self.outlier_weight.float().T
        return matrix if self.law == "linear" else matrix.T.contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, in the dtype of ``x``: (..., in) -> (..., out)."""
        y = self._product(x.reshape(-1, self.in_features)).to(x.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """The output for tokens (n, in), as float32 (n, out)."""
        u = x.to(torch.float32, copy=True) if self.unsmooth is None else x * self.unsmooth
        if self.outliers.numel():
            u.index_fill_(1, self.outliers, 0.0)
        codes, top = token_codes(u)
        y = int_matmul(codes, self.weight.T if self.law == "linear" else self.weight) * self.weight_scale
        y.mul_(top)
        if self.outliers.numel():
            y.addmm_(x[:, self.outliers].float(), self.outlier_weight.float())
        return y if self.bias is None else y.add_(self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, outliers={self.outliers.numel()}"
