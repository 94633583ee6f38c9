"""Read what the agents answer: pure functions from a text to a program, a rule, a note, a judgement or an output.

The form is read leniently: JSON as models write it, a fenced block, or the bare text. The content is checked strictly,
and nothing is guessed. Every function raises :class:`UnreadableAnswer` with a reason that a person (and the model, when
it is asked to repair its answer) understands. Thoughts of reasoning models are removed first.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from skillweave.base.thoughts import strip_thoughts
from skillweave.errors import shown_value
from skillweave.reason.hypothesis import Judgement, Note
from skillweave.reason.problem import Value
from skillweave.tasks.verifiers.code_block import extract_code
from skillweave.tools.lenient import read_json
from skillweave.tools.source import parse

LONGEST_RULE = 2_000
"""Most characters of a rule or a note."""
_TRIES = 50
"""The search for a JSON object continues after at most so many brackets that open none."""

_RULE = re.compile(
    r"^[ \t>#*_-]*rule[*_]*[ \t]*:[*_]*[ \t]*(?P<text>\S.*(?:\n(?![ \t]*(?:```|~~~|def |\n|\Z)).+)*)", re.I | re.M
)
_OUTPUT = re.compile(r"^[ \t>#*_-]*(?:the )?(?:output|answer|result)(?: is)?[*_]*[ \t]*[:=][*_]*[ \t]*", re.I)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.M)
_BEGINS = re.compile(r"^(?:def |import |from |class |@)", re.M)
_YES_NO = re.compile(r"[\"'*_]*(yes|no)[\"'*_.!]*", re.I)

PROGRAM_FORM = "Rule: the rule in one or two sentences\n```python\ndef f(x):\n    ...\n```"
CODE_FORM = "```python\ndef f(x):\n    ...\n```"
RULE_FORM = '{"rule": "the rule in a few sentences"}'
RULES_FORM = '{"rules": ["one rule", "a different rule"]}'
NOTE_FORM = '{"part": "the part of the rule that is wrong", "why": "why it is wrong", "pair": 1}'
JUDGEMENT_FORM = '{"consistent": 0.5, "says_more": false}'
OUTPUT_FORM = '{"output": ...}'


class UnreadableAnswer(Exception):
    """An answer is not in the wanted form. The message is the reason, as a part of a sentence."""


@dataclass(frozen=True)
class ReadProgram:
    """A program that was found in an answer.

    - ``rule``: the rule in words that the answer gives beside it; may be empty
    - ``renamed``: the name that the answer gave the function, if that was not ``f``; the program then ends with a line
      that makes ``f`` another name of it
    """

    program: str
    rule: str
    renamed: str | None = None


def read_program(text: str) -> ReadProgram:
    """The program in an answer: in JSON under "program", in a fenced block, or bare.

    It must be Python and define a function ``f`` at its top level that takes exactly one required argument. If it has
    no ``f`` but one function that does, that one is taken.
    """
    answer = _answer(text)
    found = _object_with(answer, "program")
    if found is None:
        source, rule = answer, _marked_rule(answer)
        begin = _BEGINS.search(answer)
        if begin and not _FENCE.search(answer):  # "Rule: x" before the program would be valid Python too
            source = answer[begin.start() :]
    else:
        if not isinstance(found["program"], str):
            raise UnreadableAnswer(f'"program" must be a text, not {shown_value(found["program"])}')
        source, given = found["program"], found.get("rule")
        rule = _one_line(given) if isinstance(given, str) else ""
    program = extract_code(source, frozenset({"f"})).strip("\n").rstrip()
    try:
        tree = parse(program)
    except SyntaxError as error:
        if not re.search(r"\b(?:def|lambda)\b", source):
            raise UnreadableAnswer("there is no Python function in it") from error
        line = f", line {error.lineno}" if error.lineno else ""
        raise UnreadableAnswer(f"the program is not valid Python{line}: {error.msg}") from error
    name = _function_of_one_argument(tree)
    if name == "f":
        return ReadProgram(program, rule)
    return ReadProgram(f"{program}\n\nf = {name}", rule, renamed=name)


def read_rule(text: str) -> str:
    """The rule in an answer, on one line: in JSON under "rule", after ``Rule:``, or the only line of the answer."""
    answer = _answer(text)
    found = _object_with(answer, "rule")
    if found is not None:
        return _checked_line(found["rule"], "rule")
    return _checked_line(_marked_rule(answer) or _only_line(answer, 'there is no "rule" in it'), "rule")


def read_rules(text: str) -> list[str]:
    """Several rules: JSON under "rules", a list of texts."""
    found = _object_with(_answer(text), "rules")
    if found is None:
        raise UnreadableAnswer('there is no "rules" in it')
    if not isinstance(found["rules"], list) or not found["rules"]:
        raise UnreadableAnswer(f'"rules" must be a list of texts, not {shown_value(found["rules"])}')
    return [_checked_line(rule, "rules") for rule in found["rules"]]


def read_note(text: str, pairs: int) -> Note:
    """The critic's note: JSON with "why" and perhaps "part" and "pair", or the only line of the answer.

    "pair" counts the ``pairs`` training pairs from 1, as the prompt does.
    """
    answer = _answer(text)
    found = _object_with(answer, "why")
    if found is None:
        return Note(part="", why=_checked_line(_only_line(answer, 'there is no "why" in it'), "why"))
    part, pair = found.get("part"), found.get("pair")
    if pair is not None and (type(pair) is not int or not 1 <= pair <= pairs):
        raise UnreadableAnswer(f'"pair" must be the number of an example, from 1 to {pairs}, not {shown_value(pair)}')
    return Note(
        part="" if part is None or part == "" else _checked_line(part, "part"),
        why=_checked_line(found["why"], "why"),
        pair=None if pair is None else pair - 1,
    )


def read_judgement(text: str) -> Judgement:
    """The judge's opinion: JSON with "consistent" (from 0 to 1) and "says_more" (true or false), or yes or no.

    "yes" is a consistency of 1 and "no" one of 0; neither says that the rule says more than its parent.
    """
    answer = _answer(text)
    if match := _YES_NO.fullmatch(answer):
        return Judgement(consistent=float(match[1].lower() == "yes"), says_more=False)
    found = _object_with(answer, "consistent")
    if found is None:
        raise UnreadableAnswer('there is no "consistent" in it')
    consistent, says_more = found["consistent"], found.get("says_more")
    if type(consistent) not in (int, float) or not 0 <= consistent <= 1:
        raise UnreadableAnswer(f'"consistent" must be a number from 0 to 1, not {shown_value(consistent)}')
    if not isinstance(says_more, bool):
        raise UnreadableAnswer(f'"says_more" must be true or false, not {shown_value(says_more)}')
    return Judgement(consistent=float(consistent), says_more=says_more)


def read_output(text: str, *, texts: bool) -> Value:
    """The output that an answer gives: in JSON under "output", or as a literal on the last line.

    ``texts``: the outputs of the problem are texts. Then the words on a line of their own are an output too, if the
    answer has no other line or the line begins with ``Output:``.
    """
    answer = _answer(text)
    found = _object_with(answer, "output")
    if found is not None:
        return _plain(found["output"])
    lines = [line for line in answer.splitlines() if line.strip() and not line.strip().startswith(("```", "~~~"))]
    last = lines[-1].strip() if lines else ""
    bare = _OUTPUT.sub("", last).strip().strip("`").strip()
    try:
        value = _plain(_literal(bare))
    except UnreadableAnswer:
        if texts and bare and (len(lines) == 1 or _OUTPUT.match(last)):
            return bare
        raise
    return bare if texts and not isinstance(value, str) else value


def _answer(text: str) -> str:
    """The answer without thoughts."""
    answer = strip_thoughts(text).strip()
    if not answer:
        raise UnreadableAnswer("it is empty" if not text.strip() else "it holds a thought but no answer")
    return answer


def _object_with(text: str, key: str) -> dict[str, Any] | None:
    """The last JSON object in a text that has the key; objects inside of it do not count."""
    found, at, tries = None, 0, 0
    while (at := text.find("{", at)) >= 0 and tries < _TRIES:
        try:
            value, at, _ = read_json(text, at)
        except (ValueError, RecursionError):
            at, tries = at + 1, tries + 1
            continue
        if isinstance(value, dict) and key in value:
            found = value
    return found


def _marked_rule(text: str) -> str:
    """What a text says after ``Rule:`` up to an empty line or the program; empty if it says nothing."""
    match = _RULE.search(text)
    return _one_line(match["text"]) if match else ""


def _only_line(text: str, otherwise: str) -> str:
    """A text of one line. Several lines are not taken for the answer, because some may be talk."""
    if "\n" in text or text.startswith(("{", "[", "```")):
        raise UnreadableAnswer(otherwise)
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _checked_line(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UnreadableAnswer(f'"{key}" must be a text that is not empty, not {shown_value(value)}')
    line = _one_line(value)
    if len(line) > LONGEST_RULE:
        raise UnreadableAnswer(f'"{key}" has {len(line):,} characters, more than {LONGEST_RULE:,}')
    return line


def _function_of_one_argument(tree: ast.Module) -> str:
    """``f``, or the name of the only function at the top level that takes one required argument."""
    functions: dict[str, ast.arguments] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node.args
        elif isinstance(node, ast.AsyncFunctionDef) and node.name == "f":
            raise UnreadableAnswer("f is an async function: write a plain function")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if isinstance(node.value, ast.Lambda):
                functions[node.targets[0].id] = node.value.args
            elif isinstance(node.value, ast.Name) and node.value.id in functions:
                functions[node.targets[0].id] = functions[node.value.id]
    if "f" in functions:
        if (count := _required(functions["f"])) != 1:
            raise UnreadableAnswer(f"f must take exactly one required argument, but it takes {count}")
        return "f"
    fitting = [name for name, arguments in functions.items() if _required(arguments) == 1]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UnreadableAnswer("it defines no function f that takes one argument")
    raise UnreadableAnswer(
        f"it defines no function f, but several others ({', '.join(fitting[:5])}): name one of them f"
    )


def _required(arguments: ast.arguments) -> int:
    """How many arguments a caller must give; those that must be given by name can never be given, so they count."""
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional + sum(default is None for default in arguments.kw_defaults)


def _literal(text: str) -> Any:
    """The value of a Python or JSON literal."""
    try:
        value, end, _ = read_json(text, 0)
        if end == len(text):
            return value
    except (ValueError, RecursionError):
        pass
    try:
        tree = parse(text)
        if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
            return ast.literal_eval(tree.body[0].value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise UnreadableAnswer("its last line is not a value")


def _plain(value: Any) -> Value:
    """The value with lists in place of tuples, if it is plain data as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(one) for key, one in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UnreadableAnswer(f"{shown_value(value)} is not a value that JSON has")
