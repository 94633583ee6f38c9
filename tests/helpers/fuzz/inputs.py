"""One valid file of each kind that a person writes, and two readers for each."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from helpers.fuzz.mutations import packed
from helpers.fuzz.oracle import Found, Kind
from skillweave.cli.prompts import read_prompts
from skillweave.config import Config, read_config
from skillweave.methods.e3tir.config import E3tirConfig
from skillweave.methods.training.settings import AnswerSettings
from skillweave.pipeline.config import WeaveConfig
from skillweave.skillzip import ZipConfig
from skillweave.tasks.builtin.tables import TablesSettings
from skillweave.tasks.expert_traces import read_traces
from skillweave.tasks.readers import read_rows
from skillweave.tasks.rows import entries_from
from skillweave.tasks.spec import FileSpec
from skillweave.tools.builtin.search import Search

ROWS = [
    {"prompt": "Sort: 3 1", "answer": "1 3", "level": 2, "tags": ["a", "é"]},
    {"prompt": 'Say "hi", then\nstop', "answer": "hi", "level": None, "tags": []},
    {"prompt": "2 + 2", "answer": "4", "level": 0, "tags": ["b"]},
]
TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {number} + 1?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "calculator", "arguments": {"expression": f"{number} + 1"}},
                    }
                ],
            },
            {"role": "tool", "content": str(number + 1)},
            {"role": "assistant", "content": str(number + 1)},
        ]
    }
    for number in (1, 20)
]
YAMLS: dict[str, tuple[type[Config], str]] = {
    "weave.yaml": (
        WeaveConfig,
        "name: demo\nbase: bundled:smollm2\ndtype: float32\nseed: 3\nskills:\n"
        "  sort:\n    task: &t {source: builtin, name: sort_numbers, config: {least: 2, most: 3}}\n"
        "    pack: packs/sort\n"
        "  again:\n    task: *t\n    pack: packs/again\nzip: {ratio: 1/16}\nscore: {max_new_tokens: 12}\n",
    ),
    "zip.yaml": (ZipConfig, "# sizes\nratio: 1/32\nsmoothing: 0.5\nseed: 1\n"),
    "e3tir.yaml": (
        E3tirConfig,
        "task: builtin:steps\nexperts: traces.jsonl\nwarm_up: {steps: 2, n: 4}\nrl:\n  steps: 0\n"
        "expert:\n  branch: anchors # or whole\n  lam: .5\nclip: 2e-1\n",
    ),
    "training.yaml": (AnswerSettings, "learning_rate: 1.0e-4\nbatch_size: 4\nsteps: 10\n"),
    "tables.yaml": (TablesSettings, "least: 3\nmost: 5\ncolumns: 2\nquestions: [sum, 'max']\n"),
    "task.yaml": (
        FileSpec,
        "source: file\npath: rows.jsonl\nverifier: regex\noptions:\n  pattern: '(?i)\\b{answer}\\b'\n"
        "columns: {prompt: question}\nsystem: |\n  Be brief.\n  Thanks.\nsplits: {train: 3, test: 1, calibration: 0}\n",
    ),
}


def input_kinds(folder: Path) -> list[Kind]:
    """One valid file of each kind in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "rows.jsonl.gz").write_bytes(packed(lines))
    flat = [{**row, "tags": " ".join(row["tags"])} for row in ROWS]  # type: ignore[arg-type]
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]), delimiter=mark)
            writer.writeheader()
            writer.writerows(flat)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    talks = "".join(json.dumps(row) + "\n" for row in TALKS)
    (folder / "traces.jsonl").write_text(talks)
    (folder / "corpus.jsonl").write_text('{"title": "Tea", "text": "Tea is hot."}\n{"text": "Ice is cold."}\n')
    (folder / "prompts.txt").write_text("One prompt\n\n  another: [x]\nthe last é", encoding="utf-8")
    asked = '{"prompt": "hi", "pack": "sort"}\n{"messages": [{"role": "user", "content": "ho"}]}\n'
    (folder / "prompts.jsonl").write_text(asked)
    for name, (_, text) in YAMLS.items():
        (folder / name).write_text(text)
    readers: dict[str, tuple[Callable[[Path], list[Any]], Callable[[Path], list[Any]]]] = {
        "rows.jsonl": (_rows, _plain_lines),
        "rows.json": (_rows, _plain_json),
        "rows.jsonl.gz": (_rows, _plain_lines),
        "rows.csv": (_rows, lambda path: _plain_table(path, ",")),
        "rows.tsv": (_rows, lambda path: _plain_table(path, "\t")),
        "rows.parquet": (_rows, lambda path: _told(pyarrow.parquet.read_table(path).to_pylist())),
        "traces.jsonl": (_traces, _plain_traces),
        "corpus.jsonl": (_corpus, _plain_corpus),
        "prompts.txt": (_asked, _plain_asked),
        "prompts.jsonl": (_asked, _plain_asked_rows),
    }
    kinds = [Kind(name, folder / name, _part(ours), _part(plain)) for name, (ours, plain) in readers.items()]
    for name, (config, _) in YAMLS.items():
        kinds.append(
            Kind(
                name,
                folder / name,
                lambda path, c=config: _settings(path, c),
                lambda path, c=config: _plain_yaml(path, c),
            )
        )
    return kinds


def _part(read: Callable[[Path], list[Any]]) -> Callable[[Path], Found]:
    return lambda path: {"rows": read(path)}


# -- rows of a task --------------------------------------------------------------------------------------------------


def _rows(path: Path) -> list[Any]:
    entries = entries_from(read_rows(path), "exact", {})
    return [[entry.prompt, entry.answer, entry.metadata.get("answers")] for entry in entries]


def _told(rows: list[Any]) -> list[Any]:
    """Prompts and answers of plain rows by our rules: a number is an answer in the form that JSON writes."""
    found = []
    for row in rows:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        distinct = list(dict.fromkeys(one if isinstance(one, str) else json.dumps(one) for one in answers))
        found.append([row["prompt"], distinct[0], distinct if len(distinct) > 1 else None])
    return found


def _text_of(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8-sig")


def _plain_lines(path: Path) -> list[Any]:
    return _told([json.loads(line) for line in _lines_of(path)])


def _lines_of(path: Path) -> list[str]:
    return [line for line in _text_of(path).replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]


def _plain_json(path: Path) -> list[Any]:
    text = _text_of(path)
    return _told(json.loads(text)) if text.lstrip().startswith("[") else _plain_lines(path)


def _plain_table(path: Path, mark: str) -> list[Any]:
    rows = list(csv.reader(io.StringIO(_text_of(path), newline=""), delimiter=mark))
    return _told([dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row])


# -- others ----------------------------------------------------------------------------------------------------------


def _traces(path: Path) -> list[Any]:
    return [_said(trace.messages) for trace in read_traces(path)]


def _plain_traces(path: Path) -> list[Any]:
    return [_said(json.loads(line)["messages"]) for line in _lines_of(path)]


def _said(messages: list[dict[str, Any]]) -> list[Any]:
    return [[message["role"], message.get("content") or ""] for message in messages]


def _corpus(path: Path) -> list[Any]:
    return list(Search.from_jsonl(path)._shown)


def _plain_corpus(path: Path) -> list[Any]:
    rows = [json.loads(line) for line in _lines_of(path)]
    return [
        ": ".join(" ".join(part.split()) for part in (row.get("title") or "", row["text"]) if part.split())
        for row in rows
    ]


def _asked(path: Path) -> list[Any]:
    return [[row.prompt, row.pack] for row in read_prompts(path)]


def _plain_asked(path: Path) -> list[Any]:
    return [[line, None] for line in _lines_of(path)]


def _plain_asked_rows(path: Path) -> list[Any]:
    rows = [json.loads(line) for line in _lines_of(path)]
    return [[row["prompt"] if "prompt" in row else row["messages"], row.get("pack")] for row in rows]


def _settings(path: Path, config: type[Config]) -> Found:
    return read_config(config, path).model_dump(mode="json")


def _plain_yaml(path: Path, config: type[Config]) -> Found:
    """The settings as PyYAML reads them, except that a date stays text, as it does in our reader."""
    plain = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_WithoutDates)
    return config.model_validate(plain or {}).model_dump(mode="json")


class _WithoutDates(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the parent class
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
