"""Search against BM25 written out, and corpora with mistakes in them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from random import Random

import pytest

from skillweave.errors import UserError
from skillweave.tools import Call, Toolbox
from skillweave.tools.builtin import TOOLS, Search, add_tools

DOCUMENTS = [
    {"title": "Ada", "text": "The mother of Ada\nis Bea."},
    {"title": "Bea", "text": "The mother of Bea is Cleo."},
    {"text": "Room 7 has no title."},
]


def test_the_best_documents_come_as_lines() -> None:
    search = Search(DOCUMENTS, k=2)
    assert search.search("mother of Ada") == "Ada: The mother of Ada is Bea.\nBea: The mother of Bea is Cleo."
    assert search.search("7") == "Room 7 has no title."
    assert search.search("CLEO") == "Bea: The mother of Bea is Cleo."


@pytest.mark.parametrize("query", ["", "zebra", "?!", " \n", "é"])
def test_nothing_found_says_so(query: str) -> None:
    assert Search(DOCUMENTS).search(query) == "nothing found"


def test_words_that_no_document_has_do_not_disturb() -> None:
    assert Search(DOCUMENTS, k=1).search("zebra cleo zebra") == Search(DOCUMENTS, k=1).search("cleo")


def test_equal_documents_stay_in_the_order_of_the_corpus() -> None:
    rows = [{"title": str(n), "text": "same words"} for n in range(50)]
    assert Search(rows, k=3).search("words") == "0: same words\n1: same words\n2: same words"


def slow_bm25(texts: list[str], query: str) -> list[float]:
    """Lucene's BM25 (Kamphuis et al. 2020, table 1), k1 = 1.5, b = 0.75, word by word."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for document in words:
        score = 0.0
        for term in dict.fromkeys(re.findall(r"\w+", query.lower())):
            holders = sum(term in other for other in words)
            count = document.count(term)
            idf = math.log(1 + (len(words) - holders + 0.5) / (holders + 0.5))
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


def test_the_order_is_that_of_bm25() -> None:
    rng = Random(1)
    rows = [{"text": " ".join(rng.choice("abcdefghijklmn") for _ in range(rng.randint(3, 20)))} for _ in range(60)]
    search = Search(rows, k=5)
    for _ in range(20):
        query = " ".join(rng.sample("abcdefghijklmn", 3))
        scores = slow_bm25([row["text"] for row in rows], query)
        found = search.search(query).split("\n")
        by_text = {row["text"]: score for row, score in zip(rows, scores, strict=True)}
        assert [by_text[text] for text in found] == pytest.approx(sorted(scores, reverse=True)[:5], rel=1e-5)


def test_more_documents_asked_for_than_there_are() -> None:
    assert Search(DOCUMENTS, k=100).search("mother").count("\n") == 1
    assert Search([{"text": "alone"}], k=3).search("alone") == "alone"


def test_a_corpus_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(map(json.dumps, DOCUMENTS)) + "\n\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert Search.from_jsonl(file).search("room") == "Room 7 has no title."
    assert capfd.readouterr() == ("", "")  # no progress bar
    assert list(tmp_path.iterdir()) == [file]  # and no file


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected"),
        ("{}", "expected"),
        ('{"title": "a"}', "expected"),
        ('{"text": 3}', "expected"),
        ('{"text": "  "}', "expected"),
        ('{"title": 3, "text": "a"}', "'title' must be a text"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=rf"corpus\.jsonl, line 3: {said}"):
        Search.from_jsonl(file)


def test_a_title_may_be_null(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"title": null, "text": "good"}')
    assert Search.from_jsonl(file).search("good") == "good"


def test_files_that_are_no_corpus(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is empty"):
        Search.from_jsonl(empty)
    with pytest.raises(UserError, match="not UTF-8"):
        Search.from_jsonl(binary)
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"does not exist|is a folder"):
            Search.from_jsonl(path)


@pytest.mark.parametrize("documents", [[], [{"text": "?!"}]])
def test_a_corpus_without_a_word_is_refused(documents: list[dict[str, str]]) -> None:
    with pytest.raises(UserError, match="no document with a word"):
        Search(documents)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="k is 0"):
        Search(DOCUMENTS, k=0)


def test_the_built_in_tools_by_name(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "good"}')
    with Toolbox() as box:
        add_tools(box, TOOLS, file)
        assert box.names == ["calculator", "python", "search"] == list(TOOLS)
        session = box.open()
        assert session.call(Call("search", {"query": "good"})).text == "good"
        assert session.call(Call("calculator", {"expression": "6*7"})).text == "42"
        assert session.call(Call("python", {"code": "6*7"})).text == "42"
    with pytest.raises(UserError, match="'search' needs a corpus"):
        add_tools(Toolbox(), ["search"])
    with pytest.raises(UserError, match="did you mean 'calculator'"):
        add_tools(Toolbox(), ["calculater"])
