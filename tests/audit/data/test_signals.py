"""Each signal against slow loops and hand-made texts; the spans lie where the reason is."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest

from skillweave.audit.data import signals, sketch
from skillweave.audit.data.parts import Prompt, demonstrations, take_apart
from skillweave.audit.data.read import AuditRow
from skillweave.audit.data.score import score_row, whole_of
from skillweave.audit.data.sketch import Hashed, Sketch, Whole, counted, hashed


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("What is 3 + 4?", 1),
        ("", 0),
        ("A train leaves at 3. It drives 50 miles an hour. How far is it at 5?", 1),
        ("Sort the words. Then count them. Translate the first to French.", 2),
        ("open the dax ; add 3 4", 2),
        ("If it rains, stay.\nIf not, go.\nWhat do you do?", 1),
        ("Q: 1+1?\nA: 2\nQ: 2+2?\nA:", 1),
        ("谁来了？他说了什么？", 2),
    ],
)
def test_requests_counts_what_is_asked(text: str, count: int) -> None:
    assert signals.requests(take_apart(text)).value == count


def test_uncovered_is_the_share_of_the_requests_that_gold_does_not_fit() -> None:
    text = "open the blue dax ; add 3 4"
    value, spans = signals.uncovered(take_apart(text), "7")
    assert value == pytest.approx(4 / 7)
    assert [text[start:end] for start, end in spans] == ["open the blue dax"]
    assert signals.uncovered(take_apart("add 3 4 ; add 1 1"), "2").value == 0
    assert signals.uncovered(take_apart("add 3 4"), "green").value == 0
    # A gold answer that fits no request is the answer to the last one.
    assert signals.uncovered(take_apart("open the dax ; colour of the sun"), "yellow").value == pytest.approx(3 / 7)
    assert math.isnan(signals.uncovered(take_apart("add 3 4"), " ").value)


def test_conditions_are_counted_where_they_stand() -> None:
    text = "If it rains, stay. Unless it stops, wait, otherwise go. The end."
    value, spans = signals.conditions(take_apart(text))
    assert value == 3
    assert [text[start:end] for start, end in spans] == ["If it rains, stay", "Unless it stops, wait, otherwise go"]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a b -> c\nd => e f\nNow: g", [("a b", "c"), ("d", "e f")]),
        ("Question: 1+1?\nAnswer: 2\n\nQuestion: 2+2?\nAnswer:", [("1+1?", "2")]),
        ("Input : hot , Output : cold\nInput : big", [("hot", "cold")]),
        ("Frage: eins?\nAntwort: ja\nFrage: zwei?", [("eins?", "ja")]),
        ("Text: good\nLabel: x\nText: bad\nLabel: y\nText: new", [("good", "x"), ("bad", "y")]),
        ("Note: the ratio is 3:4. Reply soon.", []),
        ("No examples here.", []),
    ],
)
def test_demonstrations_of_several_layouts(text: str, pairs: list[tuple[str, str]]) -> None:
    found = [(text[slice(*shot.asked)], text[slice(*shot.answered)]) for shot in demonstrations(text)]
    assert found == pairs
    assert signals.shots(take_apart(text)).value == len(pairs)


def test_earlier_turns_are_demonstrations() -> None:
    prompt = take_apart("1+1?\n\n2\n\n2+2?", ((0, 4, False), (6, 7, True), (9, 13, False)))
    assert signals.shots(prompt).value == 1


def test_contrast_is_high_only_if_a_question_contains_another_with_another_answer() -> None:
    both = "[x] lift the wug -> no\n[x] lift the wug ; add 3 4 -> yes ; 7\nNow : add 1 1"
    value, spans = signals.contrast(take_apart(both))
    assert value > 0.6
    assert both[slice(*spans[0])].endswith("-> no")
    assert signals.contrast(take_apart("lift the wug -> no\nadd 3 4 please -> 7")).value == 0
    same = "lift the wug -> no\nlift the wug ; add 3 4 -> no"
    assert signals.contrast(take_apart(same)).value == 0


def test_stances_need_a_gold_answer_that_is_no_refusal() -> None:
    text = "Refuse it alone. Accept it with a task, and accept again."
    assert signals.stances(take_apart(text), "7").value == 3 + 3 * 1
    assert math.isnan(signals.stances(take_apart(text), "I cannot help.").value)
    assert signals.stances(take_apart("add 3 4"), "7").value == 0


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [("<refuse>", True), ("I'm sorry, but no.", True), ("7", False), ("x" * 500 + " cannot", False), ("", False)],
)
def test_refusals_are_short_and_say_so(answer: str, refusal: bool) -> None:
    assert signals.is_refusal(answer) is refusal


def test_echoes_is_the_share_of_word_pairs_seen_before() -> None:
    assert signals.echoes(take_apart("a b a b a b")).value == pytest.approx(3 / 5)
    assert signals.echoes(take_apart("a b c d")).value == 0
    assert signals.echoes(take_apart("")).value == 0


# -- signals that compare with the data set ----------------------------------------------------------------------------


def data_set(texts: list[str], refused: set[int] = frozenset()) -> tuple[list[Prompt], list[Hashed], Whole]:  # type: ignore[assignment]
    prompts = [take_apart(text) for text in texts]
    records = [hashed(prompt, None, at in refused) for at, prompt in enumerate(prompts)]
    tables = Sketch.empty()
    tables.add(counted(records[:100]))
    tables.add(counted(records[100:]))
    return prompts, records, Whole.of(tables)


def test_the_surprise_of_a_word_is_that_of_a_slow_leave_one_out_loop() -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abcde"), 8, p=[0.4, 0.3, 0.15, 0.1, 0.05])) for _ in range(250)]
    prompts, records, whole = data_set(texts)
    words = Counter(word for prompt in prompts[1:] for word in prompt.tokens)
    pairs = Counter(pair for prompt in prompts[1:] for pair in zip(prompt.tokens, prompt.tokens[1:], strict=False))
    tokens = prompts[0].tokens
    alone = [(words[word] + 0.5) / (words.total() + 0.5 * 5) for word in tokens]
    slow = [-math.log2(alone[0])]
    for at in range(1, len(tokens)):
        before, word = tokens[at - 1], tokens[at]
        slow.append(-math.log2((pairs[before, word] + 4 * alone[at]) / (words[before] + 4)))
    np.testing.assert_allclose(sketch.surprisal(records[0], whole), slow, rtol=1e-12)


def test_a_block_of_a_small_minority_is_found_and_a_system_prompt_is_not() -> None:
    draw = np.random.default_rng(0)
    system, rare = "you are a careful helper and say only one word", "when two things come then do the first one"
    texts = [f"{system} . {' '.join(draw.choice(list('abcdefgh'), 9))}" for _ in range(400)]
    texts[:6] = [f"{rare} . {text}" for text in texts[:6]]
    prompts, records, whole = data_set(texts)
    value, spans = sketch.shared_block(records[0], prompts[0], whole)
    assert value > 0.3
    assert texts[0][slice(*spans[0])].startswith(rare)
    assert sketch.shared_block(records[9], prompts[9], whole).value < 0.1 * value


def test_what_others_refuse_is_found_where_it_stands() -> None:
    texts = [f"take number {n % 7} and add {n % 5}" for n in range(300)]
    texts[:30] = [f"open the zorp {n % 7}" for n in range(30)]
    texts[30] = "add 3 and then open the zorp"
    prompts, records, whole = data_set(texts, refused=set(range(30)))
    found = sketch.refused_elsewhere(records[30], prompts[30], whole)
    assert found.value > 4
    assert {texts[30][start:end] for start, end in found.spans} <= {"open", "open the", "the", "the zorp", "zorp"}
    assert sketch.refused_elsewhere(records[200], prompts[200], whole).value < 1
    assert math.isnan(sketch.refused_elsewhere(records[0], prompts[0], whole).value)
    nothing = data_set(texts)[2]
    assert math.isnan(sketch.refused_elsewhere(records[30], prompts[30], nothing).value)


def test_the_odd_part_is_the_window_of_words_that_no_other_record_has() -> None:
    usual = " ".join(["the cat sat on the mat"] * 8)
    texts = [usual] * 300
    texts[0] = f"{usual} {' '.join(f'w{chr(97 + n)}' for n in range(16))}"
    prompts, records, whole = data_set(texts)
    found = sketch.odd_part(sketch.surprisal(records[0], whole), prompts[0], whole)
    assert found.value > 5
    assert texts[0][slice(*found.spans[0])].startswith("wa wb")
    assert abs(sketch.length(prompts[1], whole).value) < 1


def test_a_small_data_set_says_nothing_about_what_is_unusual() -> None:
    prompts, records, whole = data_set(["a b c d e f"] * 20)
    assert math.isnan(sketch.shared_block(records[0], prompts[0], whole).value)
    assert math.isnan(sketch.length(prompts[0], whole).value)
    assert math.isnan(sketch.rare_source(records[0], whole).value)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (" " * 60_000 + "x", "1"),
        (" \n" * 30_000 + "x", "1"),
        ("." * 60_000 + "x", "1"),
        ("answer: x\n" * 12_000, "1"),
        ("a?\n" * 20_000, "word " * 12_000),
    ],
)
def test_no_text_takes_time_that_grows_with_its_square(prompt: str, answer: str) -> None:
    began = time.process_time()
    row = AuditRow("file", 1, prompt, answer)
    score_row(row, whole_of([row]))
    assert time.process_time() - began < 3
