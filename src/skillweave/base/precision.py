"""Choose the dtype of computation: bfloat16 if the device's hardware multiplies it, float32 otherwise.

A processor without bfloat16 instructions emulates them, which makes products two to four times slower than in float32.
``dtype: auto`` and ``bf16: auto`` depend only on the device's flags, so a run gives the same numbers each time it is
started on the same machine. To fit a byte budget, weights may stay in bfloat16 on such a processor. They are then
widened to float32 layer by layer while they are used (:func:`multiply_in_float32`).
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
"""An environment variable that overrides the hardware's answer: ``1`` or ``0``. Tests use it to take either path."""

_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""The names of bfloat16 instructions in ``/proc/cpuinfo``: Intel's AMX, x86's AVX512, Arm's."""

_NARROW = (torch.bfloat16, torch.float16)


def native_bf16(device: torch.device) -> tuple[bool, str]:
    """Return whether the device multiplies bfloat16 in hardware, and the reason in words.

    Raises :class:`UserError` if :data:`OVERRIDE` is set to anything but 0 or 1.
    """
    override = os.environ.get(OVERRIDE, "")
    if override not in ("", "0", "1"):
        raise UserError(f"the environment variable {OVERRIDE} is '{override}': set it to 1 or 0, or remove it")
    if override:
        return override == "1", f"{OVERRIDE}={override} says so"
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return able, f"{name} {'computes bfloat16' if able else 'has no bfloat16 arithmetic'}"
    if device.type != "cpu":
        return False, f"nothing is known of bfloat16 on a device of the type {device.type}"
    flag = next((flag for flag in _CPU_FLAGS if flag in _cpu_flags()), None)
    return flag is not None, f"this CPU has {flag}" if flag else "this CPU has no bfloat16 instructions"


@cache
def _cpu_flags() -> frozenset[str]:
    """Return the flags of the first processor in /proc/cpuinfo; none if the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(next((flags.split() for key, _, flags in lines if key.strip() in ("flags", "Features")), ()))


def automatic_dtype(stored: torch.dtype, device: torch.device, nbytes: int, budget: int | None = None) -> torch.dtype:
    """Return the dtype in which ``dtype: auto`` keeps weights of the dtype ``stored`` that take ``nbytes`` bytes.

    The weights keep their stored dtype if the device computes in it: float32 always, bfloat16 by :func:`native_bf16`,
    float16 on GPUs. Otherwise they become float32, unless that takes more than ``budget`` bytes.
    """
    if stored not in _NARROW:
        return stored
    native = native_bf16(device)[0] if stored is torch.bfloat16 else device.type == "cuda"
    widened = nbytes * torch.float32.itemsize // stored.itemsize
    return stored if native or (budget is not None and widened > budget) else torch.float32


def products_are_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether products with weights of this dtype should be made in float32: the CPU emulates the dtype."""
    return device.type == "cpu" and (dtype is torch.float16 or (dtype is torch.bfloat16 and not native_bf16(device)[0]))


def describe(dtype: torch.dtype, device: torch.device) -> str:
    """Return one sentence on the dtype of computation, and the reason; ``dtype`` is that of the weights in memory."""
    native, reason = native_bf16(device)
    name = str(dtype).removeprefix("torch.")
    if products_are_float32(dtype, device):
        return f"weights stay in {name}, products are made in float32 ({reason})"
    if native and dtype is torch.float32:
        return "computing in float32 (the type of the base's files, or the requested one)"
    return f"computing in {name} ({reason})"


def multiply_in_float32(model: nn.Module) -> nn.Module:
    """Change the model in place so that all arithmetic is float32 while its narrow weights stay narrow; return it.

    * Each module with bfloat16 or float16 parameters widens them during its own forward pass, so the weights of at most
      one module are in memory twice. An embedding widens only the rows that it looks up.
    * Results equal those of ``model.float()`` bit for bit.
    * This is for inference: no gradient reaches the weights.
    """
    for module in model.modules():
        if any(_narrow(own) for own in module._parameters.values()):
            # Bound methods instead of closures: a deep copy of the model then has methods of its own modules.
            module.forward = MethodType(_looked_up if type(module) is nn.Embedding else _widened, module)
    return model


def _narrow(parameter: torch.Tensor | None) -> bool:
    return parameter is not None and parameter.dtype in _NARROW


def _widened(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of a module with its narrow parameters widened to float32."""
    # _parameters instead of attributes, because torch.func.functional_call may have put plain tensors there.
    stored = dict(module._parameters)
    wide = {name: own.float() if own is not None and _narrow(own) else own for name, own in stored.items()}
    try:
        module._parameters.update(wide)  # type: ignore[arg-type]
        return type(module).forward(module, *args, **kwargs)
    finally:
        module._parameters.update(stored)


def _looked_up(module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """The forward pass of an embedding that widens only the rows it returns."""
    return embedding(ids, module.weight, module.padding_idx).float()
