"""What can be set when knowledge is taken out of a model."""

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
"""In place of a regex: the MLPs of the chosen layers."""


class LocaliseSettings(Config):
    """Which neurons hold useful knowledge, and stay as they are.

    [digest] ``useful``, 80% of the neurons of layers 8-12 of 32. ``random`` and ``inverse`` (the least useful are
    frozen) are controls of the same size. The default is what measured best [ours]: no neuron frozen, but sign
    agreement (:class:`ForgetSettings`). With its useful neurons frozen by ``fisher`` a micro model kept more of what no
    term saw than with as many random ones, no more than with none, and what it forgot came back sooner.
    """

    freeze: Literal["useful", "random", "inverse", "none"] = "none"
    scorer: ScorerName = "fisher"
    contrast_of: Literal["activation", "wanda", "snip", "fisher"] = Field(
        default="snip", description="the score that contrast compares on the two sets"
    )
    ratio: float = Field(default=0.8, ge=0, le=1, description="share of the neurons that is frozen")
    scope: Literal["layer", "all"] = Field(default="layer", description="the ratio holds in each layer, or over all")
    layers: list[int] | Literal["default", "all"] = Field(
        default="default", description="whose neurons are scored; default: a depth of 25 to 37.5%"
    )
    examples: int = Field(default=256, ge=1, description="most examples of a set that are looked at")
    batch_size: int = Field(default=4, ge=1, description="examples an accumulation step; 1 for Fisher by example")

    @model_validator(mode="after")
    def _freezes_what_it_scores(self) -> Self:
        idle = self.model_fields_set & {"scorer", "contrast_of", "ratio", "scope"}
        if self.freeze == "none" and idle:
            raise ValueError(
                f"{', '.join(sorted(idle))}: no neuron is frozen, so that nothing follows: set freeze: useful"
            )
        if self.freeze != "none" and self.ratio == 1:
            raise ValueError("ratio 1 freezes every neuron: nothing could be unlearnt")
        return self


class ForgetSettings(Config):
    """What drives the knowledge out, and what holds the rest. Log-probabilities are natural logarithms.

    ``ga`` is [digest]; ``npo``, ``simnpo`` and ``rmu`` are [relative]. The defaults are what measured best on a micro
    model [ours]: gradient ascent with KL and sign agreement, in small steps.
    """

    loss: LossName = "ga"
    cap: float | None = Field(
        default=None, gt=0, description="ga: nats a token beyond which it is let be; None: log of the vocabulary"
    )
    beta: float = Field(default=0.1, gt=0, description="npo and simnpo: how soon what is forgotten is let be")
    margin: float = Field(default=0.0, description="simnpo: nats a token that are enough (delta)")
    steering: float = Field(default=4.0, gt=0, description="rmu: length of c u, as a multiple of the hidden states'")
    retain: RetainName | None = Field(
        default=None, description="the term on retain data; None: kl, and for rmu hidden (which is rmu's own)"
    )
    mu: float = Field(default=5.0, ge=0, description="weight of the retain term")
    sign_agreement: bool | None = Field(
        default=None,
        description="follow the forget gradient only where the retain gradient has its sign; None: where there is one",
    )

    @property
    def retain_term(self) -> RetainName:
        """The retain term that is computed."""
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
            raise ValueError("retain 'hidden' is rmu's own term: take ce or kl, or loss rmu")
        if self.sign_agreement and self.retain_term in ("none", "hidden"):
            # The hidden states' own term is exactly flat at the start, and nothing would ever agree with it. That of kl
            # is flat but for rounding: the first step's mask is a coin toss, the steps after it have a gradient.
            raise ValueError("sign_agreement needs a retain gradient to agree with: set retain to ce or kl")
        if self.agrees and self.mu == 0:
            raise ValueError("with mu 0 no retain gradient is left to agree with: set sign_agreement: false")
        return self


class WatchSettings(Config):
    """When to stop: looked at on the way, on the forget set and on retain examples that are not trained on."""

    every: int = Field(default=10, ge=1, description="steps between two looks")
    examples: int = Field(default=256, ge=1, description="most token rows of the forget set that are looked at")
    held_out: int = Field(default=64, ge=1, description="most retain examples kept for it (at most a quarter)")
    budget: float | None = Field(
        default=0.01, gt=0, lt=1, description="most that retain may lose of its probability; None: no limit"
    )
    goal: float | None = Field(
        default=None, ge=0, le=1, description="extraction strength to stop at; None: that of `unseen`, if given"
    )


class UnlearnSettings(TrainingSettings):
    """The training that forgets. An epoch is one pass over the forget set."""

    epochs: int = Field(default=20, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=8, ge=1)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "constant_with_warmup"


class RefusalSettings(TrainingSettings):
    """A second, supervised training: the forget prompts get one short answer, the retain prompts keep their own."""

    text: str = Field(default="I can't help with that.", min_length=1)
    steps: int | None = Field(default=40, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=8, ge=1)
    retain_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the examples that are retain prompts with their own answers"
    )


class CkuConfig(ModelSettings):
    """Settings of ``cku``: find the neurons that useful knowledge needs, freeze them, unlearn in the others.

    The stages are ``localise`` (where neurons are frozen), ``before``, ``unlearn``, ``refusal`` (where asked) and
    ``after``.
    """

    forget: Files = Field(description="JSONL: what is to go, question-answer or text")
    retain: Files = Field(description="JSONL: what must stay")
    unseen: Files | None = Field(
        default=None, description="JSONL: facts of the same kind never taught; they show what not knowing looks like"
    )
    trainable: str = Field(
        default=MLPS, description="'mlps' (those of localise.layers), 'all', 'linear' or a regex on parameter names"
    )
    localise: LocaliseSettings = LocaliseSettings()
    objective: ForgetSettings = ForgetSettings()
    training: UnlearnSettings = UnlearnSettings()
    watch: WatchSettings = WatchSettings()
    refusal: RefusalSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _refusal_by_word(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("refusal"), bool):
            return {**values, "refusal": {} if values["refusal"] else None}
        return values
