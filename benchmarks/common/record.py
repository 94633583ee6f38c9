"""Options of the benchmarks, the judging of a claim, and the writing of a result.

A result is one JSON object::

    {"name", "scale", "command", "machine", "versions", "seeds", "seconds", "rows": [...],
     "claims": [{"claim", "value", "low", "high", "goal", "holds"}]}

Each row and each claim is one line of the file. A Markdown table and a plot of the same rows lie beside it. A claim
that does not hold stays in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from scipy import stats

from skillweave.artefact import atomic_file, write_text
from skillweave.errors import UserError
from skillweave.progress import console
from skillweave.report import Table, machine, svg_text, versions
from skillweave.units import human_seconds

# The libraries read these variables when they are imported. Our own messages and bars replace theirs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RESULTS = Path(__file__).parents[1] / "results"
_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Claim:
    """A figure with its 95% interval (or its range, if the benchmark says so), and whether it reaches its goal."""

    claim: str
    value: float
    low: float
    high: float
    goal: str
    holds: bool


def judged(claim: str, value: float, low: float, high: float, goal: str) -> Claim:
    """A claim with a goal such as ``"> 1"``. It holds if the value and both ends of the interval reach the goal."""
    match = re.fullmatch(r"(<=|>=|<|>) (\d+(?:\.\d+)?)", goal)
    if match is None:
        raise ValueError(f"a goal is a sign and a number, not {goal!r}")
    reaches, bound = _SIGNS[match[1]], float(match[2])
    return Claim(claim, value, low, high, goal, all(reaches(number, bound) for number in (value, low, high)))


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile interval of a statistic under resampling of the rows of ``values`` (n, ...).

    ``statistic`` takes (resamples, n, ...) and gives (resamples,).
    """
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(statistic(values[picks]), (0.025, 0.975))
    return float(low), float(high)


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% interval (Student's t) of a few independent values. The interval of one value is infinite."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


@dataclass
class Record:
    """One run of a benchmark: :meth:`begin` opens it from the command line, :meth:`finish` shows and writes it."""

    name: str
    scale: str
    command: str
    seeds: list[int]
    out: Path | None
    began: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        name: str,
        options: argparse.Namespace,
        argv: Sequence[str],
        seeds: Sequence[int],
        *,
        module: str | None = None,
    ) -> Record:
        """A record for the options of :func:`arguments`. A quick run is written only if ``--out`` names a folder.

        ``module`` is the module of ``benchmarks`` that is run, if the result has another name. The command is the one
        that measured: ``--show``, which only shows it again, is left out.
        """
        out = options.out or (None if options.quick else RESULTS)
        asked = [word for word in argv if word != "--show"]
        command = shlex.join(["python", "-m", f"benchmarks.{module or name}", *asked])
        return cls(name, "quick" if options.quick else options.scale, command, list(seeds), out)

    def finish(self, table: Table, figure: Figure, seconds: float | None = None) -> None:
        """Show table and claims; write JSON, Markdown and plot. ``seconds`` (default: since :meth:`begin`)."""
        seconds = round(time.monotonic() - self.began if seconds is None else seconds, 1)
        claims = _claim_table(self.claims)
        screen = Console(width=None if sys.stdout.isatty() else 160)
        screen.print(table.rich(f"{self.name}, {self.scale}"))
        screen.print(claims.rich("claims"))
        if self.out is None:
            return
        stem = f"{self.name}-{self.scale}"
        result = {
            "name": self.name,
            "scale": self.scale,
            "command": self.command,
            "machine": machine(),
            "versions": versions(),
            "seeds": self.seeds,
            "seconds": seconds,
            "rows": self.rows,
            "claims": [asdict(claim) for claim in self.claims],
        }
        with atomic_file(self.out / f"{stem}.svg") as file:
            file.write_text(svg_text(figure), encoding="utf-8")
        foot = f"Made by `{self.command}` on {result['machine']} in {human_seconds(seconds)}."
        parts = [f"# {self.name}, {self.scale}", table.markdown(), "## Claims", claims.markdown()]
        write_text(self.out / f"{stem}.md", "\n\n".join([*parts, f"![{self.name}]({stem}.svg)", foot]) + "\n")
        write_text(self.out / f"{stem}.json", result_text(result))
        console.print(f"written: {self.out / stem}.json, .md, .svg")


def result_text(result: Mapping[str, Any]) -> str:
    """A result as JSON with one line for each row and each claim, so that a diff shows which rows changed.

    Numbers that are not finite (the open end of an interval, a ratio that nobody knows) are null: JSON has none.
    """
    lines = []
    for key, value in _finite_or_null(result).items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = (f"    {json.dumps(row, ensure_ascii=False)}" for row in value)
            text = "[\n" + ",\n".join(rows) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def arguments(doc: str, scales: Sequence[str]) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark. ``scales`` are those it can run at; the first is the default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=scales, default=scales[0], help="size of the models (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="the same path in less than a minute; written only where --out says"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default: benchmarks/results)")
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few: at least 1")
    return number


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run ``main`` on the command line. A user's mistake exits with 2 and no traceback."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        console.print(f"[bold red]Error:[/bold red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("Stopped.")
        sys.exit(130)


def _claim_table(claims: Sequence[Claim]) -> Table:
    header = ["claim", "value", "interval", "goal", "holds"]
    rows = [
        [c.claim, f"{c.value:.3g}", f"{c.low:.3g} to {c.high:.3g}", c.goal, "yes" if c.holds else "no"] for c in claims
    ]
    return Table(header, rows)
