"""The search drawn in the terminal while it runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from skillweave.progress import share_of
from skillweave.reason.budget import Budget
from skillweave.reason.trace import SearchTrace, TracedNode
from skillweave.terminal import one_line

_FRAMES_PER_SECOND = 8
_PROGRAM_LINES = 8
_FEWEST_TREE_NODES = 4
_BAR_WIDTH = 20
# Samples of viridis, an even scale that people with colour-blindness can order, and the text that is readable on each.
_REWARD_STYLES = (
    *("#ffffff on #440154", "#ffffff on #482475", "#ffffff on #414487", "#ffffff on #355f8d", "#ffffff on #2a788e"),
    *("#000000 on #21918c", "#000000 on #22a884", "#000000 on #44bf70", "#000000 on #7ad151", "#000000 on #bddf26"),
)
_STATE_STYLES = {"open": "", "solved": "bold green", "equal": "dim", "dominated": "dim", "failed": "red"}


@dataclass(frozen=True)
class _Running:
    """One search at one moment."""

    name: str
    nodes: tuple[TracedNode, ...]
    calls: int
    tokens: int
    budget: Budget

    @property
    def best(self) -> TracedNode | None:
        """The node that solves the most training pairs; ties go to the higher reward, then to the earlier node."""
        made = [node for node in self.nodes if node.solved]
        return max(made, key=lambda node: (sum(node.solved), node.reward, -node.number), default=None)


class LiveView:
    """Draws searches while they run: ``with LiveView(console, problems=64) as view: ...``.

    Call :meth:`update` whenever a search has changed, and :meth:`finished` when it has ended. One problem is drawn as
    its tree, with its best hypothesis and its budget; of many there is a table, and the tree of one of them. The
    picture is redrawn eight times a second at most, and is cut to the height of the terminal with a note of that.
    Without a terminal, one line for each finished problem is all that is printed.
    """

    def __init__(self, console: Console, problems: int) -> None:
        self._console = console
        self._problems = problems
        self._lock = threading.Lock()  # rich draws in a thread of its own
        self._running: dict[str, _Running] = {}
        self._last: _Running | None = None
        self._finished = self._solved = self._right = self._unfinished = 0
        self._calls = self._tokens = 0
        self._live = Live(
            console=console,
            get_renderable=self.picture,
            refresh_per_second=_FRAMES_PER_SECOND,
            vertical_overflow="ellipsis",
        )

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def update(self, name: str, nodes: Sequence[TracedNode], calls: int, tokens: int, budget: Budget) -> None:
        """Show a search as it is now. ``calls``, ``tokens``: what it has used of its budget."""
        with self._lock:
            self._running[name] = self._last = _Running(name, tuple(nodes), calls, tokens, budget)

    def finished(self, trace: SearchTrace) -> None:
        """Count a search that has ended, and print one line about it."""
        with self._lock:
            ended = self._running.pop(trace.problem, None)
            if ended is not None:
                self._last = _Running(trace.problem, tuple(trace.nodes), trace.calls, trace.tokens, ended.budget)
            self._finished += 1
            self._solved += any(node.solved and all(node.solved) for node in trace.nodes)
            self._unfinished += trace.ended == "model"
            self._right += trace.task == 1
            self._calls += trace.calls
            self._tokens += trace.tokens
        self._console.print(Text(_finished_line(trace)), soft_wrap=True)

    def picture(self) -> RenderableType:
        """What the terminal shows now."""
        height = self._console.height - 1  # the cursor stands below the picture
        with self._lock:
            searches = list(self._running.values())
            if self._problems == 1:
                return Group(*_one(self._last, height)) if self._last is not None else Text("The search begins.")
            summary = self._summary(searches)
        if not searches:
            return Group(*summary)
        # The table and the tree of the search that began first share the height: four lines are the summary and the
        # head of the table, three are the notes and the name above the tree.
        free = height - 7
        rows = max(1, min(len(searches), free // 2))
        parts: list[RenderableType] = [*summary, _table(searches[:rows])]
        if rows < len(searches):
            parts.append(_line(f"... and {len(searches) - rows:,} more searches are running", "dim"))
        if free - rows >= _FEWEST_TREE_NODES:
            parts += [_line(searches[0].name, "bold"), *_tree(searches[0], free - rows)]
        return Group(*parts)

    def _summary(self, searches: Sequence[_Running]) -> list[RenderableType]:
        """Two lines about all problems."""
        calls = self._calls + sum(search.calls for search in searches)
        tokens = self._tokens + sum(search.tokens for search in searches)
        return [
            _line(
                f"{self._finished:,} of {self._problems:,} problems finished, {len(searches):,} running; "
                f"{calls:,} calls, {tokens:,} tokens",
                "bold",
            ),
            _line(
                f"{self._solved:,} solved in training, {self._right:,} with every test pair right, "
                f"{self._unfinished:,} unfinished"
            ),
        ]


def _finished_line(trace: SearchTrace) -> str:
    pairs = max((sum(node.solved) for node in trace.nodes), default=0)
    right = sum(test.right for test in trace.tests)
    tests = f"{right}/{len(trace.tests)} test pairs" if trace.tests else "no test pair graded"
    ended = {
        "solved": "solved",
        "budget": "budget spent",
        "stuck": "nothing left to try",
        "model": "unfinished, because the model could not be reached",
    }[trace.ended]
    return (
        f"{one_line(trace.problem)}: {ended}; {pairs}/{len(trace.pairs)} training pairs, {tests}; "
        f"{trace.calls:,} calls, {trace.tokens:,} tokens, {trace.seconds:.1f} s"
    )


def _one(search: _Running, height: int) -> list[RenderableType]:
    """The picture of a run of one problem, in ``height`` lines."""
    parts: list[RenderableType] = [_line(search.name, "bold"), *_budget_bars(search)]
    best = search.best
    if best is None:
        parts.append(_line("No hypothesis yet.", "dim"))
    else:
        parts.append(_line(f"Best so far is node {best.number}: {best.rule or 'no rule in words'}"))
        lines = best.program.rstrip().split("\n")  # each is made harmless when it is drawn
        room = min(_PROGRAM_LINES, max(1, height // 3))
        parts += [_line(f"    {line}", "cyan") for line in lines[:room]]
        if len(lines) > room:
            parts.append(_line(f"    ... {len(lines) - room:,} more lines", "dim"))
    return [*parts, *_tree(search, height - len(parts))]


def _budget_bars(search: _Running) -> list[RenderableType]:
    bars: list[RenderableType] = []
    for what, used, limit in (
        ("calls", search.calls, search.budget.calls),
        ("tokens", search.tokens, search.budget.tokens),
    ):
        if limit is None:
            bars.append(_line(f"{what:<7}{used:,}, no limit"))
        else:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(f"{what:<6}", _bar(used, limit), f"{used:,} of {limit:,}")
            bars.append(grid)
    return bars


def _bar(used: int, limit: int) -> ProgressBar:
    return ProgressBar(total=limit, completed=min(used, limit), width=_BAR_WIDTH)


def _table(searches: Sequence[_Running]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("running", overflow="ellipsis", no_wrap=True, max_width=32)
    for name in ("nodes", "pairs", "reward", "calls", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("budget", no_wrap=True)
    for search in searches:
        best = search.best
        limit = search.budget.calls
        table.add_row(
            Text(one_line(search.name)),
            f"{_made(search.nodes):,}",
            f"{sum(best.solved)}/{len(best.solved)}" if best else "-",
            Text(f"{best.reward:.2f}", style=_reward_style(best.reward)) if best else "-",
            f"{search.calls:,}",
            f"{search.tokens:,}",
            _bar(search.calls, limit) if limit else "no limit",
        )
    return table


def _tree(search: _Running, lines: int) -> list[RenderableType]:
    """The tree of a search in ``lines`` lines, and a note of what is left out."""
    nodes = search.nodes
    if not nodes:
        return []
    shown = _most_promising(nodes, len(nodes) if len(nodes) <= lines else max(1, lines - 1))
    best = search.best
    branches: dict[int | None, Tree] = {}
    root: Tree | None = None
    for node in nodes:
        if node.number not in shown:
            continue
        label = _label(node, best is not None and node.number == best.number)
        above = branches.get(node.parent)
        if above is not None:
            branches[node.number] = above.add(label)
        elif root is None:
            branches[node.number] = root = Tree(label)
    parts: list[RenderableType] = [root] if root is not None else []
    if len(branches) < len(nodes):
        left_out = len(nodes) - len(branches)
        parts.append(
            _line(f"... {share_of(left_out, len(nodes), 'nodes')} do not fit: pruned, failed or low ones", "dim")
        )
    return parts


def _most_promising(nodes: Sequence[TracedNode], count: int) -> set[int]:
    """The numbers of at most ``count`` nodes, whose ancestors are among them: open and solved ones first, by reward."""
    parents = {node.number: node.parent for node in nodes}
    shown: set[int] = set()
    for node in sorted(nodes, key=lambda node: (node.state not in ("open", "solved"), -node.reward, node.number)):
        way: list[int] = []
        at: int | None = node.number
        while at is not None and at in parents and at not in shown and at not in way:
            way.append(at)
            at = parents[at]
        if len(shown) + len(way) <= count:
            shown.update(way)
    return shown


def _label(node: TracedNode, is_best: bool) -> Text:
    if node.action == "root":
        return Text("the problem", style="bold", no_wrap=True)
    label = Text(no_wrap=True, overflow="ellipsis")
    label.append(f"{node.number} ", style="bold")
    if node.state != "failed":
        label.append(f" {node.reward:.2f} ", style=_reward_style(node.reward))
        label.append(f" {sum(node.solved)}/{len(node.solved)}")
    words = {
        "open": "",
        "solved": "solved",
        "equal": f"equal to {node.equal_to}",
        "dominated": f"dominated by {node.equal_to}",
        "failed": "failed",
    }[node.state]
    for text, style in (
        (words, _STATE_STYLES[node.state]),
        ("backtracked" if node.backtracked else "", "yellow"),
        ("best" if is_best else "", "bold"),
    ):
        if text:
            label.append("  ").append(text, style=style)
    says = one_line(node.failure or node.rule, width=120)
    return label.append(f"  {says}", style="dim") if says else label


def _line(text: str, style: str = "") -> Text:
    """A text that takes one line, whatever its length."""
    return Text(one_line(text, width=400), style=style, no_wrap=True, overflow="ellipsis")


def _made(nodes: Sequence[TracedNode]) -> int:
    """The number of nodes without the root."""
    return sum(node.action != "root" for node in nodes)


def _reward_style(reward: float) -> str:
    return _REWARD_STYLES[max(0, min(len(_REWARD_STYLES) - 1, int(reward * len(_REWARD_STYLES))))]
