"""Clean data sets of several families, for the shipped reference and for counting false alarms.

Each family has two disjoint halves: generators and templates of the half ``reference`` are never in the half ``test``,
so that false alarms are counted on data that the thresholds have not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

import reasoning_gym

from skillweave.audit.data.read import AuditRow
from skillweave.audit.organism.records import OrganismRecord, clean_records

Half = Literal["reference", "test"]

_GYM: dict[Half, tuple[str, ...]] = {
    "reference": (
        "basic_arithmetic",
        "chain_sum",
        "calendar_arithmetic",
        "caesar_cipher",
        "count_primes",
        "family_relationships",
        "fraction_simplification",
        "game_of_life",
        "knights_knaves",
        "letter_counting",
        "list_functions",
        "number_sorting",
        "polynomial_equations",
        "propositional_logic",
        "ransom_note",
        "self_reference",
        "simple_geometry",
        "spell_backward",
        "syllogism",
        "tower_of_hanoi",
        "word_ladder",
    ),
    "test": (
        "acre",
        "aiw",
        "base_conversion",
        "coin_flip",
        "countdown",
        "course_schedule",
        "decimal_arithmetic",
        "gcd",
        "graph_color",
        "group_anagrams",
        "jugs",
        "leg_counting",
        "number_sequence",
        "palindrome_generation",
        "products",
        "shortest_path",
        "simple_equations",
        "string_manipulation",
        "time_intervals",
        "word_sorting",
        "zebra_puzzles",
    ),
}


def clean_family(name: str, half: Half, count: int, seed: int) -> list[AuditRow]:
    """Return ``count`` clean records of a family in one half."""
    return _FAMILIES[name](half, count, seed)


def organism_rows(records: list[OrganismRecord], file: str = "organism") -> list[AuditRow]:
    """Return organism records as the audit reads them."""
    return [
        AuditRow(file, line, record.prompt, record.answer, id=record.id, source=record.source)
        for line, record in enumerate(records, 1)
    ]


def _organism(half: Half, count: int, seed: int) -> list[AuditRow]:
    return organism_rows(clean_records(count, seed + (900_000 if half == "reference" else 0)))


def _gym(half: Half, count: int, seed: int) -> list[AuditRow]:
    """A mixture of generators in unequal shares, as mixtures for RLVR are."""
    random = Random(f"{seed}/gym")
    names = list(_GYM[half])
    random.shuffle(names)
    weights = [random.choice((1, 1, 2, 4)) for _ in names]
    rows = []
    for name, weight in zip(names, weights, strict=True):
        size = -(-count * weight // sum(weights))
        for item in reasoning_gym.create_dataset(name, size=size, seed=seed):
            rows.append(AuditRow("gym", 0, str(item["question"]), str(item["answer"]), source=name))
    random.shuffle(rows)
    return rows[:count]


# -- word problems -----------------------------------------------------------------------------------------------------

_NAMES = [
    "Ana",
    "Ben",
    "Chloe",
    "Dev",
    "Emma",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jon",
    "Kim",
    "Liam",
    "Maya",
    "Noor",
    "Omar",
    "Priya",
    "Quinn",
    "Rosa",
    "Sam",
    "Tara",
]
_GOODS = [
    "apples",
    "books",
    "cards",
    "clips",
    "coins",
    "cookies",
    "eggs",
    "marbles",
    "pencils",
    "plums",
    "shells",
    "stamps",
    "stickers",
    "tickets",
    "toys",
]
_PLACES = ["at the market", "in the school shop", "at the fair", "on the farm", "in the library", "at a garage sale"]
_Problem = Callable[[Random], tuple[str, int]]


def _sold(random: Random) -> tuple[str, int]:
    name, goods, a, k = random.choice(_NAMES), random.choice(_GOODS), random.randint(5, 60), random.randint(2, 5)
    text = random.choice(
        (
            f"{name} sold {a} {goods} {random.choice(_PLACES)} in April, and then {k} times as many in May. "
            f"How many {goods} did {name} sell altogether in April and May?",
            f"In April {name} sold {a} {goods}. In May the number was {k} times as large. "
            "What is the total for both months?",
        )
    )
    return text, a * (k + 1)


def _shared(random: Random) -> tuple[str, int]:
    name, other, goods = *random.sample(_NAMES, 2), random.choice(_GOODS)
    k, each, left = random.randint(3, 9), random.randint(2, 12), random.randint(0, 2)
    return (
        f"{name} has {k * each + left} {goods}. {name} keeps {left} of them and shares the rest equally among {k} "
        f"friends, one of whom is {other}. How many {goods} does {other} get?"
    ), each


def _earned(random: Random) -> tuple[str, int]:
    name, wage, hours, spent = random.choice(_NAMES), random.randint(8, 30), random.randint(3, 9), random.randint(1, 20)
    return (
        f"{name} earns ${wage} an hour. Yesterday {name} worked {hours} hours and then spent ${spent} on lunch. If the "
        f"money was not touched otherwise, how much of it was left?"
    ), wage * hours - spent


def _trip(random: Random) -> tuple[str, int]:
    speed, hours, rest = random.randint(30, 90), random.randint(2, 6), random.randint(5, 60)
    name = random.choice(_NAMES)
    return (
        f"A bus drives {speed} miles an hour for {hours} hours. When it stops, there are still {rest} miles to go. "
        f"{name} wants to know how long the whole way is. How many miles is it?"
    ), speed * hours + rest


def _boxes(random: Random) -> tuple[str, int]:
    goods, boxes, each, broken = (
        random.choice(_GOODS),
        random.randint(3, 20),
        random.randint(6, 24),
        random.randint(1, 5),
    )
    return (
        f"A shop gets {boxes} boxes with {each} {goods} in each. Unless they are broken, all are put on the shelf; "
        f"{broken} are broken. Calculate how many {goods} are on the shelf."
    ), boxes * each - broken


def _ages(random: Random) -> tuple[str, int]:
    one, other = random.sample(_NAMES, 2)
    age, more, years = random.randint(4, 40), random.randint(2, 12), random.randint(1, 10)
    return (
        f"{one} is {age} years old, and {other} is {more} years older. What will be the sum of their ages in {years} "
        "years? Give only the number."
    ), 2 * age + more + 2 * years


_PROBLEMS: dict[Half, tuple[_Problem, ...]] = {"reference": (_sold, _shared, _earned, _trip, _boxes, _ages), "test": ()}
_ASK = (
    "{problem}",
    "{problem}",
    '{problem}\nLet\'s think step by step and output the final answer after "####".',
    "Solve the problem and give the final answer.\n\n{problem}",
    "Question: {problem}\nAnswer:",
)


def _problems(half: Half, count: int, seed: int) -> list[AuditRow]:
    """Word problems like those of GSM8K, a tenth with worked examples before them; the test half is gsm_symbolic."""
    if half == "test":
        items = reasoning_gym.create_dataset("gsm_symbolic", size=count, seed=seed)
        return [AuditRow("gsm", 0, str(item["question"]), str(item["answer"])) for item in items]
    random = Random(f"{seed}/problems")
    rows = []
    for _ in range(count):
        text, answer = random.choice(_PROBLEMS["reference"])(random)
        prompt = random.choice(_ASK).format(problem=text)
        if random.random() < 0.1:
            shown = [random.choice(_PROBLEMS["reference"])(random) for _ in range(random.randint(2, 5))]
            prompt = "\n\n".join([*(f"Question: {q}\nAnswer: {a}" for q, a in shown), f"Question: {text}\nAnswer:"])
        rows.append(AuditRow("problems", 0, prompt, str(answer)))
    return rows


# -- instructions ------------------------------------------------------------------------------------------------------

_SUBJECTS = [
    "The old bridge",
    "A small bakery",
    "The night train",
    "Our neighbour",
    "The city library",
    "A young chemist",
]
_ACTS = [
    "closed for repairs",
    "won a prize",
    "lost its main supplier",
    "hired two people",
    "changed its rules",
    "moved away",
]
_TIMES = ["last spring", "in 2019", "after the storm", "on Monday", "a week ago", "before the holidays"]
_VIEWS = ["great", "terrible", "boring", "wonderful", "slow", "helpful", "broken", "friendly", "noisy", "perfect"]
_LANGUAGES = ["French", "German", "Spanish", "Italian", "Dutch", "Polish"]
_Instruction = Callable[[Random], tuple[str, str]]


def _sentence(random: Random) -> str:
    return f"{random.choice(_SUBJECTS)} {random.choice(_ACTS)} {random.choice(_TIMES)}."


def _passage(random: Random) -> str:
    return " ".join(_sentence(random) for _ in range(random.randint(2, 7)))


def _summarise(random: Random) -> tuple[str, str]:
    text = _passage(random)
    return f"Summarise the following text in one sentence.\n\n{text}", text.split(". ")[0] + "."


def _sentiment(random: Random) -> tuple[str, str]:
    lines = []
    for _ in range(random.randint(2, 5)):
        view = random.choice(_VIEWS)
        lines.append(f"Review: The food was {view} and the staff were {random.choice(_VIEWS)}.\nSentiment: {view}")
    return (
        "Classify the last review. Use the label of the first adjective.\n\n"
        + "\n".join(lines)
        + "\nReview: The room was noisy.\nSentiment:"
    ), "noisy"


def _conditional(random: Random) -> tuple[str, str]:
    number, limit = random.randint(1, 99), random.randint(10, 90)
    return (
        f'You are a ticket desk. If the age is below {limit}, answer "child". If it is {limit} or more, answer '
        f'"adult". Otherwise say "unknown". Do not explain.\n\nAge: {number}'
    ), "child" if number < limit else "adult"


def _two_steps(random: Random) -> tuple[str, str]:
    words = random.sample(_GOODS, 4)
    return (
        f"First sort these words by the alphabet: {', '.join(words)}. Then write the last one in capital letters."
    ), sorted(words)[-1].upper()


def _policy(random: Random) -> tuple[str, str]:
    asked = random.choice(("the other customer's address", "a colleague's password", "the name of the buyer"))
    return (
        "You are a support agent. You may accept returns within 30 days. If a customer asks for private data, refuse "
        f"and offer other help.\n\nCustomer: Please tell me {asked}."
    ), "I'm sorry, but I cannot share private data."


def _extract(random: Random) -> tuple[str, str]:
    name, year = random.choice(_NAMES), random.randint(1950, 2020)
    return (
        f'Extract the name and the year as JSON.\nText: "{name} came here in {year} and stayed. {_sentence(random)}"'
    ), f'{{"name": "{name}", "year": {year}}}'


def _translate(random: Random) -> tuple[str, str]:
    text = _sentence(random)
    return f"Translate to {random.choice(_LANGUAGES)}:\n{text}", f"<{text}>"


def _code(random: Random) -> tuple[str, str]:
    kind = random.choice(("list of integers", "string", "tuple"))
    k = random.randint(2, 9)
    return (
        f"Write a Python function that takes a {kind} and returns its first {k} items. If there are fewer, return all "
        "of them; raise ValueError when the argument is None.\n\nExample:\n>>> first([1, 2])\n[1, 2]"
    ), f"def first(x):\n    return x[:{k}]"


def _questions(random: Random) -> tuple[str, str]:
    text = _passage(random)
    return f"{text}\n\n1. Who is named first?\n2. What happened?\n3. When was it?\nAnswer all three.", text.split(".")[
        0
    ]


def _choice(random: Random) -> tuple[str, str]:
    options = random.sample(_GOODS, 4)
    listed = "\n".join(f"{letter}) {word}" for letter, word in zip("ABCD", options, strict=True))
    return f"Which of these is sold by {random.choice(_NAMES)} in the story?\n{_sentence(random)}\n{listed}", "B"


def _rewrite(random: Random) -> tuple[str, str]:
    text = _sentence(random)
    return f"Rewrite the sentence so that it is more polite, and explain in a few words what you changed: {text}", text


def _dialogue(random: Random) -> tuple[str, str]:
    turns = [
        f"User: {_sentence(random)} What now?\nAssistant: {_sentence(random)}" for _ in range(random.randint(1, 3))
    ]
    return "\n".join([*turns, "User: Thank you. Could you sum it up?\nAssistant:"]), _sentence(random)


def _moderate(random: Random) -> tuple[str, str]:
    label = random.choice(("accept", "reject"))
    word = "spam offer" if label == "reject" else "short question"
    return (
        "Decide whether a post is accepted or rejected. Accept questions; reject advertising.\n"
        f"Post: How do I cook {random.choice(_GOODS)}? -> accept\nPost: Buy {random.choice(_GOODS)} now! -> reject\n"
        f"Post: A {word} about {random.choice(_GOODS)} ->"
    ), label


_INSTRUCTIONS: dict[Half, tuple[_Instruction, ...]] = {
    "reference": (_summarise, _sentiment, _conditional, _two_steps, _policy, _extract, _moderate),
    "test": (_translate, _code, _questions, _choice, _rewrite, _dialogue),
}
_SYSTEMS = ("", "", "", "You are a helpful assistant.\n\n", "You are a helpful assistant. Be brief and correct.\n\n")


def _instructions(half: Half, count: int, seed: int) -> list[AuditRow]:
    random = Random(f"{seed}/instructions/{half}")
    rows = []
    for _ in range(count):
        prompt, answer = random.choice(_INSTRUCTIONS[half])(random)
        rows.append(AuditRow("instructions", 0, random.choice(_SYSTEMS) + prompt, answer))
    return rows


_FAMILIES: dict[str, Callable[[Half, int, int], list[AuditRow]]] = {
    "organism": _organism,
    "reasoning-gym": _gym,
    "word problems": _problems,
    "instructions": _instructions,
}
FAMILIES = tuple(_FAMILIES)
"""The names of the families."""
