"""What a task is made of, as it stands in a config: one strict class a source, told apart by ``source``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from skillweave.config import Config, read_mapping
from skillweave.errors import UserError
from skillweave.tasks.verifiers import Thoughts, VerifierName

Count = Annotated[int, Field(ge=0)]


class Splits(Config):
    """How many examples each split holds; all of them different prompts."""

    train: Count | None = None
    """None: of a file everything that is left, of a generator 800."""
    calibration: Count = 64
    test: Count = 200


class SplitPaths(Config):
    """One file a split. Without a calibration file its examples are taken out of the training file."""

    train: Path
    test: Path
    calibration: Path | None = None


class ReasoningGymSpec(Config):
    """A generator of reasoning-gym, scored by its own ``score_answer``."""

    source: Literal["reasoning-gym"]
    generator: str
    config: dict[str, Any] = Field(default_factory=dict)
    """The generator's own settings (its config class in reasoning-gym), without ``seed`` and ``size``."""
    seed: Count = 0
    instruction: str = "{question}"
    """What is asked, ``{question}`` standing for the generator's question."""
    thoughts: Thoughts = "strip"
    strict: bool = True
    """True: only a full score counts (0 or 1). False: reasoning-gym's partial credit is kept, a float in [0, 1]."""
    splits: Splits = Splits()

    @field_validator("instruction")
    @classmethod
    def _asks(cls, instruction: str) -> str:
        if "{question}" not in instruction:
            raise ValueError("the instruction must hold {question}")
        return instruction


class BuiltinSpec(Config):
    """One of the small generators that come with SkillWeave."""

    source: Literal["builtin"]
    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    thoughts: Thoughts = "strip"
    seed: Count = 0
    splits: Splits = Splits()


class _Verified(Config):
    verifier: VerifierName = "exact"
    options: dict[str, Any] = Field(default_factory=dict)
    thoughts: Thoughts = "strip"
    """``strip``: what a reasoning model thinks (``<think>...</think>``) is no part of the answer that is judged."""


class JsonlSpec(_Verified):
    """Rows of a JSONL file (``path``, cut into splits) or of one file a split (``paths``)."""

    source: Literal["jsonl"]
    path: Path | None = None
    paths: SplitPaths | None = None
    splits: Splits = Splits()

    @model_validator(mode="after")
    def _one_of(self) -> JsonlSpec:
        if (self.path is None) == (self.paths is None):
            raise ValueError("give either 'path' (one file, cut into splits) or 'paths' (one file a split)")
        if self.paths is not None:
            cut = self.splits.model_fields_set - ({"calibration"} if self.paths.calibration is None else set())
            if cut:
                raise ValueError(f"with 'paths' each file is a whole split: remove splits.{sorted(cut)[0]}")
        return self


class DatasetSpec(_Verified):
    """Rows of a Hugging Face dataset: a folder written by ``save_to_disk``, or a hub id."""

    source: Literal["dataset"]
    path: str
    split: str = "train"
    subset: str | None = None
    """The configuration's name on the hub, where the dataset has several."""
    splits: Splits = Splits()


def expand(value: Any) -> Any:
    """A task's short form as its mapping; anything else as it is.

    ``builtin:NAME``, ``reasoning-gym:NAME``, ``dataset:PATH`` and ``FILE.jsonl`` are the short forms; ``FILE.yaml``
    stands for the settings in it.
    """
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    source, colon, rest = text.partition(":")
    key = {"builtin": "name", "reasoning-gym": "generator", "dataset": "path"}.get(source)
    if colon and key and rest:
        return {"source": source, key: rest}
    if text.endswith(".jsonl"):
        return {"source": "jsonl", "path": text}
    if text.endswith((".yaml", ".yml")):
        return read_mapping(text)
    raise UserError(
        f"'{text}' names no task: write builtin:NAME, reasoning-gym:NAME, dataset:PATH, "
        "a .jsonl file with examples, or a .yaml file with the task's settings"
    )


AnySpec = ReasoningGymSpec | BuiltinSpec | JsonlSpec | DatasetSpec
TaskSpec = Annotated[AnySpec, Field(discriminator="source"), BeforeValidator(expand)]
"""A task inside another config; its short form (``builtin:json_calls``) is read too."""

SPECS: dict[str, type[AnySpec]] = {
    "reasoning-gym": ReasoningGymSpec,
    "builtin": BuiltinSpec,
    "jsonl": JsonlSpec,
    "dataset": DatasetSpec,
}
