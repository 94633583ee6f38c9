"""The router chooses the pack for a prompt by the direction of the base's hidden states. [ours; the paper has none]

A prompt becomes one vector: the hidden states of one layer, averaged over its tokens. The first token is left out of
the average, because it is the attention sink: it is hundreds of times larger than the others and only tells the
prompt's length. Seen from the mean of the background (prompts that belong to no pack), a prompt lies in some direction.
Directions in which the background varies much say little about a skill, so they are damped. A pack's prompts have a
mean direction, and the pack whose direction has the largest cosine with the prompt's answers, if the cosine is large
enough. A classifier that separates the packs from the background is more exact, but it learns the very words of the
training prompts: it sends the same request in other words to the base.

How large is enough comes from five-fold cross-fitting, so each prompt is judged by a router that has not seen it: about
2% of the background may go to a pack, and about 2% of each pack's prompts may go to another one if their own is absent.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Base, Prompt
from skillweave.base.batching import by_length, pad_left
from skillweave.base.chat import PromptOrIds
from skillweave.base.generate import encode_prompts
from skillweave.base.hidden_states import hidden_states_at
from skillweave.base.safetensors_io import read_tensors, write_tensors
from skillweave.base.sizes import layer_count
from skillweave.delta.schema import dtype_name
from skillweave.errors import UserError
from skillweave.files.folder import FileHashes, Folder
from skillweave.files.hashes import sha256_file
from skillweave.files.read import read_card_file
from skillweave.files.values import Count, Free, Number, Version
from skillweave.files.whole import read_whole
from skillweave.pack.name import as_pack_name
from skillweave.weave.card import ROUTER_FILE
from skillweave.weave.directions import NARROWEST, Geometry, directions, enough_cosine

SCHEMA_VERSION = 3
DATA_FILE = "router.safetensors"
PARTS = (ROUTER_FILE, DATA_FILE)
"""Names of the files of a saved router."""
BASE = "base"
"""The name of the class of prompts that belong to no pack; users write it for the plain base."""

_FOLDS = 5
_NEARNESS = 0.05
"""A cosine that is larger by this much makes a class e times as probable."""
_AGAIN = "Fit the router again, or copy its folder again."


def _check_classes(classes: list[str]) -> list[str]:
    if len(set(map(str.casefold, classes))) < len(classes) or classes[-1] != BASE:
        raise ValueError(f"the classes must be names of packs, each once, and '{BASE}' last")
    for name in classes[:-1]:
        as_pack_name(name)
    return classes


class RouterCard(BaseModel):
    """``router.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Version = SCHEMA_VERSION
    classes: Annotated[list[str], Field(min_length=2, max_length=10_001), AfterValidator(_check_classes)]
    layer: Count
    threshold: Annotated[Number, Field(ge=0, le=1)]
    figures: Free
    files: FileHashes = {}
    """SHA-256 of ``router.safetensors``. A router of version 1 has none."""

    @property
    def tensors(self) -> list[str]:
        """The names of the tensors. Routers of versions 1 and 2 have no basis."""
        return ["weight", "bias", "mean", "spread", *(["basis"] if self.schema_version > 2 else [])]


@dataclass(frozen=True)
class Route:
    """The pack for a prompt (None: the plain base), and the probability that the router gives it.

    ``confidence`` is None if the caller chose the pack. ``scores`` has the router's probability of every class, `base`
    among them, the likeliest first; it is empty if the caller chose.
    """

    pack: str | None
    confidence: float | None
    scores: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass
class Router:
    """A softmax of cosines with the directions of the packs. C: packs + 1, F: hidden size.

    A router of version 1 or 2 is a multinomial logistic regression on the standardised features; it has no basis.
    """

    classes: list[str]
    """C names, ``base`` last"""
    weight: torch.Tensor
    """float32 (C, F); zero for ``base``"""
    bias: torch.Tensor
    """float32 (C,); zero for packs, and for ``base`` the cosine from which on a pack answers"""
    mean: torch.Tensor
    """float32 (F,)"""
    spread: torch.Tensor
    """float32 (F,)"""
    layer: int
    """index into the hidden states: 0 is the embedding, the last one is the output of the final norm"""
    threshold: float = 0.0
    """the probability below which a pack does not answer; without effect at 0"""
    basis: torch.Tensor | None = None
    """float32 (R, F): directions of the standardised features that are damped, each by one minus its squared length"""
    figures: dict[str, Any] = field(default_factory=dict)
    """``accuracy`` and ``abstained`` on the packs' own prompts, ``background_kept`` on the others; all cross-fitted"""

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """The probability of each class: features (N, F) -> float32 (N, C)."""
        standard = (features.float().cpu() - self.mean) / self.spread
        if self.basis is not None:
            standard = directions(standard, self.basis)
        return (standard @ self.weight.T + self.bias).softmax(dim=-1)

    def route(self, hidden: torch.Tensor) -> Route:
        """Where a prompt with these features (F,) goes."""
        return self.route_all(hidden[None])[0]

    def route_all(self, features: torch.Tensor) -> list[Route]:
        """:meth:`route` for each of (N, F)."""
        probabilities = self.probabilities(features)
        if not bool(probabilities.isfinite().all()):
            raise UserError(
                "the router's probabilities are not numbers for this prompt: its weights are too large, or the base "
                "gives NaN. Name a pack, or fit the router again."
            )
        return [_decide(row, self.classes, self.threshold) for row in probabilities.tolist()]

    def save(self, folder: str | Path) -> Path:
        """Write ``router.json`` and ``router.safetensors`` (the folder is replaced whole)."""
        with atomic_folder(folder) as temporary:
            tensors = {"weight": self.weight, "bias": self.bias, "mean": self.mean, "spread": self.spread}
            if self.basis is not None:
                tensors["basis"] = self.basis
            write_tensors(temporary / DATA_FILE, tensors)
            card = RouterCard(
                schema_version=SCHEMA_VERSION if self.basis is not None else 2,
                classes=self.classes,
                layer=self.layer,
                threshold=self.threshold,
                figures=self.figures,
                files={DATA_FILE: sha256_file(temporary / DATA_FILE)},
            )
            write_json(temporary / ROUTER_FILE, card.model_dump(mode="json"))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Router:
        """Read a saved router.

        Raises :class:`UserError` if a file is missing, damaged, newer, or has impossible values.
        """
        return read_whole(folder, PARTS, lambda: cls.load_once(folder))

    @classmethod
    def load_once(cls, folder: str | Path) -> Router:
        """Read a router as :meth:`load` does, for a caller that watches the folder itself (`read_whole`)."""
        reader = Folder(folder, ROUTER_FILE, _AGAIN)
        card = read_card_file(reader.file(ROUTER_FILE), RouterCard, SCHEMA_VERSION, _AGAIN)
        if card.schema_version > 1:
            if set(card.files) != {DATA_FILE}:
                raise UserError(f"{reader.path / ROUTER_FILE}: files: expected the hash of {DATA_FILE} alone. {_AGAIN}")
            reader.verified(card.files)
        data = reader.file(DATA_FILE)
        tensors = read_tensors(data)
        _check_tensors(tensors, card, data)
        return cls(card.classes, **tensors, layer=card.layer, threshold=card.threshold, figures=card.figures)

    def check_fits(self, packs: Collection[str], base: Base) -> None:
        """Raise :class:`UserError` unless all classes are packs (or the base), and the features fit ``base``."""
        if unknown := sorted({*self.classes} - {*packs, BASE}):
            raise UserError(f"the router sends prompts to '{unknown[0]}', which is not among the packs: fit it again")
        check_layer(base, self.layer)
        width = base.model.config.get_text_config().hidden_size
        if self.mean.shape[0] != width:
            raise UserError(
                f"the router reads {self.mean.shape[0]} numbers a prompt, and the base gives {width}: fit it again"
            )


def _check_tensors(tensors: Mapping[str, torch.Tensor], card: RouterCard, file: Path) -> None:
    """Raise :class:`UserError` unless these are the tensors of a router with this card."""
    if odd := sorted(set(tensors) ^ {*card.tensors}):
        wrong = f"is one that no router of version {card.schema_version} has" if odd[0] in tensors else "is missing"
        raise UserError(f"{file}: the tensor {odd[0][:80]!a} {wrong}. {_AGAIN}")
    classes = len(card.classes)
    width = tensors["mean"].shape[-1] if tensors["mean"].dim() == 1 else 0
    shapes = {"weight": (classes, width), "bias": (classes,), "mean": (width,), "spread": (width,)}
    if "basis" in tensors:
        shapes["basis"] = (len(tensors["basis"]) if tensors["basis"].dim() else 0, width)
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not width:
            raise UserError(
                f"{file}: the tensor '{name}' is {dtype_name(tensor.dtype)} {tuple(tensor.shape)}; expected float32 "
                f"{shape}, for {classes} classes. {_AGAIN}"
            )
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{file}: the tensor '{name}' holds NaN or infinity. {_AGAIN}")
    if (least := float(tensors["spread"].min())) <= NARROWEST:
        raise UserError(f"{file}: the tensor 'spread' holds {least:.3g}; expected more than {NARROWEST}. {_AGAIN}")


def background_prompts() -> list[str]:
    """The bundled prompts for the plain base: everyday ones, and then requests like those of a task.

    They are the lines of ``background.txt``, in which ``\\n`` stands for the end of a line.
    """
    text = importlib.resources.files("skillweave.weave").joinpath("background.txt").read_text(encoding="utf-8")
    return [line.replace("\\n", "\n") for line in text.splitlines() if line]


def default_layer(model: Any) -> int:
    """The default layer: a third of the way up.

    Measured on SmolLM2-135M with the six skills of ``benchmarks.headline``: of layers 8, 10, 12, 15 and 18 of 30, this
    one sends the fewest requests of other tasks to a pack among those that send half of the requests in other words.
    """
    return max(1, layer_count(model) // 3)


def check_layer(base: Base, layer: int | None) -> None:
    """Raise :class:`UserError` unless the base has this layer. None, for :func:`default_layer`, always fits."""
    last = layer_count(base.model)
    if layer is not None and not 0 <= layer <= last:
        raise UserError(f"the router's layer is {layer}, and the base has {last}: choose one from 0 to {last}")


@torch.no_grad()
def features(base: Base, prompts: Sequence[PromptOrIds], layer: int, *, batch_size: int = 16) -> torch.Tensor:
    """The mean hidden state of each prompt at ``layer``, float32 (N, F).

    The first token is left out, unless it is the only one. This is a forward pass of the plain base as far as the
    layer, so it must not be called inside a ``rows`` context.
    """
    model = base.model
    encoded = encode_prompts(model, base.tokenizer, prompts)
    means: dict[int, torch.Tensor] = {}
    for batch in by_length([len(ids) for ids in encoded], batch_size, shortest_first=True):
        ids, mask = pad_left([encoded[index] for index in batch], 0, model.device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        states = hidden_states_at(
            model, layer, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        )
        counted = mask.bool() & ((positions > 0) | (mask.sum(-1, keepdim=True) == 1))
        # Padded positions may hold NaN, so they are replaced by zero and not multiplied with it.
        total = torch.where(counted[..., None], states.float(), 0.0).sum(1)
        means.update(zip(batch, (total / counted.sum(1, keepdim=True)).cpu(), strict=True))
    return torch.stack([means[index] for index in range(len(encoded))])


def fit_router(
    base: Base,
    prompts_by_pack: Mapping[str, Sequence[Prompt]],
    background: Sequence[Prompt] | None = None,
    *,
    layer: int | None = None,
    stray: float = 0.02,
    miss: float = 0.01,
    seed: int = 0,
) -> Router:
    """Fit a router that learns which prompts belong to which pack.

    - ``prompts_by_pack``: at least two prompts for each pack; a few dozen are enough
    - ``background``: prompts for the plain base; None: the bundled ones
    - ``layer``: the index of the hidden states to use; None: :func:`default_layer`
    - ``stray``: the share of the background that may go to a pack, and of a pack's prompts that may go to another pack
      if their own is absent; the smaller, the fewer requests in other words than the training's go to their pack
    - ``miss``: the share of the packs' own prompts that may go to the base to keep ``stray`` low

    Raises :class:`UserError` if a pack or the background has too few prompts.
    """
    background = background_prompts() if background is None else list(background)
    if not prompts_by_pack:
        raise UserError("a router needs at least one pack with prompts of its own")
    groups: dict[str, Sequence[Prompt]] = {**prompts_by_pack, BASE: background}
    if BASE in prompts_by_pack:
        raise UserError(f"a pack cannot be called '{BASE}': the router uses the name for the plain base")
    for name, prompts in groups.items():
        if len(prompts) < 2:
            whose = "the background" if name == BASE else f"the pack '{name}'"
            raise UserError(f"{whose} has {len(prompts)} prompts to learn routing from: give at least 2")
    layer = default_layer(base.model) if layer is None else layer
    check_layer(base, layer)
    x = torch.cat([features(base, prompts, layer) for prompts in groups.values()])
    labels = torch.cat([torch.full((len(prompts),), index) for index, prompts in enumerate(groups.values())])
    return fit_on_features(x, labels, list(groups), layer=layer, stray=stray, miss=miss, seed=seed)


def fit_on_features(
    x: torch.Tensor,
    labels: torch.Tensor,
    classes: list[str],
    *,
    layer: int,
    stray: float = 0.02,
    miss: float = 0.01,
    seed: int = 0,
) -> Router:
    """:func:`fit_router` from features (N, F) and labels int64 (N,), an index into ``classes`` (``base`` last)."""
    # Imported late: sklearn takes a second to import, and a weave that only answers does not need it.
    from sklearn.model_selection import StratifiedKFold

    fewest = int(torch.bincount(labels, minlength=len(classes)).min())
    unseen = torch.zeros(len(labels), len(classes) - 1)
    folds = StratifiedKFold(min(_FOLDS, fewest), shuffle=True, random_state=seed)
    for train, test in folds.split(x.numpy(), labels.numpy()):
        unseen[test] = Geometry.of(x[train], labels[train], len(classes) - 1).cosines(x[test])
    enough = enough_cosine(unseen, labels, stray, miss)
    found = Geometry.of(x, labels, len(classes) - 1)
    weight = torch.cat([found.packs, torch.zeros(1, x.shape[1])]) / _NEARNESS
    bias = torch.zeros(len(classes))
    bias[-1] = enough / _NEARNESS
    figures = _figures(unseen, labels, enough)
    return Router(classes, weight, bias, found.mean, found.spread, layer, basis=found.basis, figures=figures)


def _figures(unseen: torch.Tensor, labels: torch.Tensor, enough: float) -> dict[str, Any]:
    """What the router does with the prompts that it was fitted on, from cross-fitted cosines (N, P)."""
    packs = unseen.shape[1]
    decided = torch.where(unseen.amax(-1) < enough, packs, unseen.argmax(-1))
    own = labels < packs
    return {
        "accuracy": float((decided == labels)[own].double().mean()),
        "abstained": float((decided == packs)[own].double().mean()),
        "background_kept": float((decided == packs)[~own].double().mean()),
        "cosine": enough,
        "prompts": int(own.sum()),
        "background": int((~own).sum()),
    }


def _decide(probabilities: list[float], classes: list[str], threshold: float) -> Route:
    """Where a prompt with these class probabilities goes."""
    scores = dict(sorted(zip(classes, probabilities, strict=True), key=lambda one: -one[1]))
    best = max(range(len(classes)), key=probabilities.__getitem__)
    if classes[best] == BASE or probabilities[best] < threshold:
        return Route(None, scores[BASE], scores)
    return Route(classes[best], probabilities[best], scores)
