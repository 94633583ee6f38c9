"""A linear layer in int8: weights rounded for each output channel, inputs for each token, sums in exact integers. Pure.

For a weight W (out, in), a token x (in,) and the layer's outlier channels O, whose products stay in floats [ours]::

    s_w = max|W without O| / 127  of each row     W' = round(W / s_w), 0 in the columns O        int8, made once
    s_x = max|x without O| / 127                  x' = round(x / s_x), 0 in the channels O       int8, for each token
    y   = x' W'^T                                 int32, exact
    output = y s_w s_x + x[O] W[:, O]^T + bias    float32, then rounded to the dtype of x

A token's scale is set by its largest channel. In some layers of a language model, a few input channels are tens to
thousands of times larger than the others, which would then round to a few codes, or to zero. Kept in floats, these
channels cost a few percent of the layer's products, and all others get a fine scale. Smoothing (SmoothQuant [relative]:
divide the inputs by s and multiply the columns of W by it) needs no floats, but it makes the weights coarser.
The module int8_backbone chooses the channels.

The gradient is the straight-through one: roundings count as the identity, so that of x is that of the output times W'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import embedding

from skillweave.weave.compiled import KINDS, Floats, LayerArgument, compiled, usable
from skillweave.weave.linear import LARGEST_CODE, int_matmul, token_codes

LONGEST = (2**31 - 1) // LARGEST_CODE**2
"""The most input channels of a layer: a sum of more products of the largest codes could exceed int32."""
TORCH_FROM = 16
"""From so many tokens on, torch's integer product is faster than the compiled one, which reads the weights as they lie.
Measured on one core of an EPYC, 576 -> 1536, microseconds, the whole compiled layer against torch's product alone: 8
tokens 100 / 116, 32 tokens 296 / 173, 512 tokens 4445 / 2332."""
WIDE, NARROW = 16384, 1024
"""In a layer with so many outputs, as heads have, and at most so many inputs, the compiled product is the faster one
for any number of tokens: it rounds its sums where they arise, and torch's are written to memory first. Measured as
above, milliseconds: 576 -> 49152, 8 tokens 2.4 / 8.0, 32 tokens 6.3 / 14.7, 512 tokens 110 / 205; but 2048 -> 49152,
32 tokens 45 / 38, 128 tokens 177 / 63."""
_CODED_AT_ONCE = 2**22
"""The numbers of a weight that are coded at once."""
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

    SmoothQuant, arXiv 2211.10438, equation 4 [relative], scaled to a geometric mean of 1. ``largest`` is max|x| of each
    channel, float (in,); ``weight`` is (out, in). Where one of the two is 0, the smallest positive value of the others
    counts.
    """
    x, w = (_positive(side.float()) for side in (largest, weight.abs().amax(dim=0)))
    logarithm = exponent * x.log() - (1 - exponent) * w.log()
    return (logarithm - logarithm.mean()).exp()


def _positive(values: torch.Tensor) -> torch.Tensor:
    above = values[values > 0]
    return values.clamp_min(float(above.min()) if above.numel() else 1.0)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, in place of ``nn.Linear`` or transformers' ``Conv1D``.

    Its weights are not trained; a gradient flows through it to its input.

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
        self._shared: SharedInput | None = None
        self._number = 0
        self._call: _Call | None = None
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)

    @torch.no_grad()
    def coded(self, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The tensors that stand for a float weight in the shape of the layer, by the names of the parameters."""
        matrix = weight if self.law == "linear" else weight.T
        kept = matrix[:, self.outliers].T.to(self._dtype).contiguous()
        # A head is large, and each step on it makes a copy in float32, so the rows are coded in blocks.
        blocks = [self._row_codes(rows) for rows in matrix.split(max(1, _CODED_AT_ONCE // self.in_features))]
        codes, top = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        stored = codes if self.law == "linear" else codes.T.contiguous()
        return {"weight": stored, "weight_scale": top / LARGEST_CODE**2, "outlier_weight": kept}

    def _row_codes(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`row_codes` of some rows of the weight (out, in), smoothed, without the outlier channels."""
        floats = rows.float() if self.unsmooth is None else rows.float() / self.unsmooth
        return row_codes(floats.index_fill(1, self.outliers, 0.0))

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
        if x.requires_grad and torch.is_grad_enabled():
            return _StraightThrough.apply(x, self)
        return self._output(x)

    def _output(self, x: torch.Tensor) -> torch.Tensor:
        if self._shared is not None and (y := self._shared.output(self._number, x)) is not None:
            return y
        if self._call is None or not self._call.fits():
            self._call = _Call([self])
        return self._call(x)[0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the prepared call, which holds addresses: a copy of the layer makes its own."""
        return {**self.__dict__, "_call": None}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, outliers={self.outliers.numel()}"


def has_int8(model: nn.Module) -> bool:
    """Whether layers of the model are in int8."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


class Int8Embedding(nn.Embedding):
    """An embedding that is tied with a head in int8, and looks its rows up in the head's weight.

    It has the head's parameters, under the same names; so a tuned weight has tensors of the same names here
    (:meth:`coded`), and :meth:`decoded` is the weight that both use.
    """

    law = "lookup"
    weight_scale: nn.Parameter
    outlier_weight: nn.Parameter
    outliers: torch.Tensor
    unsmooth: torch.Tensor | None

    def __init__(self, head: Int8Linear, padding_idx: int | None = None, dtype: torch.dtype | None = None) -> None:
        """``dtype`` is that of the output; None: that of the base's weights."""
        super().__init__(head.out_features, head.in_features, padding_idx, device="meta")
        self._dtype = dtype
        del self._parameters["weight"]
        # A model's dtype is that of its first parameter of floats, and often this embedding is its first module.
        for name in ("outlier_weight", "weight", "weight_scale"):
            self.register_parameter(name, getattr(head, name))
        self.register_buffer("outliers", head.outliers, persistent=False)
        self.register_buffer("unsmooth", head.unsmooth, persistent=False)
        self.coded, self.decoded = head.coded, head.decoded

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of the decoded weight: int64 (...) -> (..., hidden). A negative id is an IndexError."""
        rows = embedding(ids, self.weight).float() * (self.weight_scale[ids] * LARGEST_CODE)[..., None]
        if self.unsmooth is not None:
            rows *= self.unsmooth
        kept = self.outlier_weight[:, ids.reshape(-1)].T.reshape(*ids.shape, self.outliers.numel())
        rows[..., self.outliers] = kept.float()
        return rows.to(self._dtype or self.outlier_weight.dtype)


class _StraightThrough(torch.autograd.Function):
    """The output of an :class:`Int8Linear`, whose roundings have the gradient of the identity."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
        """The output as without gradients, to the bit. The layer must hold the same weights until the backward pass."""
        context.layer = layer
        return layer._output(x)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of the input: that of the output times the weight that the layer multiplies with."""
        weight = context.layer.decoded().to(gradients[0].dtype)
        return gradients[0] @ (weight if context.layer.law == "linear" else weight.T), None


class SharedInput:
    """Layers that are given the same tensor (q, k, v; gate, up): the first that is called computes all their outputs.

    They have the same outlier channels and no smoothing. While one of them holds tuned values, each computes its
    own output.
    """

    def __init__(self, layers: Sequence[Int8Linear]) -> None:
        self._layers = list(layers)
        _lay_side_by_side(self._layers)
        self._call: _Call | None = None
        self._x: torch.Tensor | None = None
        self._version = 0
        self._waiting: dict[int, torch.Tensor] = {}
        for number, layer in enumerate(self._layers):
            layer._shared, layer._number = self, number

    def __getstate__(self) -> dict[str, Any]:
        """Without the prepared call, which holds addresses, and without outputs that wait."""
        return {"_layers": self._layers, "_call": None, "_x": None, "_version": 0, "_waiting": {}}

    def output(self, number: int, x: torch.Tensor) -> torch.Tensor | None:
        """The output of layer ``number``, or None if it has to be computed alone."""
        if self._call is None:
            self._call = _Call(self._layers)
        elif not self._call.fits():
            return None
        version = 0 if x.is_inference() else x._version
        if x is not self._x or version != self._version or number not in self._waiting:
            self._x, self._version = x, version
            self._waiting = dict(enumerate(self._call(x)))
        mine = self._waiting.pop(number)
        if not self._waiting:
            self._x = None
        return mine


def _lay_side_by_side(layers: Sequence[Int8Linear]) -> None:
    """Move the tensors of the layers so that those of one kind are parts of one tensor, in the order of the layers."""
    if any(layer.law != "linear" for layer in layers):
        return
    sizes = [layer.out_features for layer in layers]
    for name, axis in (("weight", 0), ("weight_scale", 0), ("outlier_weight", 1)):
        parameters = [layer._parameters[name] for layer in layers]
        joined = torch.cat([parameter.data for parameter in parameters], dim=axis)  # type: ignore[union-attr]
        for parameter, part in zip(parameters, joined.split(sizes, dim=axis), strict=True):
            parameter.data = part  # type: ignore[union-attr]


class _Call:
    """Computes the outputs of layers that share their input, while their parameters stay where they are in memory."""

    def __init__(self, layers: Sequence[Int8Linear]) -> None:
        self._layers = list(layers)
        self._addresses = self._now()
        self._arguments = (LayerArgument * len(layers))(*map(_argument, layers)) if _are_readable(layers) else None
        first = layers[0]
        self._inner = first.in_features
        self._unsmooth = 0 if first.unsmooth is None else first.unsmooth.data_ptr()
        self._outliers, self._kept = first.outliers.data_ptr(), first.outliers.numel()
        self._joined = _joined(layers)
        self._wide = max(layer.out_features for layer in layers) >= WIDE and self._inner <= NARROW

    def _now(self) -> list[int]:
        return [
            0 if parameter is None else parameter.data_ptr()
            for layer in self._layers
            for parameter in layer._parameters.values()
        ]

    def fits(self) -> bool:
        """Whether the parameters are where they were when this call was prepared."""
        return self._now() == self._addresses

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs (..., out) of the layers for the input (..., in), in its dtype."""
        if self._arguments is None or not usable(x):
            return self._with_torch(x.reshape(-1, self._inner), x.shape[:-1])
        outputs = []
        for argument in self._arguments:
            outputs.append(x.new_empty((*x.shape[:-1], argument.out)))
            argument.y = outputs[-1].data_ptr()
        library, kind, tokens = compiled(), KINDS[x.dtype], x.numel() // self._inner
        fed = (x.data_ptr(), kind, tokens, self._inner, self._unsmooth, self._outliers, self._kept)
        if tokens < TORCH_FROM or len(self._joined) > 1 or self._wide:
            library.sw_linear(*fed, self._arguments, len(outputs))
            return outputs
        codes = torch.empty(tokens, self._inner, dtype=torch.int8)
        top, kept = torch.empty(tokens), torch.empty(tokens, self._kept)
        library.sw_codes(*fed, codes.data_ptr(), top.data_ptr(), kept.data_ptr())
        sums = int_matmul(codes, self._joined[0][0])
        library.sw_finish(
            sums.data_ptr(), sums.shape[1], kind, tokens, top.data_ptr(), kept.data_ptr(), self._kept, self._arguments,
            len(outputs),
        )  # fmt: skip
        return outputs

    def _with_torch(self, x: torch.Tensor, shape: torch.Size) -> list[torch.Tensor]:
        first = self._layers[0]
        u = x.to(torch.float32, copy=True) if first.unsmooth is None else x * first.unsmooth
        if self._kept:
            u.index_fill_(1, first.outliers, 0.0)
        codes, top = token_codes(u)
        outlying = x.index_select(1, first.outliers).float() if self._kept else None
        products = []
        for weight, scale, outlier_weight in self._joined:
            y = (int_matmul(codes, weight) * scale).mul_(top)
            products.append(y if outlying is None else y.addmm_(outlying, outlier_weight.float()))
        y = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        outputs = y.split([layer.out_features for layer in self._layers], dim=1)
        return [
            (own if layer.bias is None else own + layer.bias).to(x.dtype).view(*shape, layer.out_features)
            for layer, own in zip(self._layers, outputs, strict=True)
        ]


def _joined(layers: Sequence[Int8Linear]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(weight (in, out), scale, outlier weight): once for all layers if they lie side by side, else for each."""
    first, out = layers[0], sum(layer.out_features for layer in layers)
    at = first.weight.data_ptr()
    for layer in layers:
        if layer.law != "linear" or layer.weight.data_ptr() != at:
            return [
                (each.weight.T if each.law == "linear" else each.weight, each.weight_scale, each.outlier_weight)
                for each in layers
            ]
        at += layer.weight.nbytes
    kept = first.outliers.numel()
    return [
        (
            first.weight.as_strided((out, first.in_features), (first.in_features, 1)).T,
            first.weight_scale.as_strided((out,), (1,)),
            # one layer of several that lie side by side has the stride of all of them
            first.outlier_weight.as_strided((kept, out), (first.outlier_weight.stride(0), 1)),
        )
    ]


def _are_readable(layers: Sequence[Int8Linear]) -> bool:
    """Whether the compiled functions can read the parameters of the layers."""
    return all(
        layer.law == "linear"
        and layer.weight.device.type == "cpu"
        and layer.weight.is_contiguous()
        and layer.outlier_weight.dtype in KINDS
        and (layer.bias is None or layer.bias.dtype in KINDS)
        for layer in layers
    )


def _argument(layer: Int8Linear) -> LayerArgument:
    return LayerArgument(
        layer.weight.data_ptr(),
        layer.weight_scale.data_ptr(),
        Floats.of(layer.outlier_weight),
        layer.outlier_weight.stride(0),
        Floats.of(layer.bias),
        layer.out_features,
        0,
    )
