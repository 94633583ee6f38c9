"""`skillweave reason` and `skillweave induction` as a person runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.fault_server import FaultServer, Reply, fault_server
from helpers.terminal import Bench, refused, run

PROBLEMS = [
    {
        "name": f"add {n}",
        "family": "add",
        "train": [{"input": x, "output": x + n} for x in range(3)],
        "test": [{"input": 10, "output": 10 + n}],
    }
    for n in (1, 2)
]


def answer(request: dict[str, Any]) -> Reply:
    """A program that adds one, as chat models write it; who is shown that adds two."""
    prompt = request["messages"][-1]["content"]
    program = f"def f(x):\n    return x + {2 if 'return x + 1' in prompt else 1}"
    return Reply(answer=json.dumps({"rule": "add", "program": program, "part": "add", "why": "too little"}))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server(after=answer) as running:
        yield running


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return path


def test_a_run_with_a_server(server: FaultServer, problems: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    command = ["reason", problems, "-m", f"{server.url}#m", "-o", out, "--harvest", rows, "--budget", "calls=8"]
    first = run(*command)
    assert first.code == 0, first.err
    assert "2 of 2 problems (100%) solved on their examples" in first.out
    assert "100.0%" in first.out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["task"], summary["unfinished"]) == (1.0, 0)
    page = (out / "report.html").read_text()
    assert "add 1" in page
    assert "sk-" not in page
    programs = {"def f(x):\n    return x + 1", "def f(x):\n    return x + 2"}
    assert {json.loads(line)["answer"] for line in rows.read_text().splitlines()} == programs
    paid = len(server.paid)
    for left in (".run.json.lock", "traces/.00001.json.lock", "traces/.00001.json.new-0123abcd"):
        (out / left).touch()  # as a kill leaves it beside what is finished
    again = run(*command)
    assert (again.code, len(server.paid)) == (0, paid)
    assert "(0 answered by a model now)" in again.out
    assert [path.name for path in out.rglob(".*")] == []


def test_a_run_that_found_no_server_can_be_tried_again(problems: Path, tmp_path: Path) -> None:
    command = ["reason", problems, "--model", "http://127.0.0.1:9/v1#m", "-o", tmp_path / "run"]
    for _ in range(2):
        ran = run(*command)
        assert ran.code == 2
        assert "no server answers there" in ran.err


def test_a_server_that_dies_leaves_an_unfinished_run(problems: Path, tmp_path: Path) -> None:
    with fault_server(after=Reply(status=500)) as server:
        ran = run(
            "reason", problems, "-m", f"{server.url}#m", "-o", tmp_path / "run", "--timeout", "1", "--retries", "0"
        )
    assert ran.code == 1
    assert "2 of 2 problems (100%) unfinished" in ran.out
    assert "run the same command again" in ran.out


def test_the_local_engine_and_the_live_tree(bench: Bench, problems: Path, tmp_path: Path) -> None:
    ran = run(
        "reason", problems, "-m", f"{bench.pack}#sort", "--prompts", "induction", "-n", 16, "--budget", "calls=4",
        "--show", "-o", tmp_path / "run",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "could not be read" in ran.out  # an untrained micro model writes no program, and that is said
    assert "tokens each" in ran.out


def test_prompts_are_written_to_be_edited(tmp_path: Path) -> None:
    assert run("reason", "--write-prompts", tmp_path / "mine").code == 0
    assert (tmp_path / "mine" / "propose_program.jinja").is_file()
    assert "exists already" in refused("reason", "--write-prompts", tmp_path / "mine")


def test_generated_problems_are_problems(tmp_path: Path) -> None:
    ran = run("induction", tmp_path / "data", "-s", "rows=20", "-s", "tasks=2", "-s", "practice=1")
    assert ran.code == 0, ran.err
    assert "20 lines" in ran.out
    assert "exists already" in refused("induction", tmp_path / "data")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "matsr"], "did you mean 'matsir'"),
        (["-s", "patienc=3"], "did you mean 'patience'"),
        (["--budget", "calls"], "calls=64,tokens=20k"),
        (["--prompts", "generl"], "generl"),
        (["--agent", "critic"], "write ROLE=MODEL"),
        (["--agent", "critc=x"], "critc"),
        (["-m", "http://127.0.0.1:9/v1"], "name the model that the server is to use"),
        (["-m", "http://127.0.0.1:9/v1#m"], "no server answers"),
        (["--form", "words"], "form"),
    ],
)
def test_mistakes(problems: Path, tmp_path: Path, more: list[str], said: str) -> None:
    assert said in refused("reason", problems, "-m", "http://127.0.0.1:9/v1#m", "-o", tmp_path / "run", *more)
