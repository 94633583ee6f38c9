from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.browser import Browser, browser, needs_browser
from helpers.page_text import page_text
from helpers.search_traces import made_up_trace
from skillweave.reason.page import write, write_page
from skillweave.reason.page.layout import tidy_layout
from skillweave.reason.trace import SearchTrace, TracedNode, TracedPair, TracedTest

FACTS = {"method": "matsir", "budget": "calls=64", "seed": "0", "model": "induction"}
HOSTILE = '</script><script>alert("1")</script><!-- & \' \u202edrow\u2028 \x1b[31m \ud800'


def written(folder: Path, traces: list[SearchTrace]) -> str:
    write_page(folder / "page.html", "A run", FACTS, traces)
    return (folder / "page.html").read_text(encoding="utf-8")


def trees(page: str) -> list[dict]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)]


def failed_trace() -> SearchTrace:
    """A search whose only answer could not be read, and which then lost the model."""
    return SearchTrace(
        problem="two",
        method="matsir",
        seed=0,
        pairs=[TracedPair(input="1", output="2")],
        nodes=[
            TracedNode(number=0, parent=None, action="root"),
            TracedNode(number=1, parent=0, action="propose", state="failed", failure="no code in the answer"),
        ],
        ended="model",
        calls=2,
        tokens=300,
        seconds=1.0,
    )


# ---- the layout ----


def test_the_layout_of_small_trees_is_the_expected_one() -> None:
    assert tidy_layout([]) == []
    assert tidy_layout([None, 0, 1]) == [(0, 0), (1, 0), (2, 0)]
    assert tidy_layout([None, 0, 0, 0]) == [(0, 1), (1, 0), (1, 1), (1, 2)]
    # The two children of the first child fit above the chain below the second: contours, not bounding boxes.
    assert tidy_layout([None, 0, 0, 1, 1]) == [(0, 1), (1, 0.5), (1, 1.5), (2, 0), (2, 1)]
    assert tidy_layout([None, None, 1]) == [(0, 0), (0, 1), (1, 1)]
    with pytest.raises(ValueError, match="node 1: its parent 1"):
        tidy_layout([None, 1])


@pytest.mark.parametrize("seed", range(5))
def test_the_layout_is_tidy(seed: int) -> None:
    draw = random.Random(seed)
    parents = [None, *(draw.randrange(max(0, node - 9), node) for node in range(1, 200))]
    places = tidy_layout(parents)
    assert min(row for _, row in places) == 0
    for column in range(max(column for column, _ in places) + 1):
        rows = sorted(row for other, row in places if other == column)
        assert all(second - first >= 1 - 1e-9 for first, second in itertools.pairwise(rows))
    for node, (column, row) in enumerate(places):
        children = [child for child, parent in enumerate(parents) if parent == node]
        rows = [places[child][1] for child in children]
        assert rows == sorted(rows)
        assert all(places[child][0] == column + 1 for child in children)
        if rows:
            assert row == pytest.approx((rows[0] + rows[-1]) / 2)


# ---- the file ----


def test_the_numbers_of_the_run_are_on_the_page(tmp_path: Path) -> None:
    half = made_up_trace("half", seed=2, solves=True).model_copy(
        update={"raw": 0.5, "task": 0.0, "calls": 10, "tokens": 700}
    )
    whole = made_up_trace("whole", seed=1, solves=True).model_copy(update={"calls": 30, "tokens": 1300})
    written(tmp_path, [half, whole, failed_trace()])
    text = " ".join(page_text(tmp_path / "page.html").split())
    for words in (
        "Raw accuracy 50.0% share of test pairs",
        "Task accuracy 33.3% 1 of 3 problems",
        "Solved in training 66.7% 2 of 3 problems",
        "Calls 42 14.0 model calls",
        "Tokens 2,300",
        "Unfinished 1 ",
        "How the searches ended: 2 solved, 1 unfinished (model lost).",
        "1 of 3 problems (33%) have no graded test pair and count as wrong.",
        "1 of 2 problems (50%) that are solved on their training pairs fail a test pair.",
        "1 of 3 searches (33%) failed: none of their answers held a readable program.",
        "agent answers (2%) could not be read, even after a repair.",
        "method matsir budget calls=64 seed 0 model induction",
    ):
        assert words in text


def test_the_states_of_all_nodes_are_in_the_tree(tmp_path: Path) -> None:
    trace = made_up_trace(nodes=46)
    [tree] = trees(written(tmp_path, [trace]))
    assert {node["state"] for node in tree["nodes"]} == {"open", "solved", "equal", "dominated", "failed"}
    for node, drawn in zip(trace.nodes, tree["nodes"], strict=True):
        above = trace.nodes[node.parent] if node.parent is not None else None
        assert drawn["given_up"] == (
            node.backtracked or (above is not None and tree["nodes"][above.number]["given_up"])
        )
        assert (drawn["number"], drawn["solved"], drawn["outcomes"]) == (node.number, node.solved, node.outcomes)
    answer = next(node for node in tree["nodes"] if node["answer"])
    assert answer["number"] == trace.answer[0]
    assert tree["nodes"][0]["on_way"]
    assert any("It behaves like node" in " ".join(node["fate"]) for node in tree["nodes"])


def test_a_reader_without_scripts_finds_pairs_rewards_and_outcomes(tmp_path: Path) -> None:
    trace = made_up_trace(nodes=12)
    written(tmp_path, [trace])
    text = " ".join(page_text(tmp_path / "page.html").split())
    node = next(node for node in trace.nodes if node.outcomes and node.note)
    lists = text[text.index("Without JavaScript") :]
    for words in (
        *(f"{pair.input} gives {pair.output}" for pair in trace.pairs),
        f"Node {node.number}: {node.state}, {sum(node.solved)}/6 pairs, reward {node.reward:.2f}",
        f"Coherent {node.coherent:.3f}, enriched {node.enriched:.3f}; {node.visits} visits, mean {node.mean:.3f}",
        f"{'right' if node.solved[0] else 'wrong'}: {node.outcomes[0]}",
        f"The critic: {node.note}",
    ):
        assert words in lists


def test_hostile_texts_are_harmless(tmp_path: Path) -> None:
    node = TracedNode(
        number=1,
        parent=0,
        action="propose",
        rule=HOSTILE,
        program=HOSTILE,
        outcomes=[HOSTILE],
        solved=[False],
        note=HOSTILE,
        failure=HOSTILE,
    )
    trace = failed_trace().model_copy(
        update={
            "problem": HOSTILE,
            "family": HOSTILE,
            "nodes": [TracedNode(number=0, parent=None, action="root"), node],
            "pairs": [TracedPair(input=HOSTILE, output=HOSTILE)],
            "tests": [TracedTest(input=HOSTILE, predicted=HOSTILE, right=False)],
        }
    )
    write_page(tmp_path / "page.html", HOSTILE, {HOSTILE: HOSTILE}, [trace])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alert(" in page
    assert "<script>alert" not in page
    assert not re.search("[\u202e\u2028\x1b]", page)
    assert page.count("<script") == page.count("</script>") == 2
    page_text(tmp_path / "page.html")  # all elements are closed
    [tree] = trees(page)
    seen = HOSTILE.replace("\u202e", "\\u202e").replace("\u2028", "\\u2028").replace("\x1b", "\\x1b")
    assert tree["nodes"][1]["program"] == seen.replace("\ud800", "\\ud800")


def test_the_policy_allows_only_what_the_page_holds(tmp_path: Path) -> None:
    page = written(tmp_path, [made_up_trace()])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    for name, pattern in (("style-src", r"<style>(.*?)</style>"), ("script-src", r"<script>(.*?)</script>")):
        [inside] = re.findall(pattern, page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    outside = re.sub(r"<style>.*?</style>|<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"\son\w+=|\sstyle=|\ssrc=|https?:|javascript:", outside)


def test_long_texts_are_cut_and_the_page_says_so(tmp_path: Path) -> None:
    trace = made_up_trace(nodes=3)
    long = trace.nodes[1].model_copy(update={"program": "x" * 1_000_000})
    trace = trace.model_copy(update={"nodes": [trace.nodes[0], long, trace.nodes[2]]})
    page = written(tmp_path, [trace])
    assert len(page) < 100_000
    assert trees(page)[0]["nodes"][1]["program"].endswith("x… (996,000 of 1,000,000 characters cut)")
    assert re.search(r"1 of \d+ texts \(\d+%\) are cut in this page, together by 996,000 characters", page)


def test_only_the_first_trees_of_many_are_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [failed_trace().model_copy(update={"problem": f"p{at}"}) for at in range(5)]
    monkeypatch.setattr(write, "MOST_TREES", 3)
    page = written(tmp_path, traces)
    assert [tree["name"] for tree in trees(page)] == ["p0", "p1", "p2"]
    assert "the trees of the first 3 of 5 problems (60%)" in page
    assert page.count("<tr data-number") == 5
    assert page.count("(tree left out)") == 2
    monkeypatch.setattr(write, "MOST_TREE_CHARACTERS", len(json.dumps(trees(page)[0])) * 2)
    assert len(trees(written(tmp_path, traces))) == 2


def test_a_run_without_traces_and_a_direct_answer_have_a_page(tmp_path: Path) -> None:
    assert "no trace of any search yet" in written(tmp_path, [])
    direct = failed_trace().model_copy(update={"nodes": [], "ended": "budget", "method": "io"})
    page = written(tmp_path, [direct])
    assert trees(page)[0]["nodes"] == []
    assert "searches failed" not in re.sub("<script.*", "", page, flags=re.DOTALL)


def test_a_node_whose_parent_is_not_an_earlier_node_is_drawn_on_its_own(tmp_path: Path) -> None:
    nodes = [TracedNode(number=0, parent=None, action="root"), TracedNode(number=1, parent=7, action="refine")]
    [tree] = trees(written(tmp_path, [failed_trace().model_copy(update={"nodes": nodes})]))
    assert [node["parent"] for node in tree["nodes"]] == [None, None]


def test_texts_on_rewards_can_be_read_in_both_schemes() -> None:
    style = write._beside("page.css")
    for scheme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colors = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
        pairs = [(f"t{step}", f"r{step}") for step in range(10)]
        pairs += [(text, back) for text in ("ink", "soft", "link", "good", "bad") for back in ("back", "card")]
        for text, back in pairs:
            assert contrast(colors[text], colors[back]) >= 4.5, (text, back, contrast(colors[text], colors[back]))
        strength = [contrast(colors[f"r{step}"], colors["card"]) for step in range(10)]
        assert strength == sorted(strength), "a stronger reward must stand out more"


def contrast(one: str, two: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# ---- in a real browser ----


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    hostile = failed_trace().model_copy(update={"problem": HOSTILE, "family": HOSTILE})
    traces = [made_up_trace("first", nodes=46), made_up_trace("second", nodes=65, seed=1, solves=False), hostile]
    write_page(file, "A run", FACTS, traces)
    return file


@pytest.mark.slow
@needs_browser
def test_the_browser_draws_every_node_and_no_error_occurs(tab: Browser, page: Path) -> None:
    for problem, nodes in ((1, 46), (2, 65), (3, 2)):
        tab.open(page, f"problem={problem}&node=1")
        assert tab.evaluate("document.querySelectorAll('#tree [role=treeitem]').length") == nodes
        assert tab.evaluate("document.querySelector('#node h2').textContent").startswith("Node 1")
        assert tab.errors == []
    assert "alert(" in tab.evaluate("document.getElementById('search-title').textContent")
    assert "no code in the answer" in tab.evaluate("document.getElementById('node').textContent")
    tab.open(page, "problem=99&node=x")  # an address that means nothing shows the first problem
    assert tab.evaluate("document.getElementById('search-title').textContent") == "1. first"
    assert tab.errors == []


@pytest.mark.slow
@needs_browser
def test_keys_move_through_the_tree_and_the_address_follows(tab: Browser, page: Path) -> None:
    tab.open(page, "problem=1&node=0")
    tab.evaluate("document.querySelector('#tree .chosen').focus()")
    column = tab.evaluate("Number(document.activeElement.getAttribute('aria-level'))")
    tab.press("ArrowRight")
    assert tab.evaluate("Number(document.activeElement.getAttribute('aria-level'))") == column + 1
    before = tab.evaluate("location.hash")
    tab.press("ArrowDown")
    below = tab.evaluate("location.hash")
    assert below != before
    assert tab.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    tab.press("ArrowUp")
    assert tab.evaluate("location.hash") == before
    tab.press("End")
    assert "answer" in tab.evaluate("document.getElementById('node').textContent")
    tab.press("Home")
    tab.press("ArrowLeft")  # the root has no parent: nothing happens
    assert tab.evaluate("location.hash") == "#problem=1&node=0"
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "node"
    assert tab.errors == []


@pytest.mark.slow
@needs_browser
def test_the_table_sorts_filters_and_leads_to_a_tree(tab: Browser, page: Path) -> None:
    names = "[...document.querySelectorAll('#table tbody tr:not([hidden])')].map(row => row.dataset.number).join()"
    tab.open(page)
    assert tab.evaluate(names) == "1,2,3"
    calls = "document.querySelectorAll('#table th button')[5].click()"
    tab.evaluate(calls)
    assert tab.evaluate(names) == "3,1,2"
    tab.evaluate(calls)
    assert tab.evaluate(names) == "2,1,3"
    tab.evaluate(
        "(() => { const ended = document.getElementById('filter-ended'); ended.value = 'model';"
        " ended.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    assert tab.evaluate(names) == "3"
    assert tab.evaluate("document.getElementById('shown').textContent").startswith("1 of 3 problems shown")
    tab.evaluate("document.querySelector('#table tbody tr:not([hidden]) a').click()")
    tab.evaluate("new Promise(resolve => setTimeout(resolve, 50))")
    assert tab.evaluate("document.getElementById('search-title').textContent").startswith("3. ")
    assert tab.errors == []


@pytest.mark.slow
@needs_browser
def test_a_search_without_nodes_shows_nothing_of_the_problem_before(tab: Browser, tmp_path: Path) -> None:
    write_page(
        tmp_path / "page.html", "A run", FACTS, [failed_trace(), failed_trace().model_copy(update={"nodes": []})]
    )
    tab.open(tmp_path / "page.html", "problem=1&node=1")
    assert "no code in the answer" in tab.evaluate("document.getElementById('node').textContent")
    tab.evaluate("document.getElementById('next').click()")
    tab.evaluate("new Promise(resolve => setTimeout(resolve, 50))")
    assert tab.evaluate("document.getElementById('search-title').textContent") == "2. two"
    assert tab.evaluate("document.getElementById('node').textContent").startswith("This search made no node.")
    assert ", 0 nodes, " in tab.evaluate("document.getElementById('search-facts').textContent")
    assert tab.errors == []


@pytest.mark.slow
@needs_browser
def test_without_scripts_the_trees_are_lists(tab: Browser, page: Path) -> None:
    tab.open(page, script=False)
    document = tab._call("DOM.getDocument")["root"]["nodeId"]
    lists = tab._call("DOM.querySelectorAll", nodeId=document, selector="noscript details.node")["nodeIds"]
    assert len(lists) == 45 + 64 + 1


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_never_wider_than_the_window(tab: Browser, page: Path, width: int) -> None:
    tab.open(page, "problem=2", width=width, height=844)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    table = "document.getElementById('table-scroll')"
    assert tab.evaluate(f"{table}.scrollWidth <= {table}.clientWidth")
