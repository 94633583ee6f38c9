"""One door to every task: its settings, a file of settings, a data file, or a short name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import ConfigDict

from skillweave.config import Config, read_config
from skillweave.errors import UserError, nearest
from skillweave.tasks.builtin import BUILTINS
from skillweave.tasks.reasoning import reasoning_gym_task
from skillweave.tasks.rows import entries_from, read_dataset, read_jsonl
from skillweave.tasks.spec import SPECS, AnySpec, BuiltinSpec, DatasetSpec, JsonlSpec, ReasoningGymSpec, expand
from skillweave.tasks.stream import Example, draw, seed_of
from skillweave.tasks.task import Entry, Scorer, Task, check_disjoint, cut, drop_duplicates
from skillweave.tasks.verifiers import Thoughts, VerifierName, options_for, verify


class _Source(Config):
    """The one key that every form of a task has."""

    model_config = ConfigDict(extra="ignore")
    source: Literal["reasoning-gym", "builtin", "jsonl", "dataset"]


def read_spec(spec: AnySpec | Mapping[str, Any] | str | Path) -> AnySpec:
    """The settings of a task from their mapping, a YAML file that holds them, or a short form (:func:`expand`)."""
    if isinstance(spec, AnySpec):
        return spec
    if isinstance(spec, str | Path) and str(spec).endswith((".yaml", ".yml")):
        settings: Any = Path(spec)
    else:
        settings = expand(spec)
    return read_config(SPECS[read_config(_Source, settings).source], settings)


def load_task(spec: AnySpec | Mapping[str, Any] | str | Path) -> Task:
    """Read or generate a task: ``load_task("builtin:json_calls")``, ``load_task("data.jsonl")``, settings, YAML.

    Raises :class:`UserError` for every mistake in the settings or the data; relative paths start in the current
    folder.
    """
    settings = read_spec(spec)
    if isinstance(settings, BuiltinSpec):
        return _builtin_task(settings)
    if isinstance(settings, ReasoningGymSpec):
        return reasoning_gym_task(settings)
    return _rows_task(settings)


def _builtin_task(spec: BuiltinSpec) -> Task:
    if spec.name not in BUILTINS:
        raise UserError(f"there is no builtin task '{spec.name}'; {nearest(spec.name, BUILTINS)}")
    builtin = BUILTINS[spec.name]
    config = read_config(builtin.settings, spec.config)

    def example(index: int, held: bool | None = None) -> Example:
        rng = Random(seed_of(spec.seed, index))
        while True:
            prompt, answer = builtin.make(rng, config)
            if held is None or builtin.held is None or builtin.held(prompt, config) == held:
                return prompt, answer, {}

    if builtin.held is None:
        splits, repeats = draw(example, spec.splits, spec.name)
    else:  # two streams: nothing that the test holds back is drawn for the other splits
        held = spec.splits.model_copy(update={"train": 0, "calibration": 0})
        rest = spec.splits.model_copy(update={"test": 0})
        tests, test_repeats = draw(lambda index: example(index, True), held, spec.name)
        others, other_repeats = draw(lambda index: example(index, False), rest, spec.name)
        splits, repeats = {**others, "test": tests["test"]}, test_repeats + other_repeats
    return Task(spec.name, splits, _scorer(builtin.verifier, dict(builtin.options), spec.thoughts), spec, repeats)


def _rows_task(spec: JsonlSpec | DatasetSpec) -> Task:
    scorer = _scorer(spec.verifier, spec.options, spec.thoughts)
    if isinstance(spec, JsonlSpec) and spec.paths is not None:
        return _task_of_files(spec, scorer)
    path = str(spec.path)
    rows = read_jsonl(Path(path)) if isinstance(spec, JsonlSpec) else read_dataset(path, spec.split, spec.subset)
    entries, repeats = drop_duplicates(_some(entries_from(rows, spec.verifier, spec.options), path))
    name = Path(path).stem
    return Task(name, cut(entries, spec.splits, name), scorer, spec, repeats)


def _task_of_files(spec: JsonlSpec, scorer: Scorer) -> Task:
    """One file a split: all rows of each, in their order; calibration out of train where it has no file."""
    assert spec.paths is not None
    files = {"train": spec.paths.train, "calibration": spec.paths.calibration, "test": spec.paths.test}
    splits: dict[str, list[Entry]] = {}
    repeats = 0
    for split, path in files.items():
        if path is not None:
            entries, dropped = drop_duplicates(
                _some(entries_from(read_jsonl(path), spec.verifier, spec.options), str(path))
            )
            splits[split] = entries
            repeats += dropped
    name = spec.paths.train.stem
    check_disjoint(splits, name)
    if spec.paths.calibration is None:
        part = cut(splits["train"], spec.splits.model_copy(update={"test": 0, "train": None}), name)
        chosen = {entry.id for entry in part["calibration"]}
        splits["calibration"] = part["calibration"]
        splits["train"] = [entry for entry in splits["train"] if entry.id not in chosen]
    return Task(name, splits, scorer, spec, repeats)


def _some(entries: list[Entry], path: str) -> list[Entry]:
    if not entries:
        raise UserError(f"{path} is empty: a task needs at least one example")
    return entries


def _scorer(verifier: VerifierName, options: dict[str, Any], thoughts: Thoughts) -> Scorer:
    checked = options_for(verifier, options)

    def score(answer: str, entry: Entry) -> float:
        gold = entry.metadata.get("answers", entry.answer)
        return verify(verifier, answer, gold, checked, cases=entry.metadata.get("cases"), thoughts=thoughts)

    return score
