"""A task: prompts with a verifier, cut into train, calibration and test splits that share no prompt."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from skillweave.base.chat import Answer, Prompt, as_messages, tools_of
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import digest
from skillweave.tasks.spec import AnySpec, Splits
from skillweave.tasks.verifiers import own_digests

SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True)
class Entry:
    """One example of a task.

    * ``id``: unique within the task: the :func:`row_id` of a row, or the :func:`prompt_id` of a generator's prompt
    * ``answer``: the gold answer that is learnt: a text, or the assistant's message if it calls tools or shows its
      reasoning; None if only a verifier can tell a right answer
    * ``metadata``: may have ``answers`` (all that count as right), ``rejected`` (a worse answer), ``cases`` (for the
      verifier ``code``) and ``where`` (the place of the row)
    """

    id: str
    prompt: Prompt
    answer: Answer | None
    metadata: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def prompt_id(self) -> str:
        """The :func:`prompt_id` of its prompt."""
        return prompt_id(self.prompt)

    @cached_property
    def near_id(self) -> str:
        """The :func:`near_id` of its prompt."""
        return near_id(self.prompt)

    @property
    def accepted(self) -> list[Answer]:
        """All answers that count as right; empty if only a verifier can tell."""
        return self.metadata.get("answers") or ([] if self.answer is None else [self.answer])


Scorer = Callable[[str, Entry], float]
"""A function of a model's answer and its entry that returns a score in [0, 1]. It never raises for any answer."""


@dataclass(frozen=True)
class Task:
    """Named splits of entries, and a function that scores answers to them.

    * ``rows``: the number of rows in the file, 0 for a generator
    * ``duplicates``: rows that were dropped because another row is equal in everything that is learnt and judged, or
      prompts that a generator drew again

    Raises :class:`UserError` if two splits share a prompt or all splits are empty.
    """

    name: str
    splits: Mapping[str, list[Entry]] = field(repr=False)
    scorer: Scorer
    spec: AnySpec
    duplicates: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        if not any(self.splits.values()):
            raise UserError(f"task '{self.name}' is empty: it needs at least one example")
        check_disjoint({name: self.split(name) for name, size in self.sizes.items() if size}, self.name)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of entries of each split."""
        return {name: len(self.splits.get(name, [])) for name in SPLITS}

    def split(self, name: str) -> list[Entry]:
        """The entries of ``train``, ``calibration`` or ``test``. Raises UserError if the split is empty or unknown."""
        if name not in SPLITS:
            raise UserError(f"task '{self.name}' has no split '{name}'; {nearest(name, SPLITS)}")
        entries = self.splits.get(name, [])
        if not entries:
            raise UserError(f"task '{self.name}' holds no {name} examples: set splits.{name} to at least 1")
        return entries

    def distinct(self, name: str) -> list[Entry]:
        """The entries of a split on which a model is scored: each prompt once, even if several rows have it."""
        return one_each_prompt(self.split(name))

    @property
    def notes(self) -> list[str]:
        """Notes on rows of a file that were dropped, changed or look wrong, one line each."""
        return _notes(self) if self.rows else []

    @property
    def key(self) -> str:
        """A digest of the prompts, the answers and the settings; the place of a row does not change it.

        If the verifier is the user's own, its file is part of the digest.
        """
        content = {
            name: [
                [entry.id, entry.prompt, entry.answer, *(entry.metadata.get(key) for key in _JUDGED)]
                for entry in entries
            ]
            for name, entries in self.splits.items()
        }
        spec = self.spec.model_dump(mode="json")
        own = own_digests(spec["verifier"], spec["options"]) if "verifier" in spec else []
        return digest([spec, content, *own])

    def pairs(self, name: str) -> list[tuple[Prompt, Any]]:
        """Prompts with their gold answers, for training and calibration. Raises UserError if an answer is missing."""
        pairs = [(entry.prompt, entry.answer) for entry in self.split(name) if entry.answer is not None]
        missing = len(self.split(name)) - len(pairs)
        if missing:
            raise UserError(
                f"task '{self.name}': {missing} {name} examples have no gold answer to learn from; "
                "add an 'answer' to each row, or use a method that learns from the verifier alone"
            )
        return pairs

    def examples(self, splits: Sequence[str], most: int) -> list[tuple[Prompt, Any]]:
        """At most ``most`` prompts of the splits, one split after the other, each with its gold answer or None.

        A split that the task does not have is passed over.
        """
        entries = [entry for name in splits for entry in self.splits.get(name, [])]
        return [(entry.prompt, entry.answer) for entry in entries[:most]]

    def score(self, answer: str | None, entry: Entry) -> float:
        """The verifier's score of a model's answer, in [0, 1]: 1 is right; None (no answer) scores 0.

        It never raises for any answer.
        """
        return 0.0 if answer is None else self.scorer(answer, entry)


_JUDGED = ("cases", "answers", "rejected")
"""The keys of an entry's metadata that are learnt from or judged by."""


def normal_text(text: str) -> str:
    """The text with composed Unicode (NFC), folded case and collapsed white space; near-copies become equal."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def prompt_id(prompt: Prompt) -> str:
    """16 hex digits for a prompt, from its roles, the text of each message (in NFC), its calls and its tools."""
    return _prompt_digest(prompt, lambda text: unicodedata.normalize("NFC", text))


def near_id(prompt: Prompt) -> str:
    """16 hex digits for a prompt, equal for prompts that differ only in case, white space or Unicode composition."""
    return _prompt_digest(prompt, normal_text)


def _prompt_digest(prompt: Prompt, text: Callable[[str], str]) -> str:
    messages = [
        [message["role"], text(message["content"]), *([calls] if (calls := message.get("tool_calls")) else [])]
        for message in as_messages(prompt)
    ]
    tools = tools_of(prompt)
    return digest(messages if not tools else [messages, tools])


def row_id(prompt: Prompt, answer: Answer | None, metadata: Mapping[str, Any]) -> str:
    """16 hex digits for everything in a row that is learnt from or judged by."""
    return digest([prompt_id(prompt), answer, *(metadata.get(key) for key in _JUDGED)])


def one_each_prompt(entries: Iterable[Entry]) -> list[Entry]:
    """The first entry of each prompt, in order."""
    first: dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry.prompt_id, entry)
    return list(first.values())


def check_disjoint(splits: Mapping[str, Sequence[Entry]], task: str) -> None:
    """Raise :class:`UserError` if two splits share a prompt; the message names one, with its place if it has one."""
    for (first, entries), (second, others) in combinations(splits.items(), 2):
        known = {entry.prompt_id: entry for entry in entries}
        shared = one_each_prompt(entry for entry in others if entry.prompt_id in known)
        if shared:
            entry, other = known[shared[0].prompt_id], shared[0]
            places = f"{entry.metadata.get('where', first)} and {other.metadata.get('where', second)}"
            raise UserError(
                f"task '{task}': {len(shared)} of the {second} prompts stand in {first} too, so a score would be "
                f"partly memory. The first: {as_messages(other.prompt)[-1]['content'][:60]!r} ({places}). "
                "Remove them from one of the two."
            )


def near_copies(splits: Mapping[str, Sequence[Entry]]) -> list[tuple[str, str, int, Entry]]:
    """The pairs of splits that share prompts up to case and white space.

    For each pair: both names, how many prompts of the second split are in the first, and the first such entry.
    """
    pairs = []
    near = {name: {entry.near_id for entry in entries} for name, entries in splits.items()}
    for first, second in combinations(splits, 2):
        shared = near[first] & near[second]
        if shared:
            copies = one_each_prompt(entry for entry in splits[second] if entry.near_id in shared)
            pairs.append((first, second, len(copies), copies[0]))
    return pairs


def drop_duplicates(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """The first entry of each id, in order, and how many entries were dropped."""
    first: dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry.id, entry)
    return list(first.values()), len(entries) - len(first)


def share_answers(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, each of which accepts the answers of all entries with the same prompt."""
    accepted: dict[str, list[Answer]] = {}
    for entry in entries:
        answers = accepted.setdefault(entry.prompt_id, [])
        answers.extend(answer for answer in entry.accepted if answer not in answers)
    return [
        entry
        if entry.accepted == (answers := accepted[entry.prompt_id])
        else replace(entry, metadata={**entry.metadata, "answers": answers})
        for entry in entries
    ]


def cut(entries: Sequence[Entry], splits: Splits, task: str) -> dict[str, list[Entry]]:
    """The splits of a file. The prompts are ordered by a hash: test comes first, then calibration, then train.

    ``splits`` counts prompts; all entries of a prompt stay together. The same rows in any order give the same splits.
    New rows in a file may move others to the next split; to prevent that, use one file for each split. Raises
    :class:`UserError` if there are too few prompts.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.id):
        groups.setdefault(entry.prompt_id, []).append(entry)
    need = splits.test + splits.calibration + (1 if splits.train is None else splits.train)
    if len(groups) < need:
        raise UserError(
            f"task '{task}' has {len(groups)} distinct prompts; splits ask for {splits.test} test + "
            f"{splits.calibration} calibration + {splits.train or 'at least 1'} train. "
            "Add examples or set smaller splits, for example splits: {test: 20, calibration: 8}"
        )
    # Ordered by near_id first: near-copies are neighbours, so a border between two splits separates few of them.
    ordered = sorted(groups.values(), key=lambda group: (group[0].near_id, group[0].prompt_id))
    train_from = splits.test + splits.calibration
    train_to = None if splits.train is None else train_from + splits.train
    parts = {
        "train": ordered[train_from:train_to],
        "calibration": ordered[splits.test : train_from],
        "test": ordered[: splits.test],
    }
    return {name: [entry for group in part for entry in group] for name, part in parts.items()}


_MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"}


def _unknown_keys(entries: Iterable[Entry]) -> Counter[str]:
    """Unusual keys of chat messages in the prompts -> how many messages have them."""
    chats = (as_messages(entry.prompt) for entry in entries if not isinstance(entry.prompt, str))
    return Counter(key for messages in chats for message in messages for key in message.keys() - _MESSAGE_KEYS)


_USED = {"where", *_JUDGED}
_LIKELY = {"system": "system", "tool": "tools"}
"""Part of a key's name -> the key of ours that it probably means."""
_MISSING = {"nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "N/A", "#N/A"}


def _unused_keys(entries: Sequence[Entry]) -> list[str]:
    """Notes on keys of the rows that are not used: one on all of them, one on each that looks like a key of ours."""
    counts = Counter(key for entry in entries for key in entry.metadata.keys() - _USED)
    if not counts:
        return []
    more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
    notes = [f"keys of the rows that are not used: {', '.join(sorted(counts)[:10])}{more}"]
    given = {"tools"} if any(tools_of(entry.prompt) for entry in entries) else set()
    for key, count in sorted(counts.items()):
        ours = next((ours for part, ours in _LIKELY.items() if part in key.lower()), None)
        if ours is not None and ours not in given and not key.startswith(("answer.", "rejected.")):
            notes.append(f"if '{key}', in {count} rows, is what we call '{ours}', set columns: {{{ours}: {key}}}")
    return notes


def _missing_answers(task: Task, entries: Iterable[Entry]) -> Counter[str]:
    """Answers that mean a missing value in tables -> how many rows have them. For ``json`` null is a value."""
    missing = _MISSING - ({"null"} if getattr(task.spec, "verifier", None) == "json" else set())
    answers = (entry.answer for entry in entries if isinstance(entry.answer, str))
    return Counter(answer.strip() for answer in answers if answer.strip() in missing)


def _unlisted_calls(entries: Iterable[Entry]) -> list[Entry]:
    """The entries with a gold call of a tool that the prompt does not list."""

    def unlisted(entry: Entry) -> bool:
        calls = entry.answer.get("tool_calls", []) if isinstance(entry.answer, Mapping) else []
        listed = {tool["function"]["name"] for tool in tools_of(entry.prompt) or []}
        return any(call["function"]["name"] not in listed for call in calls)

    return [entry for entry in entries if unlisted(entry)]


def _notes(task: Task) -> list[str]:
    """The notes of :attr:`Task.notes`."""
    notes = []
    if task.duplicates:
        share = f"{task.duplicates / task.rows:.0%}"
        notes.append(f"{task.duplicates} of {task.rows} rows ({share}) are exact repeats and were dropped")
    entries = [entry for name in SPLITS for entry in task.splits.get(name, ())]
    unused = task.rows - task.duplicates - len(entries)
    if unused:
        notes.append(f"{unused} of {task.rows} rows are in no split: splits.train asks for fewer")
    several = len(entries) - len(one_each_prompt(entries))
    if several:
        notes.append(
            f"{several} rows give another answer to a prompt that stands before: all are learnt, and any of a "
            "prompt's answers counts as right"
        )
    notes += _unused_keys(entries)
    for text, count in sorted(_missing_answers(task, entries).items()):
        notes.append(
            f"warning: {count} rows have the answer '{text}', which tables write for a cell without a value: remove "
            "such rows, unless it is what the model should say"
        )
    if unlisted := _unlisted_calls(entries):
        notes.append(
            f"warning: {len(unlisted)} rows call a tool that the row's 'tools' do not list (the first: "
            f"{unlisted[0].metadata.get('where', unlisted[0].id)})"
        )
    for key, count in sorted(_unknown_keys(entries).items()):
        notes.append(
            f"{count} messages have the key '{key}', which counts only where the base's chat template reads it"
        )
    for first, second, count, entry in near_copies(task.splits):
        place = entry.metadata.get("where", second)
        notes.append(
            f"warning: {count} of the {second} prompts stand in {first} too but for case or white space, so a score "
            f"may be partly memory (the first: {place})"
        )
    return notes
