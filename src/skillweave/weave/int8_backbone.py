"""Put a base's linear layers into int8, in memory. Everything else of the model stays as it is.

Replaced are the layers that multiply their input with a weight of their own and do nothing else, as seen when the model
runs (:mod:`skillweave.base.feeding`). The head is one of them, also if it is tied with a plain embedding, which then
looks its rows up in the head's int8 weight. Other embeddings, norms, convolutions, experts in one tensor of three axes,
and weights that other code reads stay in floats.

The outlier channels of each layer are found on a few short conversations (the base's own chat template around texts of
this module): the channels with the largest value anywhere, one in :data:`OUTLIER_SHARE`. [ours] Layers that are given
the same tensor (q, k, v; gate, up) choose the same channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from skillweave.base import Base, prompt_ids
from skillweave.base.allocator import release_freed_memory
from skillweave.base.chat import PromptOrIds
from skillweave.base.feeding import CANNOT, Fed, feeding
from skillweave.base.layout import owners
from skillweave.base.sizes import context_length
from skillweave.errors import UserError
from skillweave.progress import say_once, share_of
from skillweave.weave.int8 import LONGEST, Int8Embedding, Int8Linear, Law, SharedInput, has_int8, smoothing
from skillweave.weave.int8_loss import loss, next_log_probs

INT8 = "int8"
PLAIN = "dtype"
"""The forms in which the linear layers of a base can be served: in int8, or in the dtype of the other layers."""

OUTLIER_SHARE = 32
"""One input channel in so many stays in floats."""

CALIBRATION = (
    "Write a JSON object that describes a book: title, author, year and tags.\n"
    '{"title": "The Sea at Night", "author": "A. Lindgren", "year": 1987, "tags": ["novel", "sea", "family"]}',
    "The train leaves at 7:45 and arrives at 9:41. How long does it take?\n"
    "From 7:45 to 9:00 are 75 minutes, and 41 more make 116. So the answer is 1 hour and 56 minutes.",
    'def mean(values):\n    """Return the mean of the values, or 0.0 if there are none."""\n'
    "    if not values:\n        return 0.0\n    return sum(values) / len(values)\n",
    "Describe a morning at the market. Farmers unload their boxes before sunrise. By eight o'clock the first customers "
    "ask for bread, apples and cheese; children look at the fish, and somebody always forgets an umbrella.",
)
"""What the base reads while its outlier channels are looked for: English, numbers, JSON and code."""


def check_form(backbone: str | None) -> None:
    """Raise :class:`UserError` unless ``backbone`` is :data:`INT8`, :data:`PLAIN` or None."""
    if backbone not in (None, INT8, PLAIN):
        raise UserError(
            f"unknown backbone '{backbone}': write {INT8} for linear layers in int8, or '{PLAIN}' for layers in the "
            f"dtype of the base, which the setting dtype chooses"
        )


def is_int8(base: Base) -> bool:
    """Whether linear layers of the base are in int8."""
    return has_int8(base.model)


def put_into_int8(
    base: Base,
    *,
    prompts: Sequence[PromptOrIds] = CALIBRATION,
    outlier_share: int | None = OUTLIER_SHARE,
    smooth: float | None = None,
) -> Base:
    """Put the linear layers of ``base`` into int8, in place, and return it.

    The fingerprint stays: it is that of the files.

    - ``prompts``: what the model reads while the outlier channels are looked for
    - ``outlier_share``: one input channel in so many stays in floats; None: none
    - ``smooth``: the exponent of SmoothQuant's smoothing, from 0 to 1; None: no smoothing

    Raises :class:`UserError` for a base that is in int8 already, or whose layers cannot be, and without any prompt.
    """
    if is_int8(base):
        raise UserError(f"the linear layers of {base.ref} are in int8 already: open the base again to change how")
    texts = [prompt_ids(base.tokenizer, prompt)[: context_length(base.model)] for prompt in prompts]
    if not any(len(ids) > 1 for ids in texts):
        raise UserError("the outlier channels are looked for on prompts of at least two tokens, and none is given")
    fed, head = feeding(base.model), base.model.get_output_embeddings()
    tied = _tied_embedding(base.model, fed)
    chosen, reasons = _layers(base.model, fed, tied)
    if not chosen:
        why = next(iter(reasons.values()), "it has none")
        raise UserError(f"{base.ref} has no linear layer that can be put into int8 ({why}): leave out backbone: {INT8}")
    largest, inputs, floats = _calibrated(base.model, list(chosen), texts)
    before = base.nbytes
    for name, law in chosen.items():
        layer: Any = base.model.get_submodule(name)
        weight, tops = layer.weight.detach(), largest.get(name)
        kept = factors = None
        if tops is not None and outlier_share is not None:
            kept = tops.topk(max(1, len(tops) // outlier_share)).indices
        if tops is not None and smooth is not None:
            factors = smoothing(tops, weight if law == "linear" else weight.T, smooth)
        made = Int8Linear(weight, layer.bias, law=law, outliers=kept, smooth=factors)
        _put(base.model, name, made)
        if tied is not None and layer is head:
            embedding: Any = base.model.get_submodule(tied)
            widened = "forward" in vars(embedding)  # narrow weights, and products in float32
            dtype = torch.float32 if widened else None
            _put(base.model, tied, Int8Embedding(made, embedding.padding_idx, dtype))
    # The other tensors may be pages of the mapped file of weights. As long as one tensor needs it, the file stays
    # mapped, and the pages of the replaced layers stay in memory.
    for parameter in base.model.parameters():
        parameter.data = parameter.data.clone()
    for names in inputs:
        if len(names) > 1 and smooth is None:  # smoothing differs from layer to layer, and with it the codes
            SharedInput([cast(Int8Linear, base.model.get_submodule(name)) for name in names])
    if reasons:
        name, why = next(iter(reasons.items()))
        count = share_of(len(reasons), len(reasons) + len(chosen), "linear layers")
        say_once(f"{base.ref}: {count} stay in floats, such as '{name}', which {why}")
    lost = loss(floats, next_log_probs(base.model, [(ids, 1) for ids in texts]))
    if not math.isfinite(lost.kl):
        raise UserError(f"{base.ref} gives NaN or infinity with its layers in int8: leave out backbone: {INT8}")
    say_once(
        f"{base.ref}: {len(chosen)} linear layers are in int8; the base takes {base.nbytes / 1e6:.1f} MB instead of "
        f"{before / 1e6:.1f} MB. On {lost.tokens} tokens of calibration text, {lost}"
    )
    release_freed_memory()  # the weights in floats
    return base


def _put(model: Any, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the model's module of this name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module.eval())


def _tied_embedding(model: Any, fed: Mapping[str, Fed]) -> str | None:
    """The name of the input embedding, if its weight is that of the head too, and it does nothing but look rows up."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or getattr(head, "weight", None) is not embedding.weight:
        return None
    name = next(name for name, module in model.named_modules() if module is embedding)
    looks_up = name in fed and (fed[name].law, fed[name].scale) == ("lookup", 1.0)
    return name if looks_up and embedding.max_norm is None else None


def _layers(model: Any, fed: Mapping[str, Fed], tied: str | None) -> tuple[dict[str, Law], dict[str, str]]:
    """(name -> law of the layers to replace, name -> why not for the other linear layers).

    ``tied`` is the embedding that may share its weight with a layer.
    """
    places, head = owners(model), model.get_output_embeddings()
    chosen: dict[str, Law] = {}
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        law = fed[name].law if name in fed else None
        if not (isinstance(module, nn.Linear) or law == "transposed"):
            continue
        holders = {place for place, _ in places[f"{name}.weight"][1]}
        if law is None or law == "lookup":
            reasons[name] = "is not only multiplied with its input, or was not called"
        elif holders - {name, tied}:
            reasons[name] = "shares its weight with another module"
        elif module is head and _is_fed_in_its_dtype(model, name):
            reasons[name] = "is given its input in the dtype of its weight"
        elif module.weight.shape[law == "linear"] > LONGEST:
            reasons[name] = f"has more than {LONGEST} inputs, so its sums could overflow"
        else:
            chosen[name] = law
    return chosen, reasons


class _Seen(nn.Module):
    """Stands for a head with a weight in int8: it notes the dtype of its input, and computes nothing."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(head.weight, dtype=torch.int8), requires_grad=False)
        self.bias = head.bias
        self.seen: torch.dtype | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.dtype
        return torch.zeros(*x.shape[:-1], len(self.weight), device=x.device)


@torch.no_grad()
def _is_fed_in_its_dtype(model: Any, name: str) -> bool:
    """Whether the model casts the input of the head to the dtype of its weight, as Mamba's code does."""
    head = model.get_submodule(name)
    stand_in = _Seen(head)
    _put(model, name, stand_in)
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=head.weight.device), use_cache=False)
    except CANNOT:  # code that needs more of a head than its weight
        return True
    finally:
        _put(model, name, head)
    return stand_in.seen == torch.int8


@torch.no_grad()
def _calibrated(
    model: Any, names: Sequence[str], texts: Sequence[Sequence[int]]
) -> tuple[dict[str, torch.Tensor], list[list[str]], torch.Tensor]:
    """What the named layers are fed while the model reads the texts, and the :func:`next_log_probs` of the texts.

    - max|x| of every input channel of each layer, float32 (in,); a layer that no text reaches has no entry
    - the names of the layers that were given the same tensor each time, one list for each tensor
    """
    largest: dict[str, torch.Tensor] = {}
    fed: dict[str, list[int]] = {}
    seen: list[torch.Tensor] = []

    def watch(name: str) -> Any:
        def see(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0]
            if not seen or seen[-1] is not x:
                seen.append(x)  # kept, so that no other tensor gets its id
            fed.setdefault(name, []).append(id(x))
            tops = x.reshape(-1, x.shape[-1]).abs().amax(dim=0).float()
            largest[name] = torch.maximum(largest[name], tops) if name in largest else tops

        return see

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        log_probs = next_log_probs(model, [(ids, 1) for ids in texts])
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, ids in fed.items():
        groups.setdefault(tuple(ids), []).append(name)
    return largest, list(groups.values()), log_probs
