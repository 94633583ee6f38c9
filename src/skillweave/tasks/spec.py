"""The settings of a task: one strict class for each kind of source; the key ``source`` says which."""

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
_THOUGHTS = (
    "strip: what a reasoning model thinks (<think>...</think>) is not part of the answer that is judged; keep: it is"
)


class Splits(Config):
    """How many prompts each split has; no prompt is in two of them."""

    train: Count | None = Field(
        default=None, description="training prompts; None: all remaining prompts of a file, 800 of a generator"
    )
    calibration: Count = Field(default=64, description="calibration prompts")
    test: Count = Field(default=200, description="test prompts")


class SplitPaths(Config):
    """One file for each split."""

    train: Path = Field(description="the file of the training rows")
    test: Path = Field(description="the file of the test rows")
    calibration: Path | None = Field(
        default=None, description="the file of the calibration rows; None: they are taken out of the training file"
    )


class ReasoningGymSpec(Config):
    """A generator of reasoning-gym, scored by its own ``score_answer``."""

    source: Literal["reasoning-gym"] = Field(description="a generator of reasoning-gym")
    generator: str = Field(description="the name of the generator in reasoning-gym")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="the generator's own settings (its config class in reasoning-gym), without seed and size",
    )
    seed: Count = Field(default=0, description="the seed of the examples")
    system: str | None = Field(default=None, description="a system prompt that is put before every question")
    instruction: str = Field(
        default="{question}", description="the prompt; {question} is replaced by the generator's question"
    )
    thoughts: Thoughts = Field(default="strip", description=_THOUGHTS)
    strict: bool = Field(
        default=True,
        description="true: only a full score counts (0 or 1); false: reasoning-gym's partial credit counts too, a "
        "float in [0, 1]",
    )
    splits: Splits = Field(default=Splits(), description="how many prompts each split has")

    @field_validator("instruction")
    @classmethod
    def _has_a_question(cls, instruction: str) -> str:
        if "{question}" not in instruction:
            raise ValueError("the instruction must hold {question}")
        return instruction


class BuiltinSpec(Config):
    """One of the small generators that come with SkillWeave."""

    source: Literal["builtin"] = Field(description="a generator of SkillWeave")
    name: str = Field(description="the name of the generator")
    config: dict[str, Any] = Field(default_factory=dict, description="the generator's own settings")
    system: str | None = Field(default=None, description="a system prompt that is put before every prompt")
    thoughts: Thoughts = Field(default="strip", description=_THOUGHTS)
    seed: Count = Field(default=0, description="the seed of the examples")
    splits: Splits = Field(default=Splits(), description="how many prompts each split has")


RowPart = Literal[
    "messages", "conversations", "prompt", "completion", "answer", "cases", "chosen", "rejected", "instruction",
    "input", "output", "history", "system", "tools",
]  # fmt: skip
"""The parts of a row that a key may be mapped to."""


class _Rows(Config):
    verifier: VerifierName = Field(default="exact", description="how an answer is judged")
    options: dict[str, Any] = Field(default_factory=dict, description="the options of the verifier")
    columns: dict[RowPart, str | None] = Field(
        default_factory=dict,
        description="which key of a row is which part, such as {prompt: question, answer: label}; null: the part is "
        "ignored",
    )
    system: str | None = Field(
        default=None,
        description="a system prompt that is put before every prompt; no row may then have its own",
    )
    thoughts: Thoughts = Field(default="strip", description=_THOUGHTS)

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
            if ours not in get_args(RowPart):
                hint = nearest(str(ours), get_args(RowPart))
                if theirs in get_args(RowPart) and not hint.startswith("did you mean"):
                    hint = f"our name goes on the left: write {{{theirs}: {ours}}}"
                raise ValueError(f"no part of a row is called '{ours}'; {hint}")
        named = [theirs for theirs in columns.values() if theirs is not None]
        twice = next((theirs for theirs in named if named.count(theirs) > 1), None)
        if twice is not None:
            raise ValueError(f"the key '{twice}' of the rows is named for two parts: name it once")
        return columns


class FileSpec(_Rows):
    """Rows of one data file (``path``, cut into splits) or of one file for each split (``paths``).

    The ending of a file's name says how it is read: ``.jsonl``, ``.json``, ``.csv`` and ``.tsv``, each also followed by
    ``.gz``, or ``.parquet``. A file with any other ending is read as JSONL.
    """

    source: Literal["file", "jsonl"] = Field(
        description="data files; 'jsonl' is the older name, and both read all kinds of files"
    )
    path: Path | None = Field(default=None, description="one file, which is cut into splits")
    paths: SplitPaths | None = Field(default=None, description="one file for each split, in place of path")
    splits: Splits = Field(default=Splits(), description="how many prompts each split has")

    @model_validator(mode="after")
    def _one_of(self) -> FileSpec:
        if (self.path is None) == (self.paths is None):
            raise ValueError("give either 'path' (one file, cut into splits) or 'paths' (one file a split)")
        if self.paths is not None:
            cut = self.splits.model_fields_set - ({"calibration"} if self.paths.calibration is None else set())
            if cut:
                raise ValueError(f"with 'paths' each file is a whole split: remove splits.{sorted(cut)[0]}")
        return self

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        named = [self.path] if self.paths is None else [self.paths.train, self.paths.test, self.paths.calibration]
        return [file for file in named if file is not None]


class DatasetSpec(_Rows):
    """Rows of a Hugging Face dataset: a folder written by ``save_to_disk``, or a hub id."""

    source: Literal["dataset"] = Field(description="a Hugging Face dataset")
    path: str = Field(description="a folder written by save_to_disk, or a hub id (owner/name)")
    split: str = Field(default="train", description="the split of the dataset whose rows are used")
    subset: str | None = Field(
        default=None, description="the name of the configuration on the hub, if the dataset has several"
    )
    splits: Splits = Field(default=Splits(), description="how many prompts each of our splits has")


def expand(value: Any) -> Any:
    """The mapping for the short form of a task; any other value is returned unchanged.

    The short forms are ``builtin:NAME``, ``reasoning-gym:NAME``, ``dataset:PATH``, a data file (``FILE.jsonl``,
    ``.csv``, ...) and ``FILE.yaml``, a file with the task's settings. Raises :class:`UserError` for any other text.
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
"""The type of a task inside another config; its short form (``builtin:json_calls``) is accepted too."""

SPECS: dict[str, type[AnySpec]] = {
    "reasoning-gym": ReasoningGymSpec,
    "builtin": BuiltinSpec,
    "file": FileSpec,
    "jsonl": FileSpec,
    "dataset": DatasetSpec,
}
