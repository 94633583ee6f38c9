r"""Normalise the spelling of numbers in a text, and split it into tokens.

``\frac{3}{4}`` and ``¾`` become ``3/4``, and ``10⁶`` becomes ``10^6``. Signs, spaces and LaTeX markup become plain
characters. A LaTeX command that computes something (``\sqrt{9}``) becomes the single token :data:`MACRO`, so that no
number is read from inside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

MACRO = "\\x"
"""Stands for a LaTeX command with all its arguments."""

_PLAIN = str.maketrans(
    {
        **dict.fromkeys(
            "\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}\N{WORD JOINER}\N{SOFT HYPHEN}"
            "\N{ZERO WIDTH NO-BREAK SPACE}\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}\N{ARABIC LETTER MARK}"
        ),
        **{chr(ord(plain) + 0xFEE0): plain for plain in "+,-./:;<=>%()[]{}^|$"},  # full width
        "\N{ARABIC DECIMAL SEPARATOR}": ".",
        "\N{ARABIC THOUSANDS SEPARATOR}": "'",
        "\N{ARABIC PERCENT SIGN}": "%",
        "\N{PER MILLE SIGN}": " thousandths",
        **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{FIGURE DASH}\N{NON-BREAKING HYPHEN}\N{SMALL HYPHEN-MINUS}", "-"),
        **dict.fromkeys("\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}\N{FIGURE SPACE}\t\r\v\f", " "),
        **dict.fromkeys("\N{MULTIPLICATION SIGN}\N{ASTERISK OPERATOR}", "×"),
        **dict.fromkeys("\N{MIDDLE DOT}\N{DOT OPERATOR}\N{BULLET OPERATOR}", "·"),
        **dict.fromkeys("\N{FRACTION SLASH}\N{DIVISION SLASH}", "/"),
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{EM DASH}": " ; ",
    }
)
_SUPERSCRIPT = {raised: str(digit) for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "-", "⁺": "+"}
_VULGAR_VALUES = "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/7 1/8 3/8 5/8 7/8 1/9 1/10 0/3"
_VULGAR = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒↉", _VULGAR_VALUES.split(" "), strict=True))


def _fraction(match: re.Match[str]) -> str:
    """A LaTeX fraction as ``3/4``, separated from digits on both sides."""
    above, below = (group.replace(" ", "") for group in match.groups() if group)
    before = " " if match.start() and match.string[match.start() - 1].isdigit() else ""
    behind = " " if match.string[match.end() : match.end() + 1].isdigit() else ""
    return f"{before}{above}/{below}{behind}"


def _fraction_of_small(above: str, below: str) -> str:
    """``¹/₂`` as ``1/2``."""
    lowered = below.translate({ord("₀") + digit: str(digit) for digit in range(10)})
    return " " + "".join(map(_SUPERSCRIPT.__getitem__, above)) + f"/{lowered}"


def _macro(_: re.Match[str]) -> str:
    return MACRO


_MARKS = re.compile(r"[\\<_~{]|\]\(|\[\^|\$\s?\^|\+/-|-\s?\(|[)/]\s?/|/\s?\(|[-=]>|\.[0-9]*\(|[0-9]!|\|[{(]?-")
_NESTED = 10
_APPLIED = re.compile(r"\\[A-Za-z]+(?:\[[^\[\]{}]*\])?\s{0,3}(?:\{[^{}]*\}\s{0,3}){1,2}")
_BARE = re.compile(r"\\(?:pi|infty|sqrt|ln|log|exp|sin|cos|tan|sum|int|prod|choose|bmod|pmod|mod)(?![A-Za-z])")
_WHOLE = r"-?[0-9.,]{1,60}"
_FRAC = r"\\(?:[dtc]|nice|s)?frac"
_UNIT = r"\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}[^{}]{0,5}\}"
_STEPS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"[^\D0-9]", lambda m: str(int(m[0]))),  # digits of other scripts
        (r"<<[^<>\n]*>>", " "),  # calculator annotations of GSM8K
        (r"</?[A-Za-z][\w-]{0,30}>", " "),  # tags
        (r"(?<![\w)<])<([-$€£]{0,2}[0-9][0-9.,/]{0,60}%?)>(?![\w(>])", r" \1 "),  # the brackets of a placeholder
        (r"~~[^~\n]{1,200}~~", " "),  # struck out
        (r"\[([^\[\]\n]{1,200})\]\((?:https?:/)?/[^\s()]{0,500}\)", r"\1"),  # a link
        (r"(?m)^\[\^\w{1,20}\]:[^\n]*$|\[\^\w{1,20}\]", " "),  # footnotes
        (r"\\lfloor(?:(?!\\rfloor)[^\n]){0,200}\\rfloor|\\lceil(?:(?!\\rceil)[^\n]){0,200}\\rceil", _macro),
        (r"⌊[^⌊⌋\n]{0,200}⌋|⌈[^⌈⌉\n]{0,200}⌉", _macro),
        (r"⁻(?=[0-9])", "-"),
        (r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![A-Za-z])|\\!", ""),
        (r"(?m)^[^\S\n]*[-=]{1,3}>", " "),  # an arrow before the answer
        (
            r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split|eqnarray|math|displaymath|center)\*?\}",
            " ",
        ),
        (r"\\(?:text)?color\s*\{[^{}]*\}|\\[hv]space\*?\s*\{[^{}]*\}", " "),
        (r"\\(?:bf|rm|it|tiny|small|large|Large|LARGE|huge|Huge)(?![A-Za-z])", " "),
        (r"\{,\}", ","),
        (r"\\[,;: ]|~|\\(?:quad|qquad|space)(?![A-Za-z])", " "),
        (r"\\[()\[\]]", " "),
        (r"\\\\", "\n"),
        (r"\\([%$#&_])", r"\1"),
        (r"\\textsuperscript(?=\s*\{)", "^"),
        (r"\$\s?([_^](?:\{[^{}$\n]{1,20}\}|[^\s{}$]{1,5}))\s?\$", r"\1"),  # the exponent alone in math mode: cm$^2$
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", "°"),
        (rf"{_FRAC}\s*(?:\{{\s*({_WHOLE})\s*\}}|([0-9]))\s*(?:\{{\s*({_WHOLE})\s*\}}|([0-9]))", _fraction),
        (rf"\{{\s*({_WHOLE})\s*\\over\s*({_WHOLE})\s*\}}", _fraction),
        (r"(?<![\w)])\(\s*(-?[0-9]{1,60})\s*\)\s?/\s?(?:\(\s*(-?[0-9]{1,60})\s*\)|([0-9]{1,60}))", _fraction),
        (r"(?<=[0-9])(\s?)/\s?\(\s*(-?[0-9]{1,60})\s*\)", r"\1/\2"),  # 1/(2)
        (  # 0.(3) and 0.3 with a line above repeat
            r"(?<![0-9.])(?:[0-9]{0,60}\.[0-9]{0,60}\([0-9]{1,60}\)|[0-9.]{0,60}[0-9][\u0304\u0305])",
            _macro,
        ),
        (r"(?<![0-9.])[0-9.]{0,60}[0-9]!(?=\s?[-+*/^×·$}]|\s=)", _macro),  # a factorial
        (r"\\l?vert(?![A-Za-z])[^\S\n]?|[^\S\n]?\\rvert(?![A-Za-z])", "|"),
        (r"\|[{(]?-[0-9][0-9./]{0,60}[)}]?\|", _macro),  # an absolute value
        (rf"{_FRAC}\s*{_UNIT}\s*{_UNIT}", r" \1/\2"),
        (r"\\(?:text|mathrm|mbox|textbf|mathbf|textrm|textit|mathit|emph|underline|boxed|fbox)\s*\{([^{}]*)\}", r" \1"),
        (r"\\(?:times|ast)(?![A-Za-z])", "×"),
        (r"\\cdot(?![A-Za-z])", "·"),
        (r"\\div(?![A-Za-z])", "÷"),
        (r"\\pm(?![A-Za-z])|\+/-", "±"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", "≈"),
        (r"\\sim(?![A-Za-z])", " "),
        (r"(?<![\w)\]}])-\s?[({]\s*([0-9][0-9.,]*(?:/[0-9]+)?)\s*[)}]", r"-\1"),
        (r"(?<![0-9])[0-9]{1,60}_\{[^{}]*\}", _macro),  # a numeral in another base
        (r"\\(?:leq?|geq?|neq?|lt|gt)(?![A-Za-z])", "<"),
        (r"(?<=[A-Za-z}])_(?:\{[^{}]*\}|[0-9A-Za-z])", ""),  # an index
        (r"([⁰¹²³⁴⁵⁶⁷⁸⁹]{1,60})/([₀₁₂₃₄₅₆₇₈₉]+)", lambda m: _fraction_of_small(m[1], m[2])),
        (r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + "".join(_SUPERSCRIPT[c] for c in m[0])),
        (r"([0-9]?)([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒↉])", lambda m: (f"{m[1]} " if m[1] else "") + _VULGAR[m[2]]),
    )
)


def plain_text(text: str) -> str:
    """Return the text in normalised spelling, as the docstring of the module describes."""
    text = text.translate(_PLAIN)
    if not text.isascii() or _MARKS.search(text):
        for pattern, put in _STEPS:
            text = pattern.sub(put, text)
        for _ in range(_NESTED):  # innermost first
            text, changed = _APPLIED.subn(_macro, text)
            if not changed:
                break
        text = _BARE.sub(_macro, text)
    return text


class Token(NamedTuple):
    """A token of a normalised text; ``kind`` is the name of a group of :data:`_TOKEN`."""

    kind: str
    text: str
    start: int
    end: int


_TOKEN = re.compile(
    r"""(?P<digits>\.?[0-9][0-9.,'_]*)
    |(?P<power>\*\*|\^)
    |(?P<macro>\\x|[√π∞∛])
    |(?P<word>[^\W\d_π]+(?:'[^\W\d_π]+)*)
    |(?P<sign>[-+])
    |(?P<times>[*×·])
    |(?P<slash>/)
    |(?P<order>[<>!]=|[<>≤≥≠±÷])
    |(?P<equals>[=≈])
    |(?P<open>[(\[{])
    |(?P<close>[)\]}])
    |(?P<percent>%)
    |(?P<currency>[$€£¥₹])
    |(?P<colon>:)
    |(?P<between>[,;|&])
    |(?P<end>[.!?](?=\s|$))
    |(?P<newline>\n)
    |(?P<space>[ ]+)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def tokens(text: str) -> list[Token]:
    """Split a normalised text into tokens. Digits keep their separators, except those that end a sentence."""
    split: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, piece, start, end = str(match.lastgroup), match[0], match.start(), match.end()
        if kind == "digits" and piece[-1] in ".,'_":
            number = piece.rstrip(".,'_")
            split.append(Token(kind, number, start, start + len(number)))
            tail = piece[len(number) :]
            split.append(Token({",": "between", ".": "end"}.get(tail, "other"), tail, start + len(number), end))
        else:
            split.append(Token(kind, piece, start, end))
    return split
