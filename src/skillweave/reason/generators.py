"""Problems from three generators of reasoning-gym, whose examples are read back from the question they ask."""

from __future__ import annotations

import ast
import dataclasses
import random
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

from skillweave.errors import UserError, nearest, shown_value
from skillweave.progress import say_once, share_of

_SIZE = 50
"""How many problems are generated if the reference does not say."""

_Pairs = list[dict[str, Any]]


def generated_rows(reference: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the row of each problem that ``NAME?size=20&seed=1`` asks for; size is 50 and seed 0 by default.

    Further keys are the generator's own settings. A problem whose question cannot be read is left out, and standard
    error says how many. Raises :class:`UserError`.
    """
    name, _, query = reference.partition("?")
    if name not in GENERATORS:
        raise UserError(
            f"reasoning-gym:{name}: no problems can be read from this generator; {nearest(name, GENERATORS)}"
        )
    settings = {"size": _SIZE, "seed": 0, **_settings(name, query)}
    unread = 0
    for number, item in enumerate(_items(name, settings)):
        try:
            train, test = GENERATORS[name](item)
        except (ValueError, SyntaxError, LookupError, TypeError):
            unread += 1
            continue
        family = item["metadata"].get("task_name", name)
        row = {"name": f"{name}-{number}", "family": family, "train": train, "test": [test]}
        yield f"reasoning-gym:{name}, item {number}", row
    if unread:
        say_once(f"reasoning-gym:{reference}: {share_of(unread, settings['size'], 'items')} could not be read")


def _settings(name: str, query: str) -> dict[str, int]:
    from reasoning_gym.factory import DATASETS  # imported here: it takes seconds, and few problems come from it

    known = {field.name for field in dataclasses.fields(DATASETS[name][1])}
    settings: dict[str, int] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UserError(f"reasoning-gym:{name}: unknown key '{key}'; {nearest(key, known)}")
        if key in settings:
            raise UserError(f"reasoning-gym:{name}: '{key}' is given twice")
        if re.fullmatch(r"\d{1,9}", text, re.ASCII) is None:
            raise UserError(f"reasoning-gym:{name}: '{key}' must be a whole number, not {shown_value(text)}")
        settings[key] = int(text)
    if query and not settings:
        raise UserError(f"reasoning-gym:{name}?{query}: write its settings as size=20&seed=1")
    return settings


def _items(name: str, settings: dict[str, int]) -> list[dict[str, Any]]:
    import reasoning_gym  # see above

    state = random.getstate()
    try:
        random.seed(settings["seed"])  # one of the generators draws from Python's shared source
        return list(reasoning_gym.create_dataset(name, **settings))
    except (AssertionError, ValueError) as error:
        raise UserError(f"reasoning-gym:{name} refuses {settings}: {error}") from error
    finally:
        random.setstate(state)


def _list_functions(item: dict[str, Any]) -> tuple[_Pairs, dict[str, Any]]:
    question = item["question"]
    pairs = re.findall(r"^Input \d+: (.*)\nOutput \d+: (.*)$", question, re.MULTILINE)
    last = re.findall(r"^Input: (.*)$", question, re.MULTILINE)[-1]
    return [_literals(*pair) for pair in pairs], _literals(last, item["answer"])


def _literals(one: str, other: str) -> dict[str, Any]:
    return {"input": ast.literal_eval(one), "output": ast.literal_eval(other)}


def _acre(item: dict[str, Any]) -> tuple[_Pairs, dict[str, Any]]:
    """The pairs of an item, whose inputs are lists of objects such as ``"red metal cube"``, and its test pair."""
    examples, _, rest = item["question"].partition("Previous experimental results:\n")[2].partition("\n\n")
    pairs = [line.split(" → ") for line in examples.splitlines()]
    tested = rest.removeprefix("New test case:\n").partition("\n\n")[0]
    return [{"input": objects.split(", "), "output": light} for objects, light in pairs], {
        "input": tested.split(", "),
        "output": item["answer"],
    }


def _arc_1d(item: dict[str, Any]) -> tuple[_Pairs, dict[str, Any]]:
    """The pairs of an item, whose inputs and outputs are lists of colours, and its test pair."""
    metadata = item["metadata"]
    return metadata["train_examples"], metadata["test_example"]


GENERATORS: dict[str, Callable[[dict[str, Any]], tuple[_Pairs, dict[str, Any]]]] = {
    "list_functions": _list_functions,
    "acre": _acre,
    "arc_1d": _arc_1d,
}
"""Generator -> the function that reads the training pairs and the test pair of one of its items."""
