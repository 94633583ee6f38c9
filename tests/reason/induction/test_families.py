"""The families: their texts against CPython and the sandbox, behaviours, faults and neighbours."""

import builtins
from random import Random

import pytest

from skillweave.reason.induction.families import FAMILIES, Part, Program, commands, lists
from skillweave.tools.sandbox import InterpreterSession

SIZES = {"lists": (1, 2, 3, 4), "commands": (3, 4, 5, 6)}


def in_cpython(source: str, value):
    """What a generated text gives in CPython. The text comes from our own generator, so exec is safe here."""
    scope: dict = {"__builtins__": builtins}
    exec(source, scope)
    return scope["f"](value)


def every_part(name: str) -> list[Program]:
    """Programs that together have every part of a family."""
    if name == "lists":
        return [(part,) for part in lists.ALL]
    write = [Part("write", "RED", "dax"), Part("write", "BLUE", "fep")]
    others = [*commands.ALL, Part("put_first", "GREEN")]
    return [(*write, Part(part.kind, part.value, "lug")) for part in others]


def drawn(name: str, count: int, seed: int = 0) -> list[Program]:
    random = Random(seed)
    found: list[Program] = []
    while len(found) < count:
        program = FAMILIES[name].draw(random, SIZES[name][len(found) % 4])
        if program is not None:
            found.append(program)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_does_in_python_what_its_parts_do_here(name):
    family = FAMILIES[name]
    for program in every_part(name) + drawn(name, 40):
        inputs = family.probes if name == "lists" else family.inputs(Random(1), program, 8, test=True)
        source = family.source(program)
        for value in inputs:
            before = str(value)
            assert in_cpython(source, value) == family.run(program, value), (source, value)
            assert str(value) == before
        assert family.read(source) == program


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_of_another_form_is_not_read(name):
    family = FAMILIES[name]
    source = family.source(drawn(name, 3)[-1])
    lines = source.splitlines()
    for text in (
        "",
        "\n",
        "def f(x):",
        source[:-1],
        source.replace("    ", "  "),
        "\n".join([*lines[:-2], "    y", lines[-1]]),
    ):
        assert family.read(text) is None
    assert family.read("\n".join((lines[0], lines[-1]))) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sandbox_runs_every_part(name):
    family = FAMILIES[name]
    for program in every_part(name):
        value = [3, 1, 4, 1, 5] if name == "lists" else "dax fep lug fep dax lug"
        with InterpreterSession() as session:
            result = session.feed(f"{family.source(program)}\nf({value!r})")
        assert result.ok, result.error
        assert result.value == family.run(program, value)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_single_part_has_a_behaviour_of_its_own(name):
    family = FAMILIES[name]
    digests = {family.behaviour(program): program for program in every_part(name)}
    assert len(digests) == len(every_part(name))


def test_a_drawn_chain_is_no_shorter_chain_and_no_constant():
    """Against a slow comparison with chains of one step, with the identity, and with chains that omit steps."""
    family = FAMILIES["lists"]
    single = {tuple(map(str, (family.run((part,), probe) for probe in family.probes))) for part in lists.ALL}
    for program in drawn("lists", 60):
        outputs = tuple(str(family.run(program, probe)) for probe in family.probes)
        assert outputs != tuple(map(str, family.probes))
        assert max(map(outputs.count, outputs)) <= len(outputs) / 2
        assert len(program) == 1 or outputs not in single
        for mask in range(1, 2 ** len(program) - 1):
            part_of = tuple(part for at, part in enumerate(program) if mask >> at & 1)
            if len(part_of) in (1, len(program) - 1):
                assert outputs != tuple(str(family.run(part_of, probe)) for probe in family.probes)


def test_steps_whose_order_does_not_matter_have_one_text():
    family = FAMILIES["lists"]
    plus, sort, drop = Part("plus", 2), Part("sort"), Part("drop", 1)
    assert family.settled((plus, sort), ()) == family.settled((sort, plus), ())
    assert family.settled((drop, sort), ()) == (drop, sort) != family.settled((sort, drop), ())


def test_commands_are_compared_without_their_words_and_colours():
    family = FAMILIES["commands"]
    one = (Part("write", "RED", "dax"), Part("write", "BLUE", "fep"), Part("reverse", None, "lug"))
    renamed = (Part("reverse", None, "wif"), Part("write", "PINK", "zup"), Part("write", "RED", "dax"))
    other = (Part("write", "RED", "dax"), Part("write", "BLUE", "fep"), Part("double", None, "lug"))
    front = (Part("put_first", "RED", "dax"), Part("write", "BLUE", "fep"), Part("reverse", None, "lug"))
    assert family.behaviour(one) == family.behaviour(renamed)
    assert len({family.behaviour(program) for program in (one, other, front)}) == 3


def test_the_lines_of_commands_stand_in_the_order_of_their_use():
    family = FAMILIES["commands"]
    program = (Part("write", "RED", "dax"), Part("write", "BLUE", "fep"), Part("reverse", None, "lug"))
    assert [part.word for part in family.settled(program, ["fep lug", "dax"])] == ["fep", "lug", "dax"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mutation_changes_few_parts_and_the_fault_names_one(name):
    family, random = FAMILIES[name], Random(3)
    for program in drawn(name, 60):
        wrong = family.mutated(random, program)
        assert wrong
        assert (family.fault(wrong, program) == "") == (
            set(wrong) == set(program) if name == "commands" else wrong == program
        )
        if len(wrong) == len(program):
            assert sum(part not in program for part in wrong) <= 2


@pytest.mark.parametrize(
    ("wrong", "right", "fault"),
    [
        ("sort reverse", "sort reverse", ""),
        ("sort twice", "sort reverse", "step 2 is wrong"),
        ("twice sort reverse", "sort reverse", "step 1 is too much"),
        ("sort twice reverse", "sort reverse", "step 2 is too much"),
        ("reverse", "sort reverse", "a step is missing before step 1"),
        ("sort", "sort reverse", "a step is missing at the end"),
        ("reverse sort", "sort reverse", "step 1 is wrong"),
        ("twice rotate largest", "sort reverse", "step 1 is wrong"),
    ],
)
def test_the_fault_of_a_chain_is_its_first_wrong_step(wrong, right, fault):
    chains = [tuple(Part(kind) for kind in text.split()) for text in (wrong, right)]
    assert FAMILIES["lists"].fault(*chains) == fault


def test_the_fault_of_commands_is_a_word():
    family = FAMILIES["commands"]
    dax, fep, lug = Part("write", "RED", "dax"), Part("write", "BLUE", "fep"), Part("reverse", None, "lug")
    assert family.fault((dax, fep), (dax, fep, lug)) == "lug is missing"
    assert family.fault((dax, Part("double", None, "fep"), lug), (dax, fep, lug)) == "fep is wrong"
    assert family.fault((dax, fep, lug), (dax, fep)) == "lug is too much"
    assert family.fault((lug, dax, fep), (dax, fep, lug)) == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_neighbours_differ_in_one_part(name):
    family = FAMILIES[name]
    program = drawn(name, 4)[-1]
    near = list(family.neighbours(program))
    assert program not in near
    for other in near:
        assert abs(len(other) - len(program)) <= 1
        assert len(set(other) - set(program)) <= 1
