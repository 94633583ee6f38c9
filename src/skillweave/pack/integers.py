"""The integer codes of a skillpack: quantisation by row or by group, and packing into bytes. Pure functions.

Codes are symmetric: there is no zero point, and the negative of a value that can be stored can be stored too.

* With 4 and 8 bits a code q stands for q times the scale, and the most negative code is never used (int8 in
  [-127, 127], int4 in [-7, 7]).
* With 1, 2 and 3 bits a code q in [-2^(bits - 1), 2^(bits - 1) - 1] stands for 2 q + 1 times the scale: for -1 and 1;
  for -3, -1, 1 and 3; or for the odd numbers from -7 to 7. A code for 0 would leave one of so few codes unused.

Scales are float16 for rows and bfloat16 for groups, as in the file. A row or group is quantised with its scale after
the rounding, because that is the scale that will be read back.
"""

from __future__ import annotations

import torch

from skillweave.pack.schema import group_count, packed_width

LARGEST = {4: 7, 8: 127}
"""The largest code, by the width in bits."""

_ODD_BITS = 3
"""Up to this width, codes stand for odd numbers."""
LARGEST_SCALE = float(torch.finfo(torch.float16).max)
"""The largest scale of a group: decoded numbers must not overflow."""

# Clipping the few largest numbers of a row makes the steps between codes smaller. With 15 codes this saves about a
# fifth of the squared error of a normally distributed row. With 255 codes it saves nothing, so only int4 is searched.
_CLIPPING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# Groups of 2 and 3 bits: the best clipping of 128 normally distributed numbers is about 0.55 for 2 bits, 0.8 for 3.
_GROUP_CLIPPING = (*_CLIPPING, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)


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


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return codes as a stream of bits along the last axis: int8 (..., n) -> uint8 (..., ceil(n bits / 8)).

    Code i takes the bits from ``i * bits`` on, in two's complement; bit k of the stream is bit k % 8 of byte k // 8.
    The bits after the last code are 0. For 4 bits this equals :func:`pack_int4`. Raises TypeError for codes that are
    not int8.
    """
    if codes.dtype != torch.int8:
        raise TypeError(f"codes must be int8, not {codes.dtype}")
    if bits == 8:
        return codes.contiguous().view(torch.uint8)
    if bits == 4:
        return pack_int4(codes)
    stream = ((codes.view(torch.uint8)[..., None] >> torch.arange(bits, dtype=torch.uint8)) & 1).flatten(-2)
    padded = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(dim=-1, dtype=torch.uint8)


def unpack_codes(packed: torch.Tensor, n: int, bits: int) -> torch.Tensor:
    """Return the codes that :func:`pack_codes` packed: uint8 (..., ceil(n bits / 8)) -> int8 (..., n).

    Raises ValueError for another dtype or width.
    """
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_width(n, bits):
        raise ValueError(
            f"{n} codes of {bits} bits need uint8 (..., {packed_width(n, bits)}), not {packed.dtype} "
            f"{tuple(packed.shape)}"
        )
    if bits == 8:
        return packed.contiguous().view(torch.int8)
    if bits == 4:
        return unpack_int4(packed, n)
    stream = ((packed[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2)[..., : n * bits]
    fields = (stream.unflatten(-1, (n, bits)) << torch.arange(bits, dtype=torch.uint8)).sum(dim=-1, dtype=torch.uint8)
    sign = 1 << (bits - 1)
    return (fields ^ sign).view(torch.int8) - sign


def quantise_groups(matrix: torch.Tensor, bits: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes and the scale of each group of ``size`` numbers of a row; the last group may be shorter.

    float (rows, n) -> int8 (rows, n) and bfloat16 (rows, ceil(n / size)). :func:`dequantise_groups` is the inverse.

    * For 4 and 8 bits the scale is max|group| / 7 or 127: plain rounding to the nearest code.
    * For 2 and 3 bits fifteen clippings of max|group| are tried, and the one with the least squared error is taken.
    * For 1 bit the scale is mean|group|, which has the least squared error. The sign of 0 is +.
    * A group of zeros gets scale 0 and codes 0.
    * Raises ValueError if a number is not finite or too large for a scale.
    """
    rows, n = matrix.shape
    count = group_count(n, size)
    groups = torch.nn.functional.pad(matrix.float(), (0, count * size - n)).view(rows, count, size)
    real = (torch.arange(count * size) < n).view(count, size)
    top = groups.abs().amax(dim=-1)
    _check_finite(top)
    candidates = [groups.abs().sum(dim=-1) / real.sum(dim=-1)] if bits == 1 else []
    for clipping in _GROUP_CLIPPING if bits in (2, 3) else (1.0,) if bits != 1 else ():
        candidates.append(top * (clipping / _largest_level(bits)))
    tiny = torch.finfo(torch.float32).tiny
    best_error = torch.full_like(top, torch.inf)
    best_scale = torch.zeros_like(top, dtype=torch.bfloat16)
    for candidate in candidates:
        scale = candidate.bfloat16()
        restored = scale.float()[..., None] * _levels(nearest_codes(groups, scale[..., None], bits), bits)
        # Relative to the largest number: squares of tiny numbers would be 0.
        error = ((groups - restored) * real / top.clamp(min=tiny)[..., None]).square().sum(dim=-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    if bool((best_scale.float() > LARGEST_SCALE).any()):
        raise ValueError(f"{float(top.max()):.3g} is too large for the scale of a group")
    codes = nearest_codes(groups, best_scale[..., None], bits).view(rows, count * size)[:, :n]
    return codes.contiguous(), best_scale


def quantise_signs(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the one-bit codes of a matrix, int8 (rows, n), and its mean absolute value, float32 (1,).

    The mean absolute value is the scale with the least squared error for signs. The sign of 0 is +. Raises ValueError
    if a number is not finite or the scale is too large.
    """
    scale = matrix.abs().mean(dtype=torch.float64).float().view(1)
    _check_finite(scale)
    if float(scale) > LARGEST_SCALE:
        raise ValueError(f"{float(scale):.3g} is too large for the scale of a matrix")
    return -(matrix < 0).to(torch.int8), scale


def nearest_codes(numbers: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the int8 codes whose values, times the scale, are nearest to the numbers; 0 where the scale is 0."""
    quotient = torch.where(scale > 0, numbers / scale.float(), 0.0)
    if bits <= _ODD_BITS:
        return (quotient / 2).floor().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)
    return quotient.round().clamp(-LARGEST[bits], LARGEST[bits]).to(torch.int8)


def dequantise_groups(codes: torch.Tensor, scale: torch.Tensor, bits: int, size: int | None) -> torch.Tensor:
    """Return the numbers of :func:`quantise_groups`, or, with ``size`` None, of :func:`quantise_signs`: float32."""
    levels = _levels(codes, bits).float()
    if size is None:
        return levels * scale.float()
    return levels * scale.float().repeat_interleave(size, dim=-1)[:, : codes.shape[-1]]


def _levels(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the whole numbers that codes stand for."""
    return 2 * codes + 1 if bits <= _ODD_BITS else codes


def _largest_level(bits: int) -> int:
    return 2**bits - 1 if bits <= _ODD_BITS else LARGEST[bits]


def _check_finite(numbers: torch.Tensor) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise ValueError("a matrix with NaN or infinity cannot be quantised")


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
    _check_finite(top)
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


def stored_rows(matrix: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of :func:`quantise_rows` as a pack stores them, and their scale: 4 bits are packed."""
    codes, scale = quantise_rows(matrix, bits)
    return pack_int4(codes) if bits == 4 else codes, scale


def _codes(matrix: torch.Tensor, scale: torch.Tensor, largest: int) -> torch.Tensor:
    step = scale.float()[:, None]
    codes = torch.where(step > 0, matrix / step, 0.0)
    return codes.round().clamp(-largest, largest)
