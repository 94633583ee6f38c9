"""``generate`` and ``eval`` keep their answers while they write them: a killed command goes on where it was."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

from helpers.terminal import Bench, made, refused
from skillweave.engine import open_engine
from skillweave.weave.journal import ReplyJournal, journal_path

PROMPTS = [f"{'ab' * count} {count}?" for count in range(1, 8)]
DRAWN = ["--temperature", "1.3", "--seed", "5", "--batch-size", "2", "-n", "5"]


class Killed(BaseException):
    """What stops a command between two batches."""


@pytest.fixture
def dies(monkeypatch):
    """A command that dies after so many batches have been kept; and the batches that are written, by their sizes."""
    sizes: list[int] = []
    generating = importlib.import_module("skillweave.base.generate")  # the package has a function of this name
    one_batch = generating._one_batch
    add = ReplyJournal.add

    def counted(model, decodings, *rest, **options):
        sizes.append(len(decodings))
        return one_batch(model, decodings, *rest, **options)

    monkeypatch.setattr(generating, "_one_batch", counted)

    def after(batches: int, *command: str | Path) -> None:
        left = batches

        def dying(journal, replies):
            nonlocal left
            add(journal, replies)
            left -= 1
            if not left:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(ReplyJournal, "add", dying)
            with pytest.raises(Killed):
                made(*command)

    return after, sizes


def asked(folder: Path, prompts: list[str] = PROMPTS) -> Path:
    (folder / "asked.txt").write_text("\n".join(prompts) + "\n")
    return folder / "asked.txt"


@pytest.mark.parametrize("torn", [b"", b'{"part": 0, "number": 1, "rep', b"\xff\n", b'{"part": 0}\n'])
def test_generate_goes_on_with_the_batches_that_are_left(bench: Bench, tmp_path: Path, dies, torn: bytes) -> None:
    die, sizes = dies
    command = ("generate", bench.base, "--file", asked(tmp_path), *DRAWN, "-o")
    made(*command, tmp_path / "whole.jsonl")
    whole, out = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "answers.jsonl"
    die(2, *command, out)
    assert not out.exists()
    head, *lines = journal_path(out).read_bytes().splitlines(keepends=True)
    damaged = torn if torn.endswith(b"\n") else b""  # a whole line that is damaged costs no other one
    journal_path(out).write_bytes(b"".join([head, damaged, *lines, torn]))
    sizes.clear()
    assert "4 answers are in" in made(*command, out).err
    assert sizes == [2, 1]
    assert out.read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "asked.txt", "whole.jsonl"]


@pytest.mark.parametrize("change", [{"DRAWN": "6"}, {"prompt": "zz?"}, {"target": "pack"}])
def test_answers_of_other_prompts_settings_or_weights_are_not_kept(
    bench: Bench, tmp_path: Path, dies, change: dict[str, str]
) -> None:
    die, sizes = dies
    out = tmp_path / "answers.jsonl"
    die(2, "generate", bench.base, "--file", asked(tmp_path), *DRAWN, "-o", out)
    sizes.clear()
    file = asked(tmp_path, [*PROMPTS[:-1], change["prompt"]]) if "prompt" in change else asked(tmp_path)
    target = bench.delta if "target" in change else bench.base
    said = made("generate", target, "--file", file, *DRAWN[:-1], change.get("DRAWN", "5"), "-o", out).err
    assert "4 answers that are not kept" in said
    assert sum(sizes) == len(PROMPTS)
    assert not journal_path(out).exists()


def test_a_config_that_uses_the_weights_otherwise_makes_another_engine(micro_base: Path) -> None:
    engine = open_engine(str(micro_base))
    before = engine.key
    assert open_engine(str(micro_base)).key == before
    engine.weave.base.model.config.rms_norm_eps *= 2
    assert engine.key != before


@pytest.mark.parametrize("written", [0, -1])
def test_a_journal_without_a_whole_first_line_is_begun_anew(bench: Bench, tmp_path: Path, dies, written: int) -> None:
    die, _ = dies
    out = tmp_path / f"{'a' * 244}.jsonl"  # with .partial behind it, this is more than a name may have
    command = ("generate", bench.base, "--file", asked(tmp_path), *DRAWN, "-o", out)
    die(1, *command)
    journal_path(out).write_bytes(journal_path(out).read_bytes().splitlines(keepends=True)[0][:written])
    die(2, *command)
    assert "4 answers are in" in made(*command).err


def test_a_file_of_somebody_else_is_not_replaced(bench: Bench, tmp_path: Path) -> None:
    out, file = tmp_path / "answers.jsonl", asked(tmp_path)
    journal_path(out).write_text('{"mine": 1}\n')
    said = refused("generate", bench.base, "--file", file, "-n", "3", "-o", out)
    assert "is not a file of answers" in " ".join(said.split())
    assert journal_path(out).read_text() == '{"mine": 1}\n'
    journal_path(out).unlink()
    (tmp_path / "mine").write_text("")
    journal_path(out).symlink_to(tmp_path / "mine")
    said = refused("generate", bench.base, "--file", file, "-n", "3", "-o", out)
    assert "is not a file of answers" in " ".join(said.split())
    assert (tmp_path / "mine").read_text() == ""
    assert not out.exists()


def test_conversations_with_tools_are_kept_when_they_end(bench: Bench, tmp_path: Path, dies) -> None:
    die, _ = dies
    settings = "tools: {names: [calculator]}\ninstruction: ''\nmax_tokens: 12\nbatch_size: 2\n"
    (tmp_path / "tools.yaml").write_text(settings)
    command = ("generate", bench.base, "--file", asked(tmp_path), "--tools", tmp_path / "tools.yaml", "-o")
    made(*command, tmp_path / "whole.jsonl")
    out = tmp_path / "answers.jsonl"
    die(3, *command, out)  # in the second batch of their first turns
    kept = journal_path(out).read_text().splitlines()
    assert len(kept) == 1 + 3
    assert json.loads(kept[1])["reply"]["conversation"] is not None
    made(*command, out)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_eval_goes_on_inside_the_second_task(bench: Bench, tmp_path: Path, dies) -> None:
    die, sizes = dies
    other = tmp_path / "other.yaml"
    other.write_text(bench.task.read_text())
    command = ("eval", bench.base, "-t", bench.task, "-t", other, "--limit", "5", *DRAWN, "--samples", "2", "-o")
    made(*command, tmp_path / "whole.json")
    out = tmp_path / "score.json"
    die(7, *command, out)
    sizes.clear()
    assert "14 answers are in" in made(*command, out).err
    assert sizes == [2, 2, 2]
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not journal_path(out).exists()


def test_the_answers_are_kept_while_a_verifier_is_fixed(bench: Bench, tmp_path: Path, dies) -> None:
    _, sizes = dies
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt, "answer": "a"}) + "\n" for prompt in PROMPTS))
    out, task = tmp_path / "score.json", tmp_path / "task.yaml"
    command = ("eval", bench.base, "-t", task, *DRAWN, "-o", out)

    def judge(score: str) -> None:  # each in a file of its own: the test's process has read the other one
        own = tmp_path / f"judge_{score}.py"
        own.write_text(f"def check(answer, gold, options):\n    return {score}\n")
        splits = "splits: {train: 1, calibration: 1, test: 5}"
        task.write_text(f"source: file\npath: {rows}\n{splits}\nverifier: {own}:check\n")

    judge("100")
    assert "from 0 to 1" in " ".join(refused(*command).split())
    sizes.clear()
    judge("1")
    assert "5 answers are in" in made(*command).err
    assert not sizes
    assert [one["score"] for one in json.loads(out.read_bytes())["answers"]] == [1.0] * 5
