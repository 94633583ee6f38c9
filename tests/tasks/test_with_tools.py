"""Tasks with tools: answers against slow references, experts with real calls, and tools named in settings."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from statistics import fmean

import pytest
from pydantic import ValidationError

from skillweave.errors import UserError
from skillweave.tasks import Task, load_task
from skillweave.tasks.builtin import hops
from skillweave.tasks.expert_traces import scripted_traces
from skillweave.tasks.with_tools import AgentTask, ToolSettings, load_agent
from skillweave.tools.call import Call

FEW = {"train": 40, "calibration": 4, "test": 20}


def spec(name: str, **config) -> dict:
    return {"source": "builtin", "name": name, "splits": FEW, "config": config}


def asked(task: Task) -> list[tuple[str, str]]:
    return [(str(e.prompt), str(e.answer)) for split in FEW for e in task.split(split)]


@pytest.mark.parametrize("digits", [1, 3])
def test_an_expression_is_worth_what_python_says(digits: int) -> None:
    for prompt, answer in asked(load_task(spec("steps", style="expression", digits=digits, least=1, most=30))):
        assert re.fullmatch(r"[-+*()0-9]+", prompt)
        assert str(eval(prompt)) == answer


def test_a_story_is_worth_what_its_steps_come_to_and_stays_in_bounds() -> None:
    seen = set()
    for prompt, answer in asked(load_task(spec("steps", least=3, most=12, digits=1, largest=50))):
        start, *steps, last = prompt.split(". ")
        value = int(start.removeprefix("Start with "))
        for step in steps:
            number = int(step.split(" ")[-1])
            before, value = value, eval(f"{value} {'+-*'['ASM'.index(step[0])]} {number}")
            assert 0 <= value <= 50
            assert step[0] != "M" or (before > 0 and number > 1)
        assert last == "What is it now?"
        assert answer == str(value)
        seen.add(len(steps))
    assert seen == set(range(3, 13))


def test_bounds_that_leave_no_way_on_are_refused() -> None:
    with pytest.raises(UserError, match=r"largest \(150\) must be at least 200 for 2 digits"):
        load_task(spec("steps", largest=150))
    with pytest.raises(UserError, match="8 hops need at least 10 people, found 9"):
        load_task(spec("hops", people=9, most=8))


def facts_of(settings: hops.HopsSettings) -> dict[tuple[str, str], str]:
    """The facts in the documents; each fact must be in exactly one document."""
    form = r"(\w+) (\w+) (\w+)" if settings.style == "short" else r"The (\w+) of (\w+ \w+) is (\w+(?: \w+)?)\."
    facts: dict[tuple[str, str], str] = {}
    for document in hops.documents(settings):
        found = re.fullmatch(form, document["text"])
        assert found is not None
        who, relation = found.group(1, 2) if settings.style == "short" else found.group(2, 1)
        assert document["title"] == who
        assert (who, relation) not in facts
        facts[who, relation] = found[3]
    return facts


@pytest.mark.parametrize("config", [{}, {"style": "short"}, {"style": "short", "places": 0, "least": 1, "most": 5}])
def test_the_answer_of_a_hop_question_is_found_by_walking_the_documents(config: dict) -> None:
    facts = facts_of(hops.HopsSettings(**config))
    for prompt, answer in asked(load_task(spec("hops", **config))):
        if "style" in config:
            assert re.fullmatch(r"[a-z]{3}( [a-z]{2})+\?", prompt)
            at, *chain = prompt[:-1].split(" ")
        else:
            question = prompt.removesuffix("? Answer with the name only.")
            *chain, at = re.split(r" of (?:the )?", question.split(" is the ")[1])
            assert question.startswith("What") == (chain[0] == "birthplace")
            chain.reverse()
        met = [at]
        for relation in chain:
            met.append(facts[met[-1], relation])
        assert met[-1] == answer
        assert len(set(met)) == len(met)


def test_a_world_is_whole_and_everybody_is_equally_often_the_other() -> None:
    settings = hops.HopsSettings(people=20, places=3, relations=2)
    world, facts = hops.world_of(settings), facts_of(settings)
    assert len(facts) == 20 * 3
    for relation in world.relations:
        assert sorted(facts[who, relation] for who in world.people) == sorted(world.people)
        assert all(facts[who, relation] != who for who in world.people)
    assert len({facts[who, "birthplace"] for who in world.people}) <= 3
    assert len({part for who in world.people for part in who.split()}) == 40


@pytest.mark.parametrize("style", ["question", "short"])
def test_worlds_share_no_name(style: str) -> None:
    people = [set(hops.world_of(hops.HopsSettings(world=world, style=style)).people) for world in range(20)]
    assert len(set.union(*people)) == 20 * 60


@pytest.mark.parametrize("config", [{}, {"style": "short", "people": 10, "places": 0}])
def test_the_test_starts_where_training_never_does(config: dict) -> None:
    task = load_task(spec("hops", **config))
    people = hops.world_of(hops.HopsSettings(**config)).people
    starts = {
        split: {who for e in task.split(split) for who in people if re.search(rf"\b{who}\b", str(e.prompt))}
        for split in FEW
    }
    assert starts["test"]
    assert not starts["test"] & (starts["train"] | starts["calibration"])
    more = load_task({**spec("hops", **config), "splits": {**FEW, "train": 60}})
    assert more.split("test") == task.split("test")
    assert more.split("calibration") == task.split("calibration")


@pytest.mark.parametrize("config", [{}, {"least": 2, "most": 30, "columns": 6, "largest": 10**6}])
def test_the_answer_on_a_table_is_what_csv_and_statistics_say(config: dict) -> None:
    kinds = set()
    for prompt, answer in asked(load_task(spec("tables", **config))):
        table, question = prompt.split("\n\n")
        rows = list(csv.DictReader(table.split("\n")))
        column = next(name for name in list(rows[0])[2:] if re.search(rf"\b{name}\b", question))
        values = [int(row[column]) for row in rows]
        words = question.rstrip("?").split(" ")
        if "sum" in question:
            wanted = float(sum(values))
        elif "largest" in question:
            wanted = float(max(values))
        elif "mean" in question:
            wanted = fmean(values)
            assert abs(float(answer) - wanted) < 0.05
            wanted = float(answer)
        elif "above" in question:
            wanted = float(sum(value > int(words[-1]) for value in values))
        else:
            one, other = words[words.index("team") + 1], words[-1]
            wanted = 0.0
            for row, value in zip(rows, values, strict=True):
                wanted += value * ((row["team"] == one) - (row["team"] == other))
        assert float(answer) == wanted
        kinds.add(words[3])
    assert len(kinds) == 5


CONFIGS = [
    ("steps", {}),
    ("steps", {"style": "expression", "least": 1, "most": 12}),
    ("steps", {"digits": 6, "largest": 10**12, "least": 8, "most": 8}),
    ("hops", {}),
    ("hops", {"style": "short"}),
    ("hops", {"style": "short", "people": 500, "places": 100, "relations": 8, "world": 3}),
    ("tables", {}),
    ("tables", {"least": 30, "most": 30, "columns": 6}),
]


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_the_scripted_expert_calls_once_a_step_and_is_right(name: str, config: dict) -> None:
    agent = load_agent(spec(name, **config))
    entries = [entry for split in FEW for entry in agent.task.split(split)]
    for entry, trace in zip(entries, scripted_traces(agent, entries), strict=True):
        assert trace.id == entry.id
        assert trace.messages[0] == {"role": "user", "content": entry.prompt}
        *way, answer = trace.messages[1:]
        assert answer["role"] == "assistant"
        assert answer["content"] == entry.answer
        assert agent.task.score(answer["content"], entry) == 1
        assert [message["role"] for message in way] == ["assistant", "tool"] * (len(way) // 2)
        session = agent.toolbox.open()
        for told, result in zip(way[::2], way[1::2], strict=True):
            function = told["tool_calls"][0]["function"]
            outcome = session.call(Call(function["name"], function["arguments"]))
            assert (outcome.fault, outcome.text) == (None, result["content"])
        assert len(way) // 2 == steps_in(name, config, str(entry.prompt))
    agent.toolbox.close()


def steps_in(name: str, config: dict, prompt: str) -> int:
    if name == "tables":
        return 1
    if name == "hops":
        return len(prompt.split(" ")) - 1 if "style" in config else prompt.count(" of ")
    return len(re.findall(r"[-+*]", prompt)) if "style" in config else prompt.count(".") - 1


def test_each_fact_of_a_short_world_is_the_best_find_of_its_question() -> None:
    agent = load_agent(spec("hops", style="short", world=7))
    session = agent.toolbox.open()
    for (who, relation), other in facts_of(hops.HopsSettings(style="short", world=7)).items():
        found = session.call(Call("search", {"query": f"{who} {relation}"})).text
        assert found.endswith(f"{who} {relation} {other}")
        assert "\n" not in found


def test_a_long_world_gives_three_documents_or_as_many_as_set() -> None:
    for k, wanted in ((None, 3), (1, 1), (5, 5)):
        session = load_agent(spec("hops", k=k)).toolbox.open()
        who = hops.world_of(hops.HopsSettings()).people[0]
        assert session.call(Call("search", {"query": f"rival of {who}"})).text.count(" is ") == wanted


def rows_task(folder: Path) -> dict:
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = {"test": 3, "calibration": 2}
    return {"source": "jsonl", "path": str(folder / "rows.jsonl"), "verifier": "numeric", "splits": splits}


def with_tools(folder: Path, **settings) -> AgentTask:
    return load_agent(rows_task(folder), ToolSettings(**settings))


def test_rows_of_ones_own_take_the_tools_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        '{"title": "Ann", "text": "Ann lives in Ulm."}\n{"title": "B", "text": "b"}\n'
    )
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n\n"
        "@dataclass\nclass Kept:\n    value: int = 2\n\n"
        'def double(number: int) -> int:\n    """Twice a number.\n\n    Args:\n        number: any.\n    """\n'
        "    return Kept().value * number\n\n"
        'def thrice(number: int) -> int:\n    """Three times a number.\n\n    Args:\n        number: any.\n    """\n'
        "    return 3 * number\n"
    )
    mine = f"{tmp_path / 'mine.py'}:"
    agent = with_tools(
        tmp_path,
        names=("calculator", "python", "search"),
        corpus=tmp_path / "corpus.jsonl",
        functions=(f"{mine}double", f"{mine}thrice"),
    )
    assert agent.solve is None
    assert agent.toolbox.names == ["calculator", "python", "search", "double", "thrice"]
    session = agent.toolbox.open()
    assert session.call(Call("double", {"number": 4})).text == "8"
    assert session.call(Call("thrice", {"number": 4})).text == "12"
    assert session.call(Call("calculator", {"expression": "2*3"})).text == "6"
    assert "Ulm" in session.call(Call("search", {"query": "Ann"})).text
    session.call(Call("python", {"code": "x = 5"}))
    assert session.call(Call("python", {"code": "print(x)"})).text.strip() == "5"
    with pytest.raises(UserError, match="no scripted expert"):
        scripted_traces(agent, agent.task.split("test"))
    agent.toolbox.close()


def test_the_timeout_that_is_set_is_kept(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        'import time\n\ndef nap() -> str:\n    """Sleep."""\n    time.sleep(600)\n    return "done"\n'
    )
    agent = with_tools(tmp_path, functions=(f"{tmp_path / 'slow.py'}:nap",), timeout=0.1)
    assert agent.toolbox.open().call(Call("nap", {})).fault == "timeout"


def test_a_function_of_an_installed_module_and_another_builtin_task_work(tmp_path: Path) -> None:
    settings = ToolSettings(functions=("skillweave.tools.builtin.calculator:calculator",))
    agent = load_agent({**spec("micro_add"), "config": {}}, settings)
    assert agent.toolbox.names == ["calculator"]


MISTAKES = [
    ({}, "brings no tools: name some"),
    ({"names": ("calculater",)}, "did you mean 'calculator'"),
    ({"names": ("calculator", "calculator")}, "calculator"),
    ({"names": ("search",)}, "corpus"),
    ({"names": ("calculator",), "corpus": Path("x.jsonl")}, "search"),
    ({"names": ("search",), "corpus": Path("nowhere.jsonl")}, "nowhere.jsonl does not exist"),
    ({"functions": ("double",)}, "write package.module:function"),
    ({"functions": ("nowhere.py:double",)}, "nowhere.py does not exist"),
    ({"functions": ("no.such.module:double",)}, "could not import no.such.module"),
    ({"functions": ("math:squareroot",)}, "math has no function 'squareroot'"),
    ({"functions": ("math:pi",)}, "math has no function 'pi'"),
]


@pytest.mark.parametrize(("settings", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_mistakes_in_the_tools_are_named(tmp_path: Path, settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        with_tools(tmp_path, **settings)


def test_a_file_that_fails_says_why_and_may_be_mended(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    function = f"{tmp_path / 'broken.py'}:tool"
    with pytest.raises(UserError, match="ZeroDivisionError: division by zero"):
        with_tools(tmp_path, functions=(function,))
    (tmp_path / "broken.py").write_text('def tool() -> str:\n    """Say it."""\n    return "mended"\n')
    assert with_tools(tmp_path, functions=(function,)).toolbox.open().call(Call("tool", {})).text == "mended"


def test_a_file_that_ends_the_program_says_so_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match=r"could not import .*ends\.py .*SystemExit: 3"):
        with_tools(tmp_path, functions=(f"{tmp_path / 'ends.py'}:tool",))


@pytest.mark.parametrize("timeout", [0, 3601, 1e20, float("inf")])
def test_a_timeout_is_more_than_nothing_and_at_most_an_hour(timeout: float) -> None:
    with pytest.raises(ValidationError, match="timeout"):
        ToolSettings(timeout=timeout)
    assert ToolSettings(timeout=3600).timeout == 3600


def test_a_family_brings_its_own_tools_and_takes_no_others() -> None:
    assert load_agent("builtin:tables").toolbox.names == ["python"]
    with pytest.raises(UserError, match="builtin:steps brings its own tools"):
        load_agent("builtin:steps", ToolSettings(names=("search",)))
