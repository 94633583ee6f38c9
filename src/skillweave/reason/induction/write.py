"""Generate test problems, practice problems and training rows with different behaviours, and write them to a folder.

The test problems are drawn first, then the practice problems, then the rows. Each draw refuses the behaviours of the
problems that were drawn before it. Behaviours are compared by the outputs on probe inputs, never by text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from skillweave.artefact import atomic_folder, write_json, write_text
from skillweave.errors import UserError
from skillweave.files.hashes import digest, sha256_file
from skillweave.files.lock import claim
from skillweave.progress import bar, console, share_of
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.induction.config import InductionConfig
from skillweave.reason.induction.draw import DrawnProblem, draw_problem
from skillweave.reason.induction.families import FAMILIES
from skillweave.reason.induction.rows import row
from skillweave.reason.problem import IOPair


def write_induction(folder: str | Path, settings: InductionConfig) -> dict[str, Any]:
    """Write a new folder of generated problems and rows, and return what its ``induction.json`` says.

    - ``rows.jsonl``: training rows with ``prompt`` and ``answer``, in random order
    - ``problems.jsonl``: the test problems: ``{"name", "family", "train": [{"input", "output"}], "test": [...]}``
    - ``practice.jsonl``: problems in the same form, for training on the model's own programs
    - ``induction.json``: the settings, the numbers of rows, the draws that were refused, and the files' SHA-256

    The same settings write the same bytes. Raises :class:`UserError` if the folder exists or if the settings leave too
    few behaviours.
    """
    with claim(folder):  # from the start: another process would write its own there meanwhile
        if Path(folder).exists():
            raise UserError(f"{folder} exists already, and is not overwritten: name a new folder, or delete it")
        return _write(folder, settings)


def _write(folder: str | Path, settings: InductionConfig) -> dict[str, Any]:
    problems = Problems(settings)
    rows = [row for row, _ in problems.rows()]
    files = {
        "rows.jsonl": rows,
        "problems.jsonl": [_layout(f"{p.family.name}-{at}", p) for at, p in _numbered(problems.test)],
        "practice.jsonl": [_layout(f"practice-{p.family.name}-{at}", p) for at, p in _numbered(problems.practice)],
    }
    with atomic_folder(folder) as temporary:
        for name, lines in files.items():
            write_text(temporary / name, "".join(json.dumps(line) + "\n" for line in lines))
        facts = {
            "settings": settings.model_dump(mode="json"),
            "prompts": problems.prompts.digest,
            "counts": {name: len(lines) for name, lines in files.items()},
            "rows": {f"{family} {kind}": count for (family, kind), count in sorted(_kinds(rows).items())},
            "refused": {family: dict(sorted(reasons.items())) for family, reasons in problems.refused.items()},
            "files": {name: sha256_file(temporary / name) for name in files},
        }
        facts["digest"] = digest(facts)
        write_json(temporary / "induction.json", facts)
    for family, reasons in problems.refused.items():
        draws = sum(reasons.values()) + reasons["drawn"]
        console.print(f"  {family}: {share_of(reasons['held out'], draws, 'draws')} were refused as held out")
    return facts


class Problems:
    """The test and practice problems of some settings, and an endless number of training rows beside them.

    ``refused`` counts, for each family, the draws of rows that were refused, by reason.
    """

    def __init__(self, settings: InductionConfig) -> None:
        self._settings = settings
        self.prompts = PromptSet.named("induction")
        self.refused: dict[str, Counter[str]] = {name: Counter() for name in settings.families}
        held: set[str] = set()
        self.test = self._held_out("test", settings.tasks, held)
        self.practice = self._held_out("practice", settings.practice, held)
        self.held_out = frozenset(held)
        """the behaviours of both"""

    def rows(self) -> Iterator[tuple[dict[str, Any], DrawnProblem]]:
        """The training rows, ``settings.rows`` of them, each with its problem; every call gives the same ones."""
        random = Random(f"rows {self._settings.seed}")
        kinds, shares = list(self._settings.kinds), list(self._settings.kinds.values())
        for reasons in self.refused.values():
            reasons.clear()
        with bar("induction: rows", self._settings.rows) as advance:
            made = 0
            for problem in self.training(random):
                found = row(random.choices(kinds, shares)[0], problem, self.prompts, random)
                if found is not None:
                    made += 1
                    advance(1)
                    yield found, problem
                if made == self._settings.rows:
                    return

    def training(self, random: Random) -> Iterator[DrawnProblem]:
        """Training problems without end, of all families in their shares; none behaves as a held-out problem."""
        names = list(self._settings.families)
        shares = [family.share for family in self._settings.families.values()]
        while True:
            name = random.choices(names, shares)[0]
            sizes = self._settings.families[name].train
            yield self._draw(name, random, sizes, self.held_out, self.refused[name])

    def _held_out(self, what: str, count: int, held: set[str]) -> list[DrawnProblem]:
        """``count`` problems of each family, whose behaviours are new and are added to ``held``."""
        chosen = []
        for name, family in self._settings.families.items():
            random = Random(f"{what} {name} {self._settings.seed}")
            for _ in range(count):
                problem = self._draw(name, random, family.test, held, Counter(), family.tests)
                held.add(problem.behaviour)
                chosen.append(problem)
        return chosen

    def _draw(
        self,
        name: str,
        random: Random,
        sizes: tuple[int, int],
        without: frozenset[str] | set[str],
        refused: Counter[str],
        tests: int = 0,
    ) -> DrawnProblem:
        family = self._settings.families[name]
        try:
            problem = draw_problem(
                FAMILIES[name], random, sizes, family.pairs, without=without, tests=tests, refused=refused
            )
        except ValueError as error:
            raise UserError(
                f"{error}: ask for fewer test and practice problems ({self._settings.tasks} and "
                f"{self._settings.practice}), or for longer programs"
            ) from error
        refused["drawn"] += 1
        return problem


def _numbered(problems: list[DrawnProblem]) -> Iterator[tuple[int, DrawnProblem]]:
    """The problems with their numbers within their families, from 1."""
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.family.name] += 1
        yield seen[problem.family.name], problem


def _layout(name: str, problem: DrawnProblem) -> dict[str, Any]:
    return {
        "name": name,
        "family": problem.family.name,
        "train": [_pair(pair) for pair in problem.train],
        "test": [_pair(pair) for pair in problem.test],
    }


def _pair(pair: IOPair) -> dict[str, Any]:
    return {"input": pair.input, "output": pair.output}


def _kinds(rows: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((row["family"], row["kind"]) for row in rows)
