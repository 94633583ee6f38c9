"""The integer codes of a skillpack: symmetric quantisation by row, and two four-bit codes in a byte. Pure functions.

Symmetric means that there is no zero point, and that the most negative code is never used: if q is a code, -q is one
too (int8 in [-127, 127], int4 in [-7, 7]). Scales are float16, as in the file. A row is quantised with its scale after
the rounding to float16, because that is the scale that will be read back.
"""

from __future__ import annotations

import torch

LARGEST = {4: 7, 8: 127}
"""The largest code, by the width in bits."""

# Clipping the few largest numbers of a row makes the steps between codes smaller. With 15 codes this saves about a
# fifth of the squared error of a normally distributed row. With 255 codes it saves nothing, so only int4 is searched.
_CLIPPING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Return two codes a byte along the last axis: int8 (..., n) in [-8, 7] -> uint8 (..., ceil(n / 2)).

    Code 2i is in the low four bits of byte i and code 2i + 1 in the high four, each in two's complement. If n is odd,
    the high half of the last byte is 0. Raises TypeError for codes that are not int8.
    """
    if codes.dtype != torch.int8:
        raise TypeError(f"codes must be int8, not {codes.dtype}")
    halves = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).view(torch.uint8) & 0xF
    return halves[..., 0::2] | (halves[..., 1::2] << 4)


def unpack_int4(packed: torch.Tensor, n: int) -> torch.Tensor:
    """Return the codes that :func:`pack_int4` packed: uint8 (..., ceil(n / 2)) -> int8 (..., n) in [-8, 7].

    Raises ValueError for another dtype or width.
    """
    if packed.dtype != torch.uint8 or packed.shape[-1] != (n + 1) // 2:
        raise ValueError(f"{n} codes need uint8 (..., {(n + 1) // 2}), not {packed.dtype} {tuple(packed.shape)}")
    halves = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)[..., :n]
    # Flipping bit 3 and subtracting 8 extends the sign of four bits to that of an int8.
    return (halves ^ 8).view(torch.int8) - 8


def quantise_rows(matrix: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes and the scale of each row: float (rows, n) -> int8 (rows, n) and float16 (rows,).

    * The matrix is approximately ``scale[:, None] * codes``.
    * For 8 bits the scale is max|row| / 127. For 4 bits nine clippings of max|row| / 7 are tried, and the one with the
      least squared error is the scale [ours].
    * A row of zeros gets scale 0 and codes 0.
    * Raises ValueError if a number is not finite or too large for a float16 scale.
    """
    largest = LARGEST[bits]
    matrix = matrix.float()
    if matrix.shape[-1] == 0:
        return matrix.to(torch.int8), torch.zeros(matrix.shape[0], dtype=torch.float16)
    top = matrix.abs().amax(dim=-1)
    if not bool(torch.isfinite(top).all()):
        raise ValueError("a matrix with NaN or infinity cannot be quantised")
    if bool((top / largest > torch.finfo(torch.float16).max).any()):
        raise ValueError(f"{float(top.max()):.3g} is too large for a float16 scale")
    best_error = torch.full_like(top, torch.inf)
    best_codes = torch.zeros_like(matrix, dtype=torch.int8)
    best_scale = torch.zeros_like(top, dtype=torch.float16)
    for clipping in _CLIPPING if bits == 4 else (1.0,):
        scale = (top * (clipping / largest)).half()
        codes = _codes(matrix, scale, largest)
        error = (matrix - codes * scale.float()[:, None]).square().sum(dim=-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_codes[better] = codes[better].to(torch.int8)
        best_scale[better] = scale[better]
    # Where float16 rounds the scale to 0, the row decodes to zeros: its codes are 0 too.
    best_codes[best_scale == 0] = 0
    return best_codes, best_scale


def _codes(matrix: torch.Tensor, scale: torch.Tensor, largest: int) -> torch.Tensor:
    step = scale.float()[:, None]
    codes = torch.where(step > 0, matrix / step, 0.0)
    return codes.round().clamp(-largest, largest)
