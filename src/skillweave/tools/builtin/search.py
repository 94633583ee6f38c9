"""Search in a corpus of the user's own with BM25, in memory, without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillweave.errors import UserError, shown_value
from skillweave.files.read import read_json_lines

_WORD = r"(?u)\b\w+\b"
"""Every word counts. By default bm25s ignores single letters and digits and frequent English words, which may be names
in a user's corpus. Words that are in most documents have almost no weight anyway."""


class Search:
    """A corpus that can be searched.

    - ``documents``: mappings with a ``text`` and optionally a ``title``
    - ``k``: most documents that a search returns; documents that match equally well are in the order of the corpus

    Raises :class:`UserError` if the corpus holds no word.
    """

    def __init__(self, documents: Sequence[Mapping[str, str]], k: int = 3) -> None:
        import bm25s  # late: it is slow to import, and only this tool needs it

        if k < 1:
            raise UserError(f"k is {k}: a search must give at least 1 document")
        self.k = k
        self._shown = [_shown(document) for document in documents]
        words = bm25s.tokenize(
            [f"{document.get('title') or ''} {document['text']}" for document in documents],
            token_pattern=_WORD,
            stopwords=None,
            return_ids=False,
            show_progress=False,
        )
        if not any(words):
            raise UserError("the corpus has no document with a word to search for: give it at least one")
        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25(backend="numpy")
        self._index.index(words, show_progress=False)

    @classmethod
    def from_jsonl(cls, path: str | Path, k: int = 3) -> Search:
        """The corpus in a JSONL file of rows ``{"title": ..., "text": ...}``; the title is optional.

        Raises :class:`UserError` that names the file and the line of a wrong row.
        """
        return cls(_read(Path(path)), k)

    def search(self, query: str) -> str:
        """Find the documents that fit the query best.

        Args:
            query: words to look for
        """
        (words,) = self._tokenize(query, token_pattern=_WORD, stopwords=None, return_ids=False, show_progress=False)
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return "nothing found"
        scores = self._index.get_scores(known)
        best = [int(index) for index in np.argsort(-scores, kind="stable")[: self.k] if scores[index] > 0]
        return "\n".join(self._shown[index] for index in best) or "nothing found"


def _shown(document: Mapping[str, str]) -> str:
    """A document on one line."""
    text = " ".join(document["text"].split())
    title = " ".join((document.get("title") or "").split())
    return f"{title}: {text}" if title else text


def _read(path: Path) -> list[dict[str, str]]:
    rows = read_json_lines(path, "a JSONL file with a corpus")
    documents = [_document(row, where) for where, row in rows]
    if not documents:
        raise UserError(f"{path} is empty: write one document in each line")
    return documents


def _document(row: Any, where: str) -> dict[str, str]:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise UserError(f'{where}: expected {{"title": ..., "text": ...}} with a text, found {shown_value(row)}')
    if not isinstance(row.get("title", ""), str | None):
        raise UserError(f"{where}: 'title' must be a text, found {row['title']!r:.60}")
    return {"title": row.get("title") or "", "text": row["text"]}
