"""Which numbers a device computes with: bfloat16 where its hardware multiplies it, float32 everywhere else.

A processor without bfloat16 instructions emulates them: a product is then two to four times slower than in float32.
``dtype: auto`` and ``bf16: auto`` decide by the device's own flags, so that a run gives the same numbers each time it
is started on the same machine. Weights may still be kept in bfloat16 there, to fit a byte budget: they are then widened
to float32 layer by layer while they are used (:func:`multiply_in_float32`).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding

from skillweave.errors import UserError

OVERRIDE = "SKILLWEAVE_NATIVE_BF16"
"""Environment variable that answers for the hardware: ``1`` or ``0``. It lets one machine take the other's path."""

_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""Names in ``/proc/cpuinfo`` of bfloat16 instructions: Intel's AMX, x86's AVX512, Arm's."""

_NARROW = (torch.bfloat16, torch.float16)


def native_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether the device multiplies bfloat16 in hardware, and the reason as words for a person."""
    told = os.environ.get(OVERRIDE, "")
    if told not in ("", "0", "1"):
        raise UserError(f"the environment variable {OVERRIDE} is '{told}': set it to 1 or 0, or remove it")
    if told:
        return told == "1", f"{OVERRIDE}={told} says so"
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return able, f"{name} {'computes bfloat16' if able else 'has no bfloat16 arithmetic'}"
    if device.type != "cpu":
        return False, f"nothing is known of bfloat16 on a device of the type {device.type}"
    found = [flag for flag in _CPU_FLAGS if flag in _cpu_flags()]
    return bool(found), f"this CPU has {found[0]}" if found else "this CPU has no bfloat16 instructions"


@cache
def _cpu_flags() -> frozenset[str]:
    """The flags of the first processor in /proc/cpuinfo; none where the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(next((flags.split() for key, _, flags in lines if key.strip() in ("flags", "Features")), ()))


def automatic_dtype(stored: torch.dtype, device: torch.device, nbytes: int, budget: int | None = None) -> torch.dtype:
    """The dtype in which ``dtype: auto`` keeps weights of the dtype ``stored`` that take ``nbytes``.

    It is the stored dtype where the device computes it: float32 always, bfloat16 by :func:`native_bf16`, float16 on
    GPUs. Else it is float32; but where that is over ``budget`` bytes, the weights keep their stored dtype.
    """
    if stored not in _NARROW:
        return stored
    native = native_bf16(device)[0] if stored is torch.bfloat16 else device.type == "cuda"
    widened = nbytes * torch.float32.itemsize // stored.itemsize
    return stored if native or (budget is not None and widened > budget) else torch.float32


def products_are_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model with weights of this dtype should be multiplied in float32: narrow ones, slow on this CPU."""
    return device.type == "cpu" and (dtype is torch.float16 or (dtype is torch.bfloat16 and not native_bf16(device)[0]))


def describe(dtype: torch.dtype, device: torch.device) -> str:
    """One sentence on what is computed in, and why; ``dtype`` is that of the weights in memory."""
    native, reason = native_bf16(device)
    name = str(dtype).removeprefix("torch.")
    if products_are_float32(dtype, device):
        return f"weights stay in {name}, products are made in float32 ({reason})"
    if native and dtype is torch.float32:
        return "computing in float32 (the type of the base's files, or the one asked for)"
    return f"computing in {name} ({reason})"


def multiply_in_float32(model: nn.Module) -> nn.Module:
    """The model, changed in place: its bfloat16 and float16 weights stay as they are, all arithmetic is float32.

    Each module that holds narrow parameters widens them for the time of its own forward pass, so at most one module's
    weights stand in memory twice. An embedding widens only the rows that it looks up. Results are those of
    ``model.float()``, bit for bit. For inference: no gradient reaches the weights.
    """
    for module in model.modules():
        if any(_narrow(own) for own in module._parameters.values()):
            # Methods, not closures: a deep copy of the model then binds them to its own modules.
            module.forward = MethodType(_looked_up if type(module) is nn.Embedding else _widened, module)
    return model


def _narrow(parameter: torch.Tensor | None) -> bool:
    return parameter is not None and parameter.dtype in _NARROW


def _widened(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # The table behind the attributes: torch.func.functional_call may have put plain tensors there.
    held = dict(module._parameters)
    wide = {name: own.float() if own is not None and _narrow(own) else own for name, own in held.items()}
    try:
        module._parameters.update(wide)  # type: ignore[arg-type]
        return type(module).forward(module, *args, **kwargs)
    finally:
        module._parameters.update(held)


def _looked_up(module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    return embedding(ids, module.weight, module.padding_idx).float()
