"""Find out how each module of a model takes its input, by running the model and never by the module's name.

A layer can treat the rows of a batch differently only if it is known which part of its input is which row.

- Most layers take (rows, tokens, ...), some a flattened (rows * tokens, ...).
- An expert takes only the tokens that are sent to it, in an order of its own.
- Some weights are read by code outside their module, so a change of the module's forward would have no effect.

The probe runs two different rows together and each alone, through a prompt and one step of decoding. It compares a
module's input in the batch with its inputs alone, and its output with what its weight would make of the input. It also
records every use of a parameter outside the module that owns it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import embedding, linear
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig, LogitsProcessorList
from transformers.pytorch_utils import Conv1D

from skillweave.base.sizes import embedding_rows

_TOKENS = 6
_CHANNELS = 48
"""The number of output channels, evenly spread, on which a layer's law is tested."""
_NEAR = 0.05
"""Two inputs, or outputs, count as equal if their distance is below this share of their norm. Narrow types round, and
batches of another size are summed in another order. Two different rows are about as far from each other as from
zero."""


@dataclass(frozen=True)
class Fed:
    """How a module takes its input, and what it computes.

    Attributes:
        rows: The first axis of its input is the batch's rows ("rows"), rows * tokens ("flat"), or unknown ("any").
        law: It computes x W^T + b ("linear"), x W + b ("transposed"), scale W[ids] ("lookup"), or another one (None).
        scale: The factor of a "lookup".
        tokens: The axis of a "rows" input along which its tokens lie, or None if it is unknown.
    """

    rows: Literal["rows", "flat", "any"]
    law: Literal["linear", "transposed", "lookup"] | None
    scale: float = 1.0
    tokens: int | None = 1


@dataclass
class _Call:
    x: torch.Tensor | None
    plain: bool
    """One tensor in, one tensor out, with equally many rows."""
    law: str | None
    scale: float


@dataclass
class _Watch:
    """What was recorded during one run of the model."""

    calls: dict[str, list[_Call]] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)
    lawful: bool = True
    """Whether outputs are compared with what the weights would make. To do so once, in the batch, is enough."""


@torch.no_grad()
def feeding(model: Any) -> dict[str, Fed]:
    """How each module with parameters of its own takes its input: name -> :class:`Fed`.

    A module that was not called, or whose parameters other code reads, is missing: nothing is known about it.
    """
    owners = {name: module for name, module in model.named_modules() if module._parameters}
    # Two rows without a common token, where the vocabulary is large enough for that.
    size = embedding_rows(model)
    source = torch.Generator().manual_seed(0)
    ids = torch.randperm(size, generator=source)[: 2 * (_TOKENS + 1)]
    if ids.numel() < 2 * (_TOKENS + 1):
        ids = torch.randint(size, (2 * (_TOKENS + 1),), generator=source)
    ids = ids.view(2, -1).to(next(model.parameters()).device)
    foreign: set[str] = set()
    was_training = model.training
    model.eval()
    try:
        runs = []
        with contextlib.suppress(*CANNOT):
            runs.append([_watched(model, owners, foreign, _decoding, rows) for rows in (ids, ids[:1], ids[1:])])
        # Without a cache, other code may run. The single rows are needed only if decoding failed.
        rest = () if runs else (ids[:1], ids[1:])
        with contextlib.suppress(*CANNOT):
            runs.append([_watched(model, owners, foreign, _plain, rows) for rows in (ids, *rest)])
    finally:
        model.train(was_training)
    result: dict[str, Fed] = {}
    for name, module in owners.items() if runs else ():
        fed = _judge(name, module, runs)
        if fed is not None and name not in foreign:
            result[name] = fed
    return result


CANNOT = (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError, IndexError, KeyError)
"""What a model raises that cannot be run in some way (no cache, another interface). If it cannot decode, it is judged
by its plain run alone."""


def _plain(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids[:, :-1], use_cache=False)


def _decoding(model: Any, ids: torch.Tensor) -> None:
    """A prompt and one step. The step's token is forced: the greedy choice could differ between batch and row."""

    def forced(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e9).scatter(1, ids[:, -1:], 0.0)

    config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
    previous = model.generation_config
    try:
        model.generation_config = config
        model.generate(
            input_ids=ids[:, :-1],
            attention_mask=torch.ones_like(ids[:, :-1]),
            generation_config=config,
            logits_processor=LogitsProcessorList([forced]),
        )
    finally:
        model.generation_config = previous


def _watched(model: Any, owners: dict[str, nn.Module], foreign: set[str], run: Any, ids: torch.Tensor) -> _Watch:
    watch = _Watch(lawful=ids.shape[0] > 1)
    with _hooked(watch, owners), _Readers(watch, owners, foreign):
        run(model, ids)
    return watch


@contextlib.contextmanager
def _hooked(watch: _Watch, owners: dict[str, nn.Module]) -> Iterator[None]:
    """Record every call of an owner; ``watch.inside`` lists the names of those that are running."""

    def before(name: str) -> Any:
        return lambda *_: watch.inside.append(name)

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            watch.calls.setdefault(name, []).append(_call(module, args, kwargs, output, lawful=watch.lawful))
            watch.inside.pop()

        return hook

    handles = []
    for name, module in owners.items():
        handles.append(module.register_forward_pre_hook(before(name), prepend=True))
        handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Readers(TorchFunctionMode):
    """Adds to ``foreign`` the modules whose parameters are used while none of their owners is running."""

    def __init__(self, watch: _Watch, owners: dict[str, nn.Module], foreign: set[str]) -> None:
        super().__init__()
        self._watch, self._foreign = watch, foreign
        self._owners: dict[int, set[str]] = {}
        for name, module in owners.items():
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._owners.setdefault(id(parameter), set()).add(name)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, torch.Size) or not isinstance(result, torch.Tensor | tuple | list):
            return result  # a call that returns a shape, a dtype or a device uses no value
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, list | tuple) else (value,):
                names = self._owners.get(id(item)) if isinstance(item, nn.Parameter) else None
                if names is not None and not names.intersection(self._watch.inside):
                    self._foreign |= names
        return result


def _call(module: nn.Module, args: tuple, kwargs: dict, output: Any, *, lawful: bool) -> _Call:
    one = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and args[0].dim() > 0
    x = args[0] if one else None
    plain = x is not None and isinstance(output, torch.Tensor) and output.dim() > 0 and output.shape[0] == x.shape[0]
    law, scale = _law(module, x, output) if lawful and plain and x is not None else (None, 1.0)
    return _Call(None if x is None else x.detach().clone(), plain, law, scale)


def _law(module: nn.Module, x: torch.Tensor, output: torch.Tensor) -> tuple[str | None, float]:
    declared = getattr(module, "law", None)
    if declared in ("linear", "transposed", "lookup"):  # a layer in int8 was put in place of one with this law
        return declared, 1.0
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return None, 1.0
    if isinstance(module, nn.Embedding) and not x.is_floating_point():
        rows = embedding(x, weight).float()
        scale = float((output.float() * rows).sum() / rows.square().sum().clamp(min=1e-30))
        return ("lookup", scale) if _near(output, rows * scale) else (None, 1.0)
    if isinstance(module, nn.Linear | Conv1D) and x.is_floating_point():
        transposed = isinstance(module, Conv1D)
        channels = slice(0, None, max(1, output.shape[-1] // _CHANNELS))
        bias = None if module.bias is None else module.bias[channels].float()
        made = linear(x.float(), (weight.T if transposed else weight)[channels].float(), bias)
        return ("transposed" if transposed else "linear", 1.0) if _near(output[..., channels], made) else (None, 1.0)
    return None, 1.0


def _judge(name: str, module: nn.Module, runs: list[list[_Watch]]) -> Fed | None:
    """What holds over all runs; None if a run never called the module, or if its calls cannot be used."""
    kinds: set[str] = {"rows", "flat"}
    laws: set[tuple[str | None, float]] = set()
    for both, *alone in runs:
        calls = both.calls.get(name, [])
        each = [watch.calls.get(name, []) for watch in alone]
        if not calls or not all(call.plain for recorded in (calls, *each) for call in recorded):
            return None
        laws |= {(call.law, float(f"{call.scale:.5g}")) for call in calls}
        if not each:
            continue
        if any(len(recorded) != len(calls) for recorded in each):
            kinds = set()
            continue
        for index, call in enumerate(calls):
            lookup = isinstance(module, nn.Embedding)
            kinds &= _kinds(call.x, [recorded[index].x for recorded in each], lookup)
    law, scale = laws.pop() if len(laws) == 1 else (None, 1.0)
    rows = "rows" if "rows" in kinds else "flat" if "flat" in kinds else "any"
    shapes = [call.x.shape for both, *_ in runs for call in both.calls[name] if call.x is not None]
    return Fed(rows, law, scale, _token_axis(shapes) if rows == "rows" else 1)  # type: ignore[arg-type]


def _token_axis(shapes: list[torch.Size]) -> int | None:
    """The axis that has the length of the prompt, and in a step of decoding 1; None if that is not one axis."""
    if len({len(shape) for shape in shapes}) != 1:
        return None
    axes = [axis for axis in range(1, len(shapes[0])) if {shape[axis] for shape in shapes} in ({_TOKENS}, {_TOKENS, 1})]
    # In a step of decoding, an axis of another meaning keeps its length.
    moving = [axis for axis in axes if len({shape[axis] for shape in shapes}) > 1]
    return moving[0] if len(moving) == 1 else axes[0] if len(axes) == 1 else None


def _kinds(both: torch.Tensor | None, alone: list[torch.Tensor | None], lookup: bool) -> set[str]:
    """The possible layouts of the two rows in the batch's input: "rows", "flat", both, or none."""
    first, second = alone
    if both is None or first is None or second is None or first.shape != second.shape:
        return set()
    if lookup and both.shape == first.shape and torch.equal(both, first) and torch.equal(first, second):
        return {"rows"}  # positions are the same for all rows and are looked up once
    if both.shape != (2 * first.shape[0], *first.shape[1:]):
        return set()
    if not all(_near(half, one) for half, one in zip(both.chunk(2), (first, second), strict=True)):
        return set()
    return {"rows", "flat"} if first.shape[0] == 1 else {"flat"}


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    distance = (one.float() - other.float()).norm()
    return bool(distance <= _NEAR * other.float().norm() + 1e-12)
