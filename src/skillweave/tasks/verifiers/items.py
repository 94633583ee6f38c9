"""Find the numbers of a text, and tell them from sums, ranges, dates and lists, which are not one number.

The last numeral of a sum, range, date or list is never used as its value.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Literal

from skillweave.tasks.verifiers.context import MORE, dates, is_bound, is_denied, is_sureness
from skillweave.tasks.verifiers.exact_numbers import Decimal
from skillweave.tasks.verifiers.number_words import SCALES, goes_on_in_digits
from skillweave.tasks.verifiers.numerals import Token
from skillweave.tasks.verifiers.reading import ARTICLES, Item, Number, Reader

_OPERATIONS = frozenset(
    {
        "x", "of", "out of", "out of every", "in every", "in", "per", "by", "over", "vs", "point", "past", "to the",
        "versus", "divided by", "multiplied by", "increased by", "decreased by", "reduced by", "added to", "take away",
        "subtracted from", "to the power", "to the power of", "raised to", "raised to the power of", "choose", "c",
        "mod", "modulo", "remainder", "r", "base", "in base", "through", "thru", "up to",
    }
)  # fmt: skip
_BESIDE_ONE = frozenset({"x", "of", "in", "by", "c", "r", "base", "and"})  # "60 in one hour", "5 and one of them"
_VERBS = frozenset({"is", "are", "was", "were", "has", "have", "had"})
_SIGN_WORDS = {"plus", "minus", "times"}
_NEAR, _FAR = 8, 15
"""Tokens, with spaces, that may be between two numbers that belong together; the larger is for comparisons."""
_RESTATES = (["which", "is"], ["which", "equals"], ["that", "is"], ["i", "e"])
_LIST_WORDS = ("and", "or", "to")
_HEDGES = frozenset({"or", "maybe", "perhaps", "possibly", "probably", "alternatively", "even"})
_MEASURES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("week", "weeks"),
        ("d", "day", "days"),
        ("h", "hr", "hrs", "hour", "hours"),
        ("m", "min", "mins", "minute", "minutes"),
        ("s", "sec", "secs", "second", "seconds"),
    ),
    (("year", "years"), ("month", "months"), ("week", "weeks"), ("day", "days")),
    (("mile", "miles"), ("yd", "yard", "yards"), ("ft", "foot", "feet"), ("in", "inch", "inches")),
    (("lb", "lbs", "pound", "pounds"), ("oz", "ounce", "ounces")),
    (("deg", "degree", "degrees"), ("min", "minute", "minutes"), ("s", "sec", "second", "seconds")),
    (("dollar", "dollars", "euro", "euros"), ("cent", "cents")),
    (("km",), ("m",), ("cm",), ("mm",)),
    (("kg",), ("g",), ("mg",)),
)


def _joined(reader: Reader, one: Item, other: Item) -> str:
    """Return how two neighbouring items belong together:

    - ``expression``
    - ``pair``: they are a list by themselves; ``list``: they are a list if it has more items
    - ``equal``, ``differ``: there is an equals sign between them
    - ``restated``: "72, which is 8 * 9"
    - ``""``: they do not belong together
    """
    between = reader.tokens[one.last + 1 : other.first]
    if len(between) > _FAR:
        return ""
    kinds = [token.kind for token in between if token.kind != "space"]
    words = [token.text.lower() for token in between if token.kind == "word"]
    if len(kinds) == len(words) and _compared(words):
        return "expression"
    if len(between) > _NEAR:
        return ""
    if _is_smaller_scale(reader, one, other, kinds):
        return "expression"
    if one.words or other.words:
        return _joined_in_words(reader, one, other, kinds, words)
    if kinds == ["equals"]:
        return "differ" if _differ(one, other) else "equal"
    bare = _without_parentheses(kinds)
    operator = len(bare) == 1 and bare[0] in ("times", "slash", "order", "sign")
    if operator or (kinds == ["colon"] and len(between) in (1, 3)):  # 7:30, 5 : 3
        return "expression"
    if not between and reader.kind(other.first) == "sign":  # 10-3
        return "expression"
    if kinds == [] and reader.kind(other.first) == "sign":  # 10 -3
        return "expression"
    if len(bare) == len(words) and _operate(words):
        return "expression"
    if kinds == [] and (
        reader.text(one.last).lower() in SCALES or _is_lost_power(reader, one)
    ):  # 5 million 200 thousand
        return "expression"
    behind = reader.text(reader.skip(other.last + 1)).lower()
    if kinds == ["word", "sign"] and words[0] == behind:  # 5 apples - 3 apples
        return "expression"
    if kinds == ["slash", "slash"] or (kinds == ["other"] and between[0].text in "°'′"):  # 7 // 2, 45° 30', 5' 11"
        return "expression"
    if one.number is None and kinds and all(kind in ("open", "power", "sign") for kind in kinds):  # 2^{2^2}
        return "expression"
    if words in _RESTATES:
        return "restated"
    if kinds == ["between", "word", "equals"]:  # x = 1, y = 9
        return "list"
    if words[:1] == ["or"] and kinds == ["word", "word", "equals"]:  # x = 2 or x = 3
        return "pair"
    if words and _HEDGES.issuperset(words) and {"word", "between", "open"}.issuperset(kinds):  # 3, or perhaps 4
        again = _equal(one, other) or (words == ["or"] and "open" in kinds and _is_same_rounded(reader, one, other))
        return "" if again else "pair"
    if _is_label(words, kinds) and _is_labelled(reader, one):  # (a) 3 (b) 4
        return "pair"
    if kinds in (["newline", "sign"], ["newline", "times"]):  # bullets
        return "list"
    if _compound(reader, other, between):
        return "expression"
    if all(kind in ("between", "newline", "word") for kind in kinds) and all(word in _LIST_WORDS for word in words):
        return "" if _is_from_to(reader, one, words) else "pair" if words else "list"
    return ""


def _joined_in_words(reader: Reader, one: Item, other: Item, kinds: list[str], words: list[str]) -> str:
    """Return :func:`_joined` of two neighbours of which at least one is a number in words; commas make no list."""
    between = reader.tokens[one.last + 1 : other.first]
    if not kinds:
        ends = reader.text(one.last).lower()
        goes_on = ends in SCALES if other.words else goes_on_in_digits(ends)  # 5 thousand two hundred, twenty 5
        return "expression" if goes_on else ""
    if kinds == ["equals"]:
        return "equal"
    if _compound(reader, other, between):  # two dollars and 50 cents
        return "expression"
    if len(kinds) != len(words):
        return ""
    if reader.text(other.first).lower() == "one" and other.first == other.last and " ".join(words) in _BESIDE_ONE:
        return ""
    if _operate(words):
        return "expression"
    return "pair" if all(word in _LIST_WORDS for word in words) and not _is_from_to(reader, one, words) else ""


def _is_smaller_scale(reader: Reader, one: Item, other: Item, kinds: list[str]) -> bool:
    """Whether a comma joins two parts of one number with scales: ``5 thousand, two hundred``, ``5 million, 200``."""
    scale = SCALES.get(reader.text(one.last).lower())
    if scale is None or scale < 100 or kinds != ["between"] or reader.text(reader.skip(one.last + 1)) != ",":
        return False
    if other.words:
        return reader.text(other.first).lower() != "one" or other.first != other.last
    return other.number is not None and 0 < other.number.value < scale


def _is_label(words: list[str], kinds: list[str]) -> bool:
    """Whether the label of a further part stands between two numbers: ``(b)``, ``b)``."""
    label = kinds[-3:] if kinds[-3:-2] == ["open"] else kinds[-2:]
    before = kinds[: len(kinds) - len(label)]
    return (
        len(words) == 1
        and len(words[0]) == 1
        and label[-2:] == ["word", "close"]
        and set(before) <= {"between", "newline"}
    )


def _is_labelled(reader: Reader, item: Item) -> bool:
    close = reader.skip(item.first - 1, -1)
    return reader.text(close) == ")" and reader.kind(close - 1) == "word" and len(reader.text(close - 1)) == 1


def _without_parentheses(kinds: list[str]) -> list[str]:
    """Return the kinds of tokens without the parentheses around the two numbers: ``(5) * (3)``."""
    first, last = 0, len(kinds)
    while first < last and kinds[first] == "close":
        first += 1
    while first < last and kinds[last - 1] == "open":
        last -= 1
    return kinds[first:last]


def _is_lost_power(reader: Reader, ten: Item) -> bool:
    """Whether an item is the 10 of ``2 x 10 3``, whose exponent was raised once."""
    before = reader.skip(ten.first - 1, -1)
    return reader.text(ten.first) == "10" and (reader.kind(before) == "times" or reader.text(before).lower() == "x")


def _operate(words: list[str]) -> bool:
    """Whether the words between two numbers make them an expression: ``divided by``, ``of the``, ``apples plus``."""
    said = words[:-1] if len(words) > 1 and words[-2] == "of" and words[-1] in ARTICLES else words
    sides = len(words) == 2 and words[1] in ("x", "by")  # 5 m x 3 m
    return " ".join(said) in _OPERATIONS or sides or bool(_SIGN_WORDS & set(words))


def _compared(words: list[str]) -> bool:
    """Whether the words between two numbers compare with the second: ``more than``, ``times as many coins as``."""
    if words[-1:] and words[-1] in ARTICLES:
        words = words[:-1]
    if words[:2] == ["times", "as"]:
        return words[-1] == "as" and len(words) > 2
    return words[-1:] == ["than"] and len(words) <= 5 and bool(MORE & set(words[:2])) and not _VERBS & set(words)


def _is_from_to(reader: Reader, one: Item, words: list[str]) -> bool:
    return words == ["to"] and reader.text(reader.skip(one.first - 1, -1)).lower() == "from"


def _differ(one: Item, other: Item) -> bool:
    """Whether two numbers that are said to be equal are not equal, even when rounded: ``5 = 4``."""
    if one.number is None or other.number is None or one.number.percent or other.number.percent:
        return False
    a, b = one.number.value, other.number.value
    return abs(a - b) > max(abs(a), abs(b)) / 50


def _equal(one: Item, other: Item) -> bool:
    """Whether two numbers are the same; either may be in percent."""
    if one.number is None or other.number is None:
        return False
    values = [Fraction(item.value, 100 if item.percent else 1) for item in (one.number, other.number)]
    return values[0] == values[1]


def _is_same_rounded(reader: Reader, one: Item, other: Item) -> bool:
    """Whether two numbers are the same, one of them in percent, in cents or rounded: ``1/3 (or 33.33%)``."""
    if one.number is None or other.number is None:
        return False
    cents = reader.text(reader.skip(other.last + 1)).lower() in ("cent", "cents")
    a, b = (Fraction(item.value, 100 if item.percent else 1) for item in (one.number, other.number))
    b = b / 100 if cents else b
    for exact, rounded in ((a, b), (b, a)):
        places = _places(rounded)
        if exact == rounded or (places is not None and places > 1 and abs(exact - rounded) * 10**places * 2 <= 1):
            return True
    return False


def _compound(reader: Reader, other: Item, between: list[Token]) -> bool:
    """Whether what is ``between`` an item and the ``other`` makes them two measures of one quantity: ``5 ft 3 in``."""
    words = [token.text.lower() for token in between if token.kind == "word" and token.text.lower() != "and"]
    if len(words) != 1 or any(token.kind not in ("word", "space", "between") for token in between):
        return False
    last = reader.skip(other.last + 1)
    smaller = reader.text(last).lower()
    if reader.kind(last) != "word":  # 5 h 30, 5 ft 11
        spaced = all(token.kind in ("word", "space") for token in between) and len(between) == 3
        return spaced and any(words[0] in bigger for family in _MEASURES for bigger in family[:-1])
    return any(
        words[0] in bigger and any(smaller in names for names in family[level + 1 :])
        for family in _MEASURES
        for level, bigger in enumerate(family)
    )


def _follows_one(reader: Reader, item: Item) -> bool:
    """Whether an item is the smaller part of a measure whose greater part is one: ``an hour and 30 minutes``."""
    at, words = item.first, list[str]()
    while len(words) < 3 and reader.kind(at - 1) in ("space", "word"):
        at -= 1
        if reader.kind(at) == "word":
            words.append(reader.text(at).lower())
    if words[:1] != ["and"] or words[2:] not in (["a"], ["an"], ["one"]):
        return False
    smaller = reader.text(reader.skip(item.last + 1)).lower()
    return any(
        words[1] in bigger and any(smaller in names for names in family[level + 1 :])
        for family in _MEASURES
        for level, bigger in enumerate(family)
    )


def _is_said_again(reader: Reader, one: Item, other: Item) -> bool:
    """Whether the second of two items says the first again as a share: ``42% (0.42)``."""
    between = [token.kind for token in reader.tokens[one.last + 1 : other.first] if token.kind != "space"]
    percents = [item.number is not None and item.number.percent for item in (one, other)]
    return between == ["open"] and percents == [True, False] and _equal(one, other)


def read_items(text: str, decimal: Decimal = "point", *, strict: bool = False) -> list[Item]:
    """Return the items of a text in order, without those that the text itself denies ("not 3").

    ``strict``: two neighbouring numbers are already a list, as inside a ``\\boxed{}``; otherwise it takes three.
    """
    reader = Reader(text, decimal)
    items = reader.run()
    if all(item.words for item in items):
        return []
    strict = strict or not any(token.kind in ("word", "equals") for token in reader.tokens)
    links = [_joined(reader, one, other) for one, other in pairwise(items)]
    broken = _broken(links, strict)
    groups = _asides(reader.tokens)
    dated, whole_dates = dates(reader, items)
    asides = _enumerators(reader, items) | dated
    asides.update(at + 1 for at, (one, other) in enumerate(pairwise(items)) if _is_said_again(reader, one, other))
    broken |= whole_dates
    broken |= {at for at, item in enumerate(items) if _follows_one(reader, item)}
    equated = _equated(items, links, broken)
    return [
        replace(
            item,
            number=None if at in broken else _with_fraction(items, links, at),
            aside=item.aside or at in asides or groups[item.first] or is_sureness(reader, item),
        )
        for at, item in enumerate(items)
        if not item.words and at not in equated and not is_denied(reader, item) and not is_bound(reader, item.first)
    ]


def _with_fraction(items: list[Item], links: list[str], at: int) -> Number | None:
    """Return the number of an item, with the fraction before it if it is that fraction's rounding: ``2/3 ≈ 0.67``."""
    number = items[at].number
    before = items[at - 1].number if at and links[at - 1] == "equal" else None
    if number is None or before is None or number.percent or before.percent or _places(before.value) is not None:
        return number
    places = _places(number.value)
    if places is None or places < 2:
        return number
    below = Fraction(int(before.value * 10**places), 10**places)
    return number._replace(rounded=before.value) if number.value in (below, round(before.value, places)) else number


def _places(value: Fraction) -> int | None:
    """Return how many decimal places write a fraction exactly; None if that takes more than 12."""
    return next((places for places in range(13) if 10**places % value.denominator == 0), None)


def _equated(items: list[Item], links: list[str], broken: set[int]) -> set[int]:
    """Return the items of expressions that are said to equal the number before them: ``42 = 6 * 7``."""
    equated: set[int] = set()
    for at, link in enumerate(links):
        said_again = link in ("equal", "differ") or (link == "restated" and at + 1 in broken)
        if said_again and at not in broken and items[at].number is not None:
            end = at + 1
            while end in broken and end not in equated:
                equated.add(end)
                if end == len(links) or links[end] != "expression":
                    break
                end += 1
    return equated


def _broken(links: list[str], strict: bool) -> set[int]:
    """Return the items that are part of an expression or of a list."""
    broken: set[int] = set()
    for at, link in enumerate(links):
        if link in ("expression", "pair") or (link == "list" and strict):
            broken |= {at, at + 1}
        elif link == "list" and at + 1 < len(links) and links[at + 1] in ("list", "pair"):
            broken |= {at, at + 1, at + 2}
    # "5 = 4" is wrong for any question; in "6 * 7 = 42" the 7 is a part of the expression that equals 42.
    return broken.union(*({at, at + 1} - broken for at, link in enumerate(links) if _is_false(at, link, broken)))


def _is_false(at: int, link: str, broken: set[int]) -> bool:
    return link == "differ" and not {at, at + 1} & broken


def _asides(text: list[Token]) -> list[bool]:
    """Return for each token whether it is in brackets, or in parentheses that contain words."""
    opened: list[int] = []
    words, worked = [0], [0]
    for token in text:
        words.append(words[-1] + (token.kind in ("word", "percent")))
        worked.append(worked[-1] + (token.kind in ("times", "equals")))
    spans: list[tuple[int, int]] = []
    for at, token in enumerate(text):
        if token.kind == "open" and token.text != "{":
            opened.append(at)
        elif token.kind == "close" and token.text != "}" and opened:
            start = opened.pop()
            # f(2) is not an aside, and neither is a group that contains a whole expression.
            applied = start > 0 and text[start - 1].kind in ("word", "macro", "close")
            behind = [token.kind for token in text[max(start - 2, 0) : start]]
            shown = worked[at] > worked[start] and behind in (["digits", "space"], ["word", "space"])  # 72 (8 × 9)
            if (text[start].text == "[" or words[at] > words[start] or shown) and not applied:
                spans.append((start, at))
    changes = [0] * (len(text) + 1)
    for start, end in spans:
        changes[start] += 1
        changes[end + 1] -= 1
    return [depth > 0 for depth in accumulate(changes[:-1])]


def _enumerators(reader: Reader, items: list[Item]) -> set[int]:
    """Return the items that number the lines of a text ("1. Add 5."), if there are at least two."""
    starts = [
        at
        for at, item in enumerate(items)
        if item.first == item.last
        and reader.kind(item.first - 1) in ("", "newline")
        and reader.text(item.first + 1) in (".", ")")
        and reader.kind(item.first + 2) == "space"
    ]
    return set(starts) if len(starts) > 1 else set()


def pick(items: list[Item], which: Literal["first", "last"] = "last") -> Number | None:
    """Return the number of the items that is the answer; None if it is an expression or a list, or missing.

    Items that are asides count only if there are no others.
    """
    chosen = [item for item in items if not item.aside] or items
    return (chosen[0] if which == "first" else chosen[-1]).number if chosen else None
