from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from helpers.search_traces import made_up_trace
from skillweave.reason.budget import Budget
from skillweave.reason.live import LiveView, _most_promising
from skillweave.reason.trace import SearchTrace, TracedNode

BUDGET = Budget(calls=128, tokens=100_000)


def terminal(height: int = 30, *, is_terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=110, height=height, color_system="truecolor")


def picture(view: LiveView, console: Console) -> list[str]:
    """The lines of the picture as a person sees them."""
    with console.capture() as capture:
        console.print(view.picture())
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()


def shown(view: LiveView, trace: SearchTrace) -> None:
    view.update(trace.problem, trace.nodes, trace.calls, trace.tokens, BUDGET)


def test_one_problem_is_drawn_as_its_tree() -> None:
    console = terminal(height=80)
    view = LiveView(console, problems=1)
    assert picture(view, console) == ["The search begins."]
    trace = made_up_trace("reverse", nodes=46)
    shown(view, trace)
    lines = picture(view, console)
    text = "\n".join(lines)
    assert lines[0] == "reverse"
    assert "91 of 128" in lines[1]
    assert "37,492 of 100,000" in lines[2]
    assert f"Best so far is node {trace.answer[0]}: " in lines[3]
    for node in trace.nodes[1:]:
        assert re.search(rf"── {node.number} ", text), node.number
    for state in ("solved  best", "equal to ", "dominated by ", "failed", "backtracked"):
        assert state in text
    view.finished(trace)
    assert picture(view, console) == lines  # the last picture stays


@pytest.mark.parametrize("height", [12, 24])
@pytest.mark.parametrize("problems", [1, 64])
def test_the_picture_fits_into_the_terminal_and_says_what_is_left_out(problems: int, height: int) -> None:
    console = terminal(height)
    view = LiveView(console, problems)
    for number in range(problems):
        shown(view, made_up_trace(f"p{number}", nodes=46, seed=number))
    lines = picture(view, console)
    assert len(lines) < height
    cut = [line for line in lines if line.startswith("... ")]
    if problems == 1:
        assert re.fullmatch(r"\.\.\. \d+ of 46 nodes \(\d+%\) do not fit: pruned, failed or low ones", cut[-1])
        left_out = int(cut[-1].split()[1])
        assert sum("──" in line for line in lines) + left_out == 45
    else:
        rows = sum(bool(re.match(r"p\d+ +45 ", line)) for line in lines)
        assert cut[0] == f"... and {64 - rows} more searches are running"


def test_the_nodes_that_are_shown_are_the_best_and_their_ancestors() -> None:
    nodes = made_up_trace(nodes=46).nodes
    for count in (1, 5, 20, 46):
        chosen = _most_promising(nodes, count)
        assert len(chosen) <= count
        assert all(node.parent is None or node.parent in chosen for node in nodes if node.number in chosen)
    best = max((node for node in nodes if node.state in ("open", "solved")), key=lambda node: node.reward)
    assert best.number in _most_promising(nodes, 20)


def test_many_problems_are_counted() -> None:
    console = terminal()
    view = LiveView(console, problems=3)
    shown(view, made_up_trace("running"))
    # With several votes a search may spend its budget although a program solves all pairs: it counts as solved.
    view.finished(made_up_trace("first").model_copy(update={"ended": "budget"}))
    view.finished(made_up_trace("second", solves=False, seed=1).model_copy(update={"ended": "model", "task": 0.0}))
    first, second, *rest = picture(view, console)
    assert first.startswith("2 of 3 problems finished, 1 running; ")
    assert second == "1 solved in training, 1 with every test pair right, 1 unfinished"
    assert any(line.startswith("running ") and "6/6" in line for line in rest)


def test_a_pipe_gets_one_line_for_each_finished_problem() -> None:
    console = terminal(is_terminal=False)
    with LiveView(console, problems=2) as view:
        shown(view, made_up_trace("first"))
        view.finished(made_up_trace("first"))
        view.finished(made_up_trace("second\n\x1b[31m", seed=1).model_copy(update={"ended": "model", "tests": []}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.splitlines() == [
        "first: solved; 6/6 training pairs, 4/4 test pairs; 89 calls, 36,668 tokens, 27.6 s",
        "second \\x1b[31m: unfinished, because the model could not be reached; 6/6 training pairs, "
        "no test pair graded; 89 calls, 36,668 tokens, 27.6 s",
    ]


def test_a_terminal_is_drawn_and_left_in_order() -> None:
    console = terminal()
    with LiveView(console, problems=1) as view:
        shown(view, made_up_trace("first"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("\x1b[?25l")
    assert "Best so far" in text  # the last picture, drawn when the view ends
    assert "\x1b[?25h" in text  # the cursor is shown again


def test_texts_of_models_cannot_steer_the_terminal() -> None:
    hostile = "\x1b]0;title\x07 [red]not markup[/red] \u202e\r\n"
    node = TracedNode(
        number=1,
        parent=0,
        action="propose",
        rule=hostile,
        program=hostile,
        solved=[True],
        outcomes=["1"],
        failure=hostile,
    )
    nodes = [TracedNode(number=0, parent=None, action="root"), node]
    for problems in (1, 2):
        console = terminal()
        view = LiveView(console, problems)
        view.update(hostile, nodes, 1, 10, Budget(calls=None, tokens=None))
        text = "\n".join(picture(view, console))
        assert not re.search("[\x1b\x07\r\u202e]", text)
        assert "[red]not markup[/red]" in text
        assert "no limit" in text
