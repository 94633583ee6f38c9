"""Settings of the ``cku`` method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from skillweave.config import Config
from skillweave.methods.training.settings import ModelSettings, TrainingSettings

ScorerName = Literal["activation", "wanda", "snip", "fisher", "contrast"]
LossName = Literal["ga", "npo", "simnpo", "rmu"]
RetainName = Literal["none", "ce", "kl", "hidden"]

Files = Annotated[
    list[Path],
    Field(min_length=1),
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
]
"""One JSONL file or several."""

MLPS = "mlps"
"""The value of ``trainable`` that means the MLPs of the chosen layers; other values are those of ModelSettings."""


class LocaliseSettings(Config):
    """Which neurons hold useful knowledge and are therefore frozen.

    - The paper freezes ``useful``, 80% of the neurons of layers 8-12 of 32 [digest].
    - ``random`` and ``inverse`` (the least useful neurons are frozen) are controls of the same size.
    - The default, no frozen neuron but sign agreement (:class:`ForgetSettings`), measured best [ours]. A micro model
      with its useful neurons frozen by ``fisher`` kept more of the facts that no loss term saw than one with as many
      random neurons frozen, but no more than one without frozen neurons, and the forgotten facts came back sooner.
    """

    freeze: Literal["useful", "random", "inverse", "none"] = Field(
        default="none",
        description="which neurons are frozen: the most useful ones, random ones, the least useful ones, or none",
    )
    scorer: ScorerName = Field(default="fisher", description="how the usefulness of a neuron is measured")
    contrast_of: Literal["activation", "wanda", "snip", "fisher"] = Field(
        default="snip", description="the scorer that contrast compares on the retain set and the forget set"
    )
    ratio: float = Field(default=0.8, ge=0, le=1, description="share of the neurons that is frozen")
    scope: Literal["layer", "all"] = Field(
        default="layer", description="whether the ratio holds within each layer or over all chosen layers together"
    )
    layers: list[int] | Literal["default", "all"] = Field(
        default="default", description="layers whose neurons are scored; default: those at 25% to 37.5% of the depth"
    )
    examples: int = Field(default=256, ge=1, description="maximum number of examples of each set to score on")
    batch_size: int = Field(
        default=4, ge=1, description="examples per accumulation step; 1 gives the Fisher score per example"
    )

    @model_validator(mode="after")
    def _freezes_what_it_scores(self) -> Self:
        unused = self.model_fields_set & {"scorer", "contrast_of", "ratio", "scope"}
        if self.freeze == "none" and unused:
            raise ValueError(
                f"{', '.join(sorted(unused))}: this has no effect, because no neuron is frozen: set freeze: useful"
            )
        if self.freeze != "none" and self.ratio == 1:
            raise ValueError("ratio 1 freezes every neuron, so nothing could be unlearnt: set a lower ratio")
        return self


class ForgetSettings(Config):
    """Which loss removes the knowledge and which term protects the rest. Log-probabilities are natural logarithms.

    ``ga`` is [digest]; ``npo``, ``simnpo`` and ``rmu`` are [relative]. The defaults measured best on a micro model
    [ours]: gradient ascent with KL and sign agreement, in small steps.
    """

    loss: LossName = Field(
        default="ga", description="the forget loss: gradient ascent, NPO, SimNPO or representation misdirection (RMU)"
    )
    cap: float | None = Field(
        default=None,
        gt=0,
        description="ga: per-token loss (nats) above which a token is no longer pushed; None: log of the vocabulary",
    )
    beta: float = Field(
        default=0.1, gt=0, description="npo and simnpo: how quickly the push fades once an answer is unlikely"
    )
    margin: float = Field(
        default=0.0, description="simnpo: per-token loss (nats) at which an answer counts as forgotten (delta)"
    )
    steering: float = Field(
        default=4.0, gt=0, description="rmu: length of the control vector c u, relative to that of the hidden states"
    )
    retain: RetainName | None = Field(
        default=None, description="the term on retain data; None: kl, and for rmu hidden (RMU's own term)"
    )
    mu: float = Field(default=5.0, ge=0, description="weight of the retain term")
    sign_agreement: bool | None = Field(
        default=None,
        description="follow the forget gradient only where it has the sign of the retain gradient; None: if retain is "
        "ce or kl",
    )

    @property
    def retain_term(self) -> RetainName:
        """The retain term in effect."""
        return self.retain or ("hidden" if self.loss == "rmu" else "kl")

    @property
    def agrees(self) -> bool:
        """Whether the sign-agreement mask is on."""
        if self.sign_agreement is not None:
            return self.sign_agreement
        return self.retain_term in ("ce", "kl")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.retain == "hidden" and self.loss != "rmu":
            raise ValueError("retain 'hidden' is rmu's own term: set retain to ce or kl, or loss to rmu")
        if self.sign_agreement and self.retain_term in ("none", "hidden"):
            # The gradient of the hidden term is exactly 0 at the start, so nothing would ever agree with it. That of kl
            # is 0 except for rounding: the first mask is a coin toss, and from the second step on there is a gradient.
            raise ValueError("sign_agreement needs a retain gradient to agree with: set retain to ce or kl")
        if self.agrees and self.mu == 0:
            raise ValueError(
                "with mu 0 there is no retain gradient to agree with: set sign_agreement: false or a higher mu"
            )
        return self


class WatchSettings(Config):
    """When to stop. The model is evaluated during training, on the forget set and on held-out retain examples."""

    every: int = Field(default=10, ge=1, description="steps between two evaluations")
    examples: int = Field(default=256, ge=1, description="maximum number of token rows of the forget set to evaluate")
    held_out: int = Field(
        default=64,
        ge=1,
        description="maximum number of retain examples held out for the evaluations (at most a quarter of the set)",
    )
    budget: float | None = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="largest share of the held-out retain probability that may be lost; None: no limit",
    )
    goal: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="extraction strength on the forget set at which training stops; None: that of `unseen`, if given",
    )


class UnlearnSettings(TrainingSettings):
    """The training that forgets. An epoch is one pass over the forget set."""

    epochs: int = Field(default=20, ge=1, description="passes over the forget set")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak learning rate")
    batch_size: int = Field(default=8, ge=1, description="forget examples per step, over all processes together")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        default="constant_with_warmup", description="how the learning rate changes after the warmup"
    )


class RefusalSettings(TrainingSettings):
    """A second, supervised training: forget prompts get one short refusal, retain prompts keep their own answers."""

    text: str = Field(default="I can't help with that.", min_length=1, description="the answer to every forget prompt")
    steps: int | None = Field(default=40, ge=1, description="optimiser steps; if set, it overrides epochs")
    learning_rate: float = Field(default=2e-5, gt=0, description="peak learning rate")
    batch_size: int = Field(default=8, ge=1, description="examples per step, over all processes together")
    retain_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the examples that are retain prompts with their own answers"
    )


class CollapseSettings(Config):
    """CIR: what the activations and output gradients of all data have in common is taken out of the forget gradient.

    The principal directions of each linear layer are computed once, before the unlearning, on both sets.
    """

    activations: int = Field(
        default=10, ge=0, description="principal directions of a layer's inputs that are collapsed, and their mean"
    )
    gradients: int = Field(
        default=10,
        ge=0,
        description="principal directions of the gradients of a layer's outputs that are collapsed, and their mean",
    )
    examples: int = Field(default=256, ge=1, description="maximum number of examples of each set to compute them on")

    @model_validator(mode="after")
    def _collapses_something(self) -> Self:
        if not self.activations and not self.gradients:
            raise ValueError("activations and gradients are both 0, so nothing is collapsed: leave collapse out")
        return self


class RobustSettings(TrainingSettings):
    """After the unlearning, noise on the weights and a distillation from the unlearnt model, in the manner of UNDO.

    The data is the retain set and the forget set, each example once per epoch.
    """

    noise: float = Field(
        default=0.2, gt=0, le=1, description="share of the weights that is replaced by noise (UNDO's alpha)"
    )
    scale: float = Field(
        default=0.1, ge=0, description="size of the noise, relative to Xavier's initialisation (UNDO's beta)"
    )
    trainable: str | None = Field(
        default=None,
        description="what gets noise and is trained: 'all', 'linear' or a regex on parameter names; None: what the "
        "unlearning trains",
    )
    recovery: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="the distillation ends once the retain answers have this share of the probability that the "
        "unlearnt model gives them",
    )
    every: int = Field(default=20, ge=1, description="steps between two evaluations")
    steps: int | None = Field(default=400, ge=1, description="most optimiser steps; if set, it overrides epochs")
    learning_rate: float = Field(default=5e-4, gt=0, description="peak learning rate")


class CkuConfig(ModelSettings):
    """Settings of ``cku``: find the neurons that useful knowledge needs, freeze them, unlearn in the others.

    The stages are ``localise`` (if neurons are frozen), ``before``, ``collapse`` (if set), ``unlearn``, ``robust`` (if
    set), ``refusal`` (if set) and ``after``.
    """

    forget: Files = Field(description="Data files: the facts to forget, as questions with answers or as texts")
    retain: Files = Field(description="Data files: the facts to retain")
    unseen: Files | None = Field(
        default=None,
        description="Data files: facts of the same kind that the base never saw; they show what not knowing looks like",
    )
    trainable: str = Field(
        default=MLPS, description="'mlps' (those of localise.layers), 'all', 'linear' or a regex on parameter names"
    )
    localise: LocaliseSettings = Field(default=LocaliseSettings(), description="which neurons are frozen")
    objective: ForgetSettings = Field(default=ForgetSettings(), description="the forget loss and the retain term")
    training: UnlearnSettings = Field(default=UnlearnSettings(), description="the training that forgets")
    watch: WatchSettings = Field(default=WatchSettings(), description="when the training stops")
    collapse: CollapseSettings | None = Field(
        default=None,
        description="CIR: take common representations out of the forget gradient; true: with the default settings",
    )
    robust: RobustSettings | None = Field(
        default=None,
        description="UNDO: noise on the unlearnt weights, then distillation; true: with the default settings",
    )
    refusal: RefusalSettings | None = Field(
        default=None, description="train a short refusal after the unlearning; true: with the default settings"
    )

    @model_validator(mode="before")
    @classmethod
    def _options_from_bool(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        options = {key: values[key] for key in ("collapse", "robust", "refusal") if isinstance(values.get(key), bool)}
        return {**values, **{key: {} if on else None for key, on in options.items()}}

    @model_validator(mode="after")
    def _trains_whole_weights(self) -> Self:
        if self.train == "lora" and self.collapse is not None:
            raise ValueError(
                "collapse needs train: full, because what it takes out of the gradient of a weight is in neither "
                "factor of an adapter"
            )
        if self.train == "lora" and self.robust is not None:
            raise ValueError(
                "robust needs train: full: the weights under an adapter get no noise, so they would keep what they know"
            )
        return self
