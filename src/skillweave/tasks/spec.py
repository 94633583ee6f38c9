"""What a task is made of, as it stands in a config: one strict class a source, told apart by ``source``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from skillweave.config import Config, read_mapping
from skillweave.errors import UserError, nearest
from skillweave.files.read import is_folder
from skillweave.tasks.readers import ENDINGS
from skillweave.tasks.verifiers import Thoughts, VerifierName, options_for

Count = Annotated[int, Field(ge=0)]


class Splits(Config):
    """How many prompts each split holds; no prompt stands in two of them."""

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
    system: str | None = None
    """A system prompt, put before every question."""
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
    system: str | None = None
    """A system prompt, put before every prompt."""
    thoughts: Thoughts = "strip"
    seed: Count = 0
    splits: Splits = Splits()


Part = Literal[
    "messages", "conversations", "prompt", "completion", "answer", "cases", "chosen", "rejected", "instruction",
    "input", "output", "history", "system", "tools",
]  # fmt: skip
"""What a key of a row may stand for."""


class _Rows(Config):
    verifier: VerifierName = "exact"
    options: dict[str, Any] = Field(default_factory=dict)
    columns: dict[Part, str | None] = Field(default_factory=dict)
    """Which key of a row stands for which part, as ``{prompt: question, answer: label}``; null: for none."""
    system: str | None = None
    """A system prompt, put before every prompt; no row may have one of its own then."""
    thoughts: Thoughts = "strip"
    """``strip``: what a reasoning model thinks (``<think>...</think>``) is no part of the answer that is judged."""

    @field_validator("options")
    @classmethod
    def _options_are_the_verifiers(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "verifier" in info.data:
            try:
                options_for(info.data["verifier"], options)
            except UserError as error:
                raise ValueError(str(error)) from error
        return options

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_name_parts(cls, columns: Any) -> Any:
        if not isinstance(columns, Mapping):
            return columns
        for ours, theirs in columns.items():
            if ours not in get_args(Part):
                hint = nearest(str(ours), get_args(Part))
                if theirs in get_args(Part) and not hint.startswith("did you mean"):
                    hint = f"our name stands on the left: write {{{theirs}: {ours}}}"
                raise ValueError(f"no part of a row is called '{ours}'; {hint}")
        named = [theirs for theirs in columns.values() if theirs is not None]
        twice = next((theirs for theirs in named if named.count(theirs) > 1), None)
        if twice is not None:
            raise ValueError(f"the key '{twice}' of the rows stands for two parts: name it once")
        return columns


class FileSpec(_Rows):
    """Rows of a data file (``path``, cut into splits) or of one file a split (``paths``).

    How a file is read is told by the ending of its name: ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, each also with
    ``.gz`` behind it, or ``.parquet``; any other is read as JSONL.
    """

    source: Literal["file", "jsonl"]
    """``jsonl`` is the older name; both read all kinds of files."""
    path: Path | None = None
    paths: SplitPaths | None = None
    splits: Splits = Splits()

    @model_validator(mode="after")
    def _one_of(self) -> FileSpec:
        if (self.path is None) == (self.paths is None):
            raise ValueError("give either 'path' (one file, cut into splits) or 'paths' (one file a split)")
        if self.paths is not None:
            cut = self.splits.model_fields_set - ({"calibration"} if self.paths.calibration is None else set())
            if cut:
                raise ValueError(f"with 'paths' each file is a whole split: remove splits.{sorted(cut)[0]}")
        return self


class DatasetSpec(_Rows):
    """Rows of a Hugging Face dataset: a folder written by ``save_to_disk``, or a hub id."""

    source: Literal["dataset"]
    path: str
    split: str = "train"
    subset: str | None = None
    """The configuration's name on the hub, where the dataset has several."""
    splits: Splits = Splits()


def expand(value: Any) -> Any:
    """A task's short form as its mapping; anything else as it is.

    ``builtin:NAME``, ``reasoning-gym:NAME``, ``dataset:PATH`` and a data file (``FILE.jsonl``, ``.csv``, ...) are the
    short forms; ``FILE.yaml`` stands for the settings in it.
    """
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    source, colon, rest = text.partition(":")
    key = {"builtin": "name", "reasoning-gym": "generator", "dataset": "path"}.get(source)
    if colon and key and rest:
        return {"source": source, key: rest}
    if text.lower().endswith(tuple(ENDINGS)):
        return {"source": "file", "path": text}
    if text.endswith((".yaml", ".yml")):
        return read_mapping(text)
    if is_folder(text):
        raise UserError(f"{text} is a folder: write dataset:{text} for a dataset in it, or name a data file")
    raise UserError(
        f"'{text}' names no task: write builtin:NAME, reasoning-gym:NAME, dataset:PATH, "
        f"a file with examples ({', '.join(ENDINGS)}), or a .yaml file with the task's settings"
    )


AnySpec = ReasoningGymSpec | BuiltinSpec | FileSpec | DatasetSpec
TaskSpec = Annotated[AnySpec, Field(discriminator="source"), BeforeValidator(expand)]
"""A task inside another config; its short form (``builtin:json_calls``) is read too."""

SPECS: dict[str, type[AnySpec]] = {
    "reasoning-gym": ReasoningGymSpec,
    "builtin": BuiltinSpec,
    "file": FileSpec,
    "jsonl": FileSpec,
    "dataset": DatasetSpec,
}
