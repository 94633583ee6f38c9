"""Load a task from its settings, a file of settings, a data file or a short name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import ConfigDict

from skillweave.base.chat import Answer
from skillweave.base.thoughts import strip_thoughts
from skillweave.config import Config, read_config
from skillweave.errors import UserError, nearest
from skillweave.progress import console, say_once
from skillweave.tasks.builtin import BUILTINS
from skillweave.tasks.calls import same_calls
from skillweave.tasks.readers import LocatedRow, read_dataset, read_rows
from skillweave.tasks.reasoning import reasoning_gym_task
from skillweave.tasks.row_forms import with_system
from skillweave.tasks.rows import entries_from
from skillweave.tasks.spec import SPECS, AnySpec, BuiltinSpec, DatasetSpec, FileSpec, ReasoningGymSpec, expand
from skillweave.tasks.stream import Example, draw, seed_of
from skillweave.tasks.task import Entry, Scorer, Task, check_disjoint, cut, drop_duplicates, share_answers
from skillweave.tasks.verifiers import Thoughts, VerifierName, code_options, options_for, verify
from skillweave.tasks.verifiers.code import gold_solution_problem

_PROGRAMS = 300
"""The most gold answers that are run as programs when a task is read."""


class _Source(Config):
    """The one key that all kinds of task settings have."""

    model_config = ConfigDict(extra="ignore")
    source: Literal["reasoning-gym", "builtin", "file", "jsonl", "dataset"]


def read_spec(spec: AnySpec | Mapping[str, Any] | str | Path) -> AnySpec:
    """The settings of a task, from a mapping, a YAML file or a short form (:func:`expand`)."""
    if isinstance(spec, AnySpec):
        return spec
    if isinstance(spec, str | Path) and str(spec).endswith((".yaml", ".yml")):
        settings: Any = Path(spec)
    else:
        settings = expand(spec)
    return read_config(SPECS[read_config(_Source, settings).source], settings)


def load_task(spec: AnySpec | Mapping[str, Any] | str | Path) -> Task:
    """Read or generate a task.

    Examples are ``load_task("builtin:json_calls")`` and ``load_task("data.jsonl")``; settings and YAML files work too.
    Relative paths start in the current folder. Notes on a file's rows, such as how many were dropped, go to standard
    error. Raises :class:`UserError` for every mistake in the settings or the data.
    """
    task = _load(read_spec(spec))
    for note in task.notes:
        say_once(f"task {task.name}: {note}")
    return task


def _load(settings: AnySpec) -> Task:
    if isinstance(settings, BuiltinSpec):
        return _builtin_task(settings)
    if isinstance(settings, ReasoningGymSpec):
        return reasoning_gym_task(settings)
    return _rows_task(settings)


def _builtin_task(spec: BuiltinSpec) -> Task:
    if spec.name not in BUILTINS:
        raise UserError(f"there is no builtin task '{spec.name}'; {nearest(spec.name, BUILTINS)}")
    builtin = BUILTINS[spec.name]
    config = read_config(builtin.settings, spec.config, called=f"config of builtin:{spec.name}")

    def example(index: int, reserved: bool | None = None) -> Example:
        rng = Random(seed_of(spec.seed, index))
        while True:
            prompt, answer = builtin.make(rng, config)
            if reserved is None or builtin.reserved is None or builtin.reserved(prompt, config) == reserved:
                return with_system(prompt, spec.system, spec.name), answer, {}

    if builtin.reserved is None:
        splits, repeats = draw(example, spec.splits, spec.name)
    else:  # two streams, so that no prompt reserved for the test is drawn for the other splits
        test_only = spec.splits.model_copy(update={"train": 0, "calibration": 0})
        without_test = spec.splits.model_copy(update={"test": 0})
        tests, test_repeats = draw(lambda index: example(index, True), test_only, spec.name)
        others, other_repeats = draw(lambda index: example(index, False), without_test, spec.name)
        splits, repeats = {**others, "test": tests["test"]}, test_repeats + other_repeats
    return Task(spec.name, splits, _scorer(builtin.verifier, dict(builtin.options), spec.thoughts), spec, repeats)


def _rows_task(spec: FileSpec | DatasetSpec) -> Task:
    if isinstance(spec, FileSpec) and spec.paths is not None:
        return _task_of_files(spec)
    path = str(spec.path)
    rows = read_rows(Path(path)) if isinstance(spec, FileSpec) else read_dataset(path, spec.split, spec.subset)
    entries, count, repeats = _entries(rows, spec, path)
    name = _stem(path)
    return Task(
        name, cut(entries, spec.splits, name), _scorer(spec.verifier, spec.options, spec.thoughts), spec, repeats, count
    )


def _task_of_files(spec: FileSpec) -> Task:
    """A task with one file for each split. Without a calibration file, calibration is taken out of train."""
    assert spec.paths is not None
    files = {"train": spec.paths.train, "calibration": spec.paths.calibration, "test": spec.paths.test}
    splits: dict[str, list[Entry]] = {}
    count = repeats = 0
    for split, path in files.items():
        if path is not None:
            splits[split], read, dropped = _entries(read_rows(path), spec, str(path))
            count, repeats = count + read, repeats + dropped
    name = _stem(spec.paths.train)
    check_disjoint(splits, name)
    if spec.paths.calibration is None:
        part = cut(splits["train"], spec.splits.model_copy(update={"test": 0, "train": None}), name)
        chosen = {entry.id for entry in part["calibration"]}
        splits["calibration"] = part["calibration"]
        splits["train"] = [entry for entry in splits["train"] if entry.id not in chosen]
    return Task(name, splits, _scorer(spec.verifier, spec.options, spec.thoughts), spec, repeats, count)


def _entries(rows: Iterable[LocatedRow], spec: FileSpec | DatasetSpec, path: str) -> tuple[list[Entry], int, int]:
    """The distinct entries of the rows, the number of rows, and how many of these were exact repeats."""
    read = _some(
        entries_from(
            rows,
            spec.verifier,
            spec.options,
            columns=spec.columns,
            system=spec.system,
            thoughts=spec.thoughts,
        ),
        path,
    )
    entries, repeats = drop_duplicates(read)
    _check_programs(entries, spec)
    return (entries if spec.verifier == "code" else share_answers(entries)), len(read), repeats


def _stem(path: str | Path) -> str:
    return Path(path).name.removesuffix(".gz").rpartition(".")[0] or Path(path).name


def _check_programs(entries: list[Entry], spec: FileSpec | DatasetSpec) -> None:
    """Raise :class:`UserError` if a row's own program fails the row's cases: no answer of a model could pass them.

    If there are more than ``_PROGRAMS`` rows, only that many are run, spread over the file, and a note says so.
    """
    options = code_options(options_for(spec.verifier, spec.options))
    if options is None:
        return
    answered = [entry for entry in entries if entry.answer is not None]
    step = max(1, -(-len(answered) // _PROGRAMS))
    for entry in answered[::step]:
        problem = gold_solution_problem(str(entry.answer), entry.metadata["cases"], options)
        if problem:
            raise UserError(f"{entry.metadata['where']}: {problem}")
    if step > 1:
        console.print(f"  {len(answered[::step])} of {len(answered)} answers were run on their cases, and they pass")


def _some(entries: list[Entry], path: str) -> list[Entry]:
    if not entries:
        raise UserError(f"{path} is empty (it has no rows): a task needs at least one example")
    return entries


def _scorer(verifier: VerifierName, options: dict[str, Any], thoughts: Thoughts) -> Scorer:
    checked = options_for(verifier, options)

    def score(answer: str, entry: Entry) -> float:
        cases = entry.metadata.get("cases")
        if not entry.accepted:
            return verify(verifier, answer, None, checked, cases=cases, thoughts=thoughts)
        return max(against(answer, gold, cases) for gold in entry.accepted)

    def against(answer: str, gold: Answer, cases: Any) -> float:
        if not isinstance(gold, str) and "tool_calls" in gold:
            return same_calls(strip_thoughts(answer) if thoughts == "strip" else answer, gold)
        text = gold if isinstance(gold, str) else gold["content"]
        if thoughts == "strip":
            text = strip_thoughts(text)  # thoughts are learnt, not judged
        return verify(verifier, answer, text, checked, cases=cases, thoughts=thoughts)

    return score
