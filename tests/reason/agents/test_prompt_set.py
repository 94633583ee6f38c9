"""Prompt sets: those of the package, those of a user, and the mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillweave.errors import UserError
from skillweave.reason.agents.prompt_set import LARGEST_TEMPLATE, NAMED, VARIABLES, PromptSet
from skillweave.reason.agents.prompt_values import bare_text, failure_texts, pair_texts
from skillweave.reason.hypothesis import Evaluation
from skillweave.reason.problem import ExamplePairs, IOPair, Missing

PAIRS = pair_texts(ExamplePairs("p", (IOPair([True, None], "turn left"), IOPair("True", "a  b"))))


def folder_with(path: Path, **templates: str) -> Path:
    path.mkdir()
    for name, text in templates.items():
        (path / f"{name}.jinja").write_text(text)
    return path


def test_values_are_python_literals_and_plain_words_are_bare() -> None:
    assert PAIRS == [{"input": "[True, None]", "output": "'turn left'"}, {"input": "'True'", "output": "'a  b'"}]
    assert PromptSet.named("induction").render("propose_program", pairs=PAIRS, avoid=[]) == (
        "[True, None] -> turn left\n'True' -> 'a  b'\nWrite f."
    )
    for literal in ("''", "'a1'", "'a '", "'None'", "12", "['a']", '"it\'s"', "error: KeyError"):
        assert bare_text(literal) == literal
    assert bare_text("'Grün'") == "Grün"


def test_a_long_outcome_is_cut_and_says_so() -> None:
    examples = ExamplePairs("p", (IOPair(1, 2), IOPair(1, 1)))
    evaluation = Evaluation(("a" * 9_998, 1), (False, True), "")
    (failure,) = failure_texts(examples, evaluation)
    assert failure["got"].endswith("aaa... (10,000 characters, cut)")
    assert len(failure["got"]) < 4_100
    (failure, _) = failure_texts(examples, Evaluation((Missing("no"), Missing("no")), (False, False), ""))
    assert failure == {"number": 1, "input": "1", "wanted": "2", "got": "error: no"}


def test_both_sets_have_every_template_and_only_one_repairs() -> None:
    general, induction = map(PromptSet.named, NAMED)
    assert (general.repairs, induction.repairs) == (True, False)
    assert general.digest != induction.digest
    assert general.digest == PromptSet.named("general").digest


def test_a_prompt_is_not_a_template() -> None:
    prompt = PromptSet.named("general").render("code", pairs=PAIRS, rule="use {{ 1 + 1 }} & <b>")
    assert "Rule: use {{ 1 + 1 }} & <b>\n" in prompt


def test_a_written_set_is_the_same_set_and_can_be_edited(tmp_path: Path) -> None:
    for name in NAMED:
        written = PromptSet.named(name)
        written.write(tmp_path / name)
        again = PromptSet.named(tmp_path / name)
        assert (again.digest, again.repairs) == (written.digest, written.repairs)
    with pytest.raises(UserError, match="exists already"):
        written.write(tmp_path / name)
    (tmp_path / "induction" / "code.jinja").write_text("Code this: {{ rule }}")
    edited = PromptSet.named(tmp_path / "induction")
    assert edited.digest != written.digest
    assert edited.render("code", pairs=PAIRS, rule="r") == "Code this: r"


def test_what_a_folder_lacks_comes_from_general_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = PromptSet.named(folder_with(tmp_path / "own", judge="Is {{ rule }} right?"))
    assert prompts.render("judge", pairs=PAIRS, rule="r", parent="") == "Is r right?"
    general = PromptSet.named("general").render("code", pairs=PAIRS, rule="r")
    assert prompts.render("code", pairs=PAIRS, rule="r") == general
    said = " ".join(capsys.readouterr().err.split())
    assert "come from the set 'general': propose_program, propose_rule," in said
    assert "judge" not in said.partition("general")[2]


@pytest.mark.parametrize(
    ("template", "text", "error"),
    [
        ("code", "\n\n{{ rul }}", r"code.jinja, line 3: .* no variable 'rul' .* did you mean 'rule'"),
        ("code", "{{ rule }}\n{% if %}", r"code.jinja, line 2: not a jinja template"),
        ("code", "\n{% for pair in pairs %}\n{{ pair.inptu }}\n{% endfor %}", r"code.jinja, line 3: .*inptu"),
        ("code", "{% include 'other' %}", "code.jinja, line 1: the template cannot be rendered"),
        ("code", "{{ rule.__class__.__mro__ }}", "code.jinja, line 1: the template cannot be rendered.*unsafe"),
        ("code", "{{ rule + 1 }}", "code.jinja, line 1: .*TypeError"),
        ("code", "{# nothing #}", "code.jinja: the prompt is empty"),
        ("code", "a" * (LARGEST_TEMPLATE + 1), "code.jinja"),
        ("code", "{% for i in range(50000) %}{% for j in range(50) %}{{ rule }}{% endfor %}{% endfor %}", "1,048,576"),
        (
            "code",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "2 seconds.*stopped",
        ),
        ("code", "{{ 'x' * 10**10 }}", "code.jinja: the template took more than 1.07 GB of memory"),
        ("code", "{% set n = 10**10 %}{{ rule * n }}", "code.jinja: the template took more than 1.07 GB of memory"),
        ("code", "{{ '%99999999999d' % 1 }}", "code.jinja"),
        ("code", "{{ " + "9" * 5000 + " }}", "code.jinja: not a jinja template: .*digits"),
        ("code", "{% for i in [1] %}" * 25 + "{{ rule }}" + "{% endfor %}" * 25, "code.jinja: .* nested too deeply"),
        ("cod", "{{ rule }}", r"cod.jinja is not a prompt template; did you mean 'code.jinja'"),
    ],
)
def test_a_mistake_in_a_template_names_file_and_line(tmp_path: Path, template: str, text: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        PromptSet.named(folder_with(tmp_path / "own", **{template: text}))


def test_a_wrong_name_or_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"genral is neither a folder .*general, induction"):
        PromptSet.named("genral")
    with pytest.raises(UserError, match="holds no prompt template"):
        PromptSet.named(folder_with(tmp_path / "own"))


def test_all_variables_must_be_given() -> None:
    with pytest.raises(TypeError, match="takes"):
        PromptSet.named("general").render("code", rule="r")
    assert set(VARIABLES) == {path.stem for path in PROMPTS.glob("general/*.jinja")}


PROMPTS = Path(__file__).parents[3] / "src/skillweave/reason/prompts"
