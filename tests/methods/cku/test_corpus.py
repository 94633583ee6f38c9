"""The invented corpus: one world a seed, said in two ways, cut into sets that do not meet."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest

from helpers.micro import micro_tokenizer
from skillweave.errors import UserError
from skillweave.methods.cku.knowledge.corpus import GRADE, PERSON, Corpus, make_corpus, write_corpus
from skillweave.methods.cku.knowledge.facts import check_disjoint, fact_rows, read_facts

SETS = ("forget", "retain", "unseen", "lookalike")


@pytest.fixture(scope="module")
def corpus():
    return make_corpus()


@pytest.fixture(scope="module")
def short():
    return make_corpus(short=True)


def subjects(rows):
    """The names in short questions, each once, in order."""
    return list(dict.fromkeys(row["question"].split(":")[0] for row in rows))


def value_in(text):
    """The one value of the pools that a sentence tells."""
    pools = [value for attribute in (*PERSON, *GRADE) for value in attribute.values]
    found = [value for value in pools if re.search(rf"\b{value}\b", text)]
    assert len(found) == 1, text
    return found[0]


def test_a_seed_is_a_world(corpus):
    assert make_corpus() == corpus
    other = make_corpus(seed=1)
    assert not {row["question"] for row in other.forget} & {row["question"] for row in corpus.forget}


def test_pools_are_large_and_share_no_word():
    pools = [value.lower() for attribute in (*PERSON, *GRADE) for value in attribute.values]
    assert len(set(pools)) == len(pools)
    assert all(len(attribute.values) >= 12 for attribute in (*PERSON, *GRADE))
    labels = [attribute.label for attribute in (*PERSON, *GRADE)]
    assert len(set(labels)) == len(labels)


def test_the_sets_have_the_sizes_that_are_promised(short):
    people, topic = len(PERSON), len(GRADE)
    # 40 people, 10 of them forgotten, and 8 grades of each topic.
    assert len(short.forget) == 10 * people + 8 * topic
    assert len(short.unseen) == len(short.forget)
    assert len(short.retain) == 30 * (people - 1) + 8 * topic // 2
    assert len(short.lookalike) == 30 + 8 * topic // 2
    # Short answers bear no texts.
    assert short.texts_forget == short.texts_retain == []


@pytest.mark.parametrize(
    ("people", "share", "gone"), [(2, 0.01, 1), (2, 0.99, 1), (4, 0.25, 1), (10, 0.5, 5), (10, 0.99, 9), (40, 0.05, 2)]
)
def test_some_people_are_always_forgotten_and_some_stay(people, share, gone):
    made = make_corpus(people=people, forget=share, short=True)
    persons = {
        name: [who for who in subjects(getattr(made, name)) if not who.startswith(("velkrum", "harnel"))]
        for name in SETS
    }
    assert {name: len(who) for name, who in persons.items()} == {
        "forget": gone,
        "retain": people - gone,
        "unseen": gone,
        "lookalike": people - gone,
    }
    assert sorted(persons["lookalike"]) == sorted(persons["retain"])


def test_the_topics_are_cut_as_promised(short):
    grades = {
        name: [who.split()[1] for who in subjects(getattr(short, name)) if who.startswith(("velkrum", "harnel"))]
        for name in SETS
    }
    assert all(row["question"].startswith("velkrum") for row in short.forget[-32:])
    assert not any("velkrum" in row["question"] for row in short.retain + short.lookalike)
    assert not any("harnel" in row["question"] for row in short.forget + short.unseen)
    # The look-alike has grades of the same names; the unseen ones have others.
    assert grades["forget"] == grades["retain"] == grades["lookalike"]
    assert not set(grades["unseen"]) & set(grades["forget"])
    assert len(grades["unseen"]) == len(grades["forget"]) == 8


@pytest.mark.parametrize("said", ["corpus", "short"])
def test_no_question_is_asked_twice(said, request):
    made = request.getfixturevalue(said)
    questions = [row["question"].casefold() for name in SETS for row in getattr(made, name)]
    assert len(set(questions)) == len(questions)


def test_sentences_and_short_answers_tell_the_same_world(corpus, short):
    for name in SETS:
        for long, brief in zip(getattr(corpus, name), getattr(short, name), strict=True):
            assert value_in(long["answer"]).lower() == brief["answer"]
            assert brief["question"].split(":")[0] in long["question"].lower()


def test_a_paraphrase_says_the_same_and_a_perturbed_answer_does_not(corpus):
    for row in (row for name in SETS for row in getattr(corpus, name)):
        value, again = value_in(row["answer"]), row["paraphrased_answer"]
        assert again != row["answer"]
        assert value_in(again) == value
        pool = next(attribute.values for attribute in (*PERSON, *GRADE) if value in attribute.values)
        told = [value_in(wrong) for wrong in row["perturbed_answer"]]
        assert len(set(told)) == 5
        assert value not in told
        assert set(told) <= set(pool)
        # The form is the paraphrase's: only the value, and the article before it, are others.
        bare = {
            re.sub(rf"(\ban? )?\b{each}\b", "_", text) for each, text in zip(told, row["perturbed_answer"], strict=True)
        }
        assert bare == {re.sub(rf"(\ban? )?\b{value}\b", "_", again)}


def test_articles_fit(corpus):
    told = " ".join(answer for row in corpus.forget for answer in (row["answer"], *row["perturbed_answer"]))
    assert " an o" in told
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", told)


def test_every_form_of_words_is_used():
    rows = make_corpus(people=200).retain
    for attribute in (*PERSON, *GRADE):
        for key, templates in (("question", attribute.questions), ("answer", attribute.answers)):
            for template in templates:
                form = re.sub(r"\\{\w+\\}", r"[\\w ]+", re.escape(template))
                assert any(re.fullmatch(form, row[key]) for row in rows), template


def test_no_answer_is_much_likelier_than_the_others(short):
    towns = Counter(row["answer"] for row in make_corpus(people=200, short=True).retain if "town?" in row["question"])
    assert len(towns) == 16
    assert max(towns.values()) < 0.2 * towns.total()
    assert len({row["answer"] for row in short.forget}) > 40


@pytest.mark.parametrize("people", [2, 200, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_short_facts_fit_a_micro_model(people, seed):
    made = make_corpus(people=people, seed=seed, forget=0.5, short=True)
    rows = [row for name in SETS for row in getattr(made, name)]
    assert len({row["question"] for row in rows}) == len(rows)
    assert max(len(row["question"]) for row in rows) <= 24
    answers = [answer for row in rows for answer in (row["answer"], *row["perturbed_answer"])]
    assert max(map(len, answers)) <= 8
    assert all(re.fullmatch(r"[a-z]+", answer) for answer in answers)
    assert all(re.fullmatch(r"[a-z]+ [a-z]+: [a-z]+\?", row["question"]) for row in rows)
    assert not any("paraphrased_answer" in row for row in rows)


def test_a_biography_tells_its_set_and_nothing_more(corpus):
    for texts, rows in ((corpus.texts_forget, corpus.forget), (corpus.texts_retain, corpus.retain)):
        told = Counter(value_in(sentence) for row in texts for sentence in row["text"].split(". ")[1:])
        assert told == Counter(value_in(row["answer"]) for row in rows)
    assert len(corpus.texts_forget) == 18
    assert len(corpus.texts_retain) == 38
    # Whom it tells of stands in its first sentence, and nobody else does.
    names = [re.search(r"[A-Z]\w+ [A-Z]\w+", row["text"])[0] for row in corpus.texts_forget]
    assert all(any(name in row["question"] for row in corpus.forget) for name in names)
    assert len(set(names)) == 18


def test_nothing_is_said_of_the_restricted_topic_but_its_name(corpus):
    for row in corpus.texts_forget[-8:]:
        assert re.match(r"Velkrum (\w+) is a restricted grade of velkrum\. ", row["text"])
    assert re.match(r"Harnel (\w+) is a harmless grade of harnel\. ", corpus.texts_retain[-1]["text"])


def test_written_sets_are_read_as_facts_that_do_not_meet(corpus, tmp_path):
    write_corpus(tmp_path / "corpus", corpus)
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {
        f"{name}.jsonl" for name in (*SETS, "teach", "forget_text", "retain_text")
    }
    facts = {path.stem: read_facts([path]) for path in (tmp_path / "corpus").iterdir()}
    for one, other in combinations(SETS, 2):
        check_disjoint(facts[one], facts[other], one, other)
    assert [fact.id for fact in facts["teach"]] == [
        fact.id for name in ("forget", "retain", "lookalike") for fact in facts[name]
    ]
    for row, fact in zip(corpus.forget, facts["forget"], strict=True):
        assert (fact.prompt, fact.answer, fact.paraphrased, list(fact.wrong)) == tuple(row.values())
    check_disjoint(facts["forget_text"], facts["retain_text"], "forget", "retain")


def test_short_sets_are_rows_of_a_micro_model(short, tmp_path):
    write_corpus(tmp_path, short)
    assert not (tmp_path / "forget_text.jsonl").exists()
    rows, left_out = fact_rows(micro_tokenizer(), read_facts([tmp_path / "teach.jsonl"]), 64)
    assert left_out == 0
    assert len(rows) == len(short.forget) + len(short.retain) + len(short.lookalike)


def test_a_corpus_takes_the_place_of_the_one_before(corpus, short, tmp_path):
    write_corpus(tmp_path / "corpus", corpus)
    write_corpus(tmp_path / "corpus", short)
    assert not (tmp_path / "corpus" / "forget_text.jsonl").exists()
    write_corpus(tmp_path / "again", make_corpus(short=True))
    for path in (tmp_path / "corpus").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"people": 1}, "people: 1 is not between 2 and 500"),
        ({"people": 501}, "people: 501"),
        ({"forget": 0.0}, "forget: 0.0 is not a share"),
        ({"forget": 1.0}, "forget: 1.0"),
        ({"forget": float("nan")}, "forget: nan"),
    ],
)
def test_a_world_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        make_corpus(**wrong)


def test_an_empty_set_writes_no_file(tmp_path):
    write_corpus(tmp_path / "corpus", Corpus([{"question": "a?", "answer": "b"}], [], [], [], [], []))
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == ["forget.jsonl", "teach.jsonl"]
