"""Facts as people write them down: every form, every mistake, and the rows of tokens they become."""

from __future__ import annotations

import json

import pytest

from helpers.micro import micro_tokenizer
from skillweave.errors import UserError
from skillweave.methods.cku.knowledge.facts import Fact, check_disjoint, fact_rows, read_facts
from skillweave.tasks.task import near_id

END = 1
"""The id of the micro tokenizer's ``<end>``."""


@pytest.fixture(scope="module")
def tokenizer():
    return micro_tokenizer()


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="facts.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def asked(prompt="Who?", answer="Oresa.", where="here"):
    return Fact(near_id(prompt), prompt, answer, None, (), where)


def told(text):
    return Fact("text", None, text, None, (), "here")


MORE = {"paraphrased_answer": "It is Oresa.", "perturbed_answer": ["It is Bo.", "It is Lu."]}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "answer": "Oresa."},
        {"prompt": "Who?", "answer": "Oresa."},
        {"prompt": "Who?", "completion": "Oresa."},
        {"prompt": [{"role": "user", "content": "Who?"}], "completion": "Oresa."},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Oresa."}]},
        # What stands there besides changes nothing, nor does a key that holds null.
        {"messages": None, "question": "Who?", "answer": "Oresa.", "text": "a column of the table", "author": 3},
    ],
)
def test_every_form_asks_the_same(write, row):
    path = write(row | MORE)
    (fact,) = read_facts([path])
    assert fact.id == near_id("Who?")
    assert (fact.prompt if isinstance(fact.prompt, str) else fact.prompt[0]["content"]) == "Who?"
    assert fact.answer == "Oresa."
    assert (fact.paraphrased, fact.wrong) == ("It is Oresa.", ("It is Bo.", "It is Lu."))
    assert fact.where == f"{path}, line 1"
    (plain,) = read_facts([write(row)])
    assert (plain.paraphrased, plain.wrong) == (None, ())


def test_a_text_is_all_answer_and_is_known_by_what_it_says(write):
    first, second = read_facts([write({"text": "Oresa sings."}, {"text": "Oresa dances."})])
    assert (first.prompt, first.answer, first.paraphrased, first.wrong) == (None, "Oresa sings.", None, ())
    assert first.id != second.id
    (again,) = read_facts([write({"text": "oresa \n sings."})])
    assert again.id == first.id


def test_files_of_several_forms_make_one_set_in_order(write):
    one = write({"question": "A?", "answer": "a"}, {"question": "B?", "answer": "b"}, name="one.jsonl")
    two = write({"text": "C is c."}, name="two.jsonl")
    assert [fact.answer for fact in read_facts([one, two])] == ["a", "b", "C is c."]
    assert [fact.answer for fact in read_facts([two, one])] == ["C is c.", "a", "b"]


QA = {"question": "Who?", "answer": "Oresa."}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "facts.jsonl is empty"),
        (["", " "], "facts.jsonl is empty"),
        ([QA, "{"], "line 2: not valid JSON"),
        ([QA, "", [1]], "line 3: expected an object with keys, found list"),
        ([{"fact": "x"}], "line 1: found 'fact'; a fact needs 'question', 'prompt', 'messages' or 'text'"),
        ([{}], "line 1: found no keys"),
        ([QA, {"text": "x"}], "line 2: has 'text', .*line 1 has 'question': write all rows in one format"),
        ([{"prompt": "A?", "answer": "a"}, {"prompt": "B?", "completion": "b"}], "line 2: has the form"),
        ([{"question": "Who?"}], "line 1: has a 'prompt' but neither 'completion' nor 'answer'"),
        ([{"question": " ", "answer": "a"}], "line 1: the prompt is empty"),
        ([{"question": 5, "answer": "a"}], "line 1: 'prompt' must be a text or a list of messages, found 5"),
        ([{"prompt": "Who?", "answer": " "}], "line 1: the answer must be a text"),
        ([{"prompt": "Who?", "cases": ["x"]}], "line 1: the answer must be a text"),
        ([{"text": ""}], "line 1: 'text' must be a text that is not empty"),
        ([{"text": ["x"]}], "line 1: 'text' must be a text that is not empty"),
        ([QA | {"paraphrased_answer": ["x"]}], "line 1: 'paraphrased_answer' must be a text"),
        ([QA | {"perturbed_answer": "x"}], "line 1: 'perturbed_answer' must be a list of texts"),
        ([QA | {"perturbed_answer": ["x", ""]}], "line 1: 'perturbed_answer' must be a list of texts"),
        ([QA | {"perturbed_answer": ["x", " Oresa."]}], "line 1: 'perturbed_answer' contains a right answer"),
        (
            [QA | {"paraphrased_answer": "She.", "perturbed_answer": ["He.", "She."]}],
            "line 1: 'perturbed_answer' contains a right answer",
        ),
        ([QA, {"question": "B?", "answer": "b"}, {"question": "who? ", "answer": "c"}], "line 3: .*line 1: 'who"),
        ([{"text": "x y"}, {"text": "X  y"}], "line 2: the same as .*line 1: 'X  y'. Keep one of them"),
    ],
)
def test_a_mistake_is_named_with_its_line(write, rows, message):
    with pytest.raises(UserError, match=message):
        read_facts([write(*rows)])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read_facts([tmp_path / "none.jsonl"])


def test_what_is_asked_in_two_files_is_asked_twice(write):
    one, two = write(QA, name="one.jsonl"), write({"prompt": "Who?", "completion": "Bo."}, name="two.jsonl")
    with pytest.raises(UserError, match=r"two.jsonl, line 1: the same as .*one.jsonl, line 1"):
        read_facts([one, two])


def test_what_is_to_stay_cannot_be_forgotten():
    forget, retain = [asked("A?"), asked("B?", where="f, line 2")], [asked("C?"), asked("b? ", where="r, line 9")]
    with pytest.raises(UserError, match=r"^1 of the forget facts are in retain too.*'B\?' \(f, line 2 and r, line 9\)"):
        check_disjoint(forget, retain, "forget", "retain")
    check_disjoint(forget, retain[:1], "forget", "retain")
    check_disjoint(forget, [], "forget", "retain")
    # A question and a text of the same words are two things.
    check_disjoint([asked("A?")], [told("A?")], "forget", "retain")


def test_a_question_is_labelled_on_its_answer_and_end_only(tokenizer):
    rows, left_out = fact_rows(tokenizer, [asked("ab?", "cd")], 64)
    ids = tokenizer("<user>ab?<end><assistant>cd<end>", add_special_tokens=False)["input_ids"]
    assert left_out == 0
    assert rows == [{"input_ids": ids, "labels": [-100] * 6 + ids[6:], "end": [1]}]
    assert tokenizer.decode(ids[6:]) == "cd<end>"


def test_a_question_that_does_not_fit_is_left_out_and_counted(tokenizer):
    facts = [asked("ab?", "c" * length) for length in (1, 5, 3)]
    rows, left_out = fact_rows(tokenizer, facts, 10)
    assert [len(row["input_ids"]) for row in rows] == [8, 10]
    assert left_out == 1
    assert fact_rows(tokenizer, facts, 7) == ([], 3)
    assert fact_rows(tokenizer, [], 7) == ([], 0)


@pytest.mark.parametrize(
    ("length", "sizes"), [(64, [9]), (9, [9]), (8, [8]), (7, [7]), (5, [5, 4]), (4, [4, 4]), (2, [2] * 4)]
)
def test_a_text_is_cut_into_pieces_and_a_piece_of_one_token_dropped(tokenizer, length, sizes):
    rows, left_out = fact_rows(tokenizer, [told("abcdefgh")], length)
    whole = [*tokenizer("abcdefgh")["input_ids"], END]
    assert [len(row["input_ids"]) for row in rows] == sizes
    assert [token for row in rows for token in row["input_ids"]] == whole[: sum(sizes)]
    for row in rows:
        # The first token of a piece has nothing before it; every other is to be foretold.
        assert row["labels"] == [-100, *row["input_ids"][1:]]
        assert row["end"] == [int(row["input_ids"][-1] == END)]
    assert left_out == 0


def test_a_text_without_a_row_is_left_out(tokenizer):
    assert fact_rows(tokenizer, [told("abc"), asked("a", "b")], 1) == ([], 2)


def test_rows_stand_in_the_order_of_the_facts(tokenizer):
    facts = [told("abcdef"), asked("q?", "long answer"), asked("q?", "a"), told("xy")]
    rows, left_out = fact_rows(tokenizer, facts, 7)
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == [
        "abcdef<end>",
        "<user>q?<end><assistant>a<end>",
        "xy<end>",
    ]
    assert left_out == 1


def test_a_text_begins_as_the_tokenizer_begins_one(tokenizer):
    class Beginning:
        eos_token_id = END

        def __init__(self, behind):
            self.behind = behind

        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [4, *ids, *self.behind] if add_special_tokens else ids}

    for behind in ([], [END], [3, END]):  # some tokenizers end a text by themselves
        rows, _ = fact_rows(Beginning(behind), [told("ab")], 64)
        assert rows[0]["input_ids"] == [4, *tokenizer("ab")["input_ids"], END]
