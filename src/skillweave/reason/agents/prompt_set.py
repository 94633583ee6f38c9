"""Prompt templates: files that a user can edit, one for each thing that an agent is asked.

Two sets come with the package. ``general`` is for instruction-tuned chat models of any vendor. ``induction`` has very
short prompts, for a small model that was trained on exactly these prompts: its training rows are rendered from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from skillweave.artefact import atomic_folder, write_text
from skillweave.base.ends import TEMPLATE_ERRORS
from skillweave.base.template import MEMORY, SECONDS, TooLong, limited
from skillweave.errors import UserError, nearest
from skillweave.files.lock import claim
from skillweave.files.read import read_text
from skillweave.progress import say_once
from skillweave.reason.agents.prompt_values import bare_text
from skillweave.units import human_bytes

VARIABLES: dict[str, tuple[str, ...]] = {
    "propose_program": ("pairs", "avoid"),
    "propose_rule": ("pairs", "avoid"),
    "concepts": ("pairs", "avoid", "count"),
    "refine_program": ("pairs", "rule", "program", "failures", "note", "failed"),
    "refine_rule": ("pairs", "rule", "program", "failures", "note", "failed"),
    "criticise": ("pairs", "rule", "program", "failures"),
    "code": ("pairs", "rule"),
    "judge": ("pairs", "rule", "parent"),
    "answer": ("pairs", "input"),
    "repair": ("answer", "reason", "wanted"),
}
"""Each template and the variables that it may use.

- ``pairs``: the training pairs; each has ``input`` and ``output``, as Python literals
- ``avoid``: programs (or rules, where rules are asked for) that were tried already
- ``count``: how many rules are wanted
- ``rule``, ``program``: the hypothesis, in words and as Python; one of them may be empty
- ``failures``: the pairs that it does not solve; each has ``number``, ``input``, ``wanted`` and ``got``
- ``note``: what the critic said about it; may be empty
- ``failed``: programs (or rules) that were made from it and did not help
- ``parent``: the rule that the judged rule was made from; may be empty
- ``input``: the input whose output is wanted
- ``answer``, ``reason``, ``wanted``: an answer that could not be read, why, and the form that is wanted
"""

OPTIONAL = ("concepts", "repair")
"""Templates that may be empty: then several rules are asked for one by one, and nothing is repaired."""

NAMED = ("general", "induction")
"""The sets that come with the package."""

LARGEST_TEMPLATE = 2**16
"""Most bytes of a template."""
LONGEST_PROMPT = 2**20
"""Most characters of a prompt."""

_FOLDER = Path(__file__).parents[1] / "prompts"
_END = ".jinja"
_PAIRS = [{"input": "[1, 2]", "output": "[2]"}, {"input": "'a b'", "output": "None"}]
_SAMPLES: dict[str, Any] = {
    "pairs": _PAIRS,
    "avoid": ["def f(x):\n    return x"],
    "failures": [{"number": 1, "input": "[1, 2]", "wanted": "[2]", "got": "error: IndexError"}],
    "failed": ["def f(x):\n    return x[0]"],
    "count": 3,
}
"""Values for a trial rendering; the other variables are texts."""


class PromptSet:
    """The templates of one set, checked when they are read. Use :meth:`named` to open one."""

    def __init__(self, name: str, files: Mapping[str, Path]) -> None:
        self.name = name
        self._sources = {
            template: read_text(file, "a prompt template", largest=LARGEST_TEMPLATE) for template, file in files.items()
        }
        self._files = dict(files)
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        self._environment.filters["bare"] = bare_text
        self._templates = {template: self._compile(template) for template in self._sources}
        trials = {template: self._trial(template) for template in self._sources}
        self.repairs = bool(trials.get("repair"))
        """Whether an answer that cannot be read is repaired: the set has a ``repair`` template that is not empty."""
        self.lists_concepts = bool(trials.get("concepts"))
        """Whether several rules are asked for at once: the set has a ``concepts`` template that is not empty."""

    @classmethod
    def named(cls, name: str | Path) -> PromptSet:
        """The set of that name, or the set in a folder. Raises :class:`UserError` with file and line.

        A folder may hold only some of the templates. The others come from ``general``, and a note says so.
        """
        if str(name) in NAMED:
            folder = _FOLDER / str(name)
            return cls(str(name), {path.stem: path for path in sorted(folder.glob(f"*{_END}"))})
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(
                f"{name} is neither a folder of prompt templates nor a set that comes with the package "
                f"({', '.join(NAMED)})"
            )
        own = _own_files(folder)
        others = [template for template in VARIABLES if template not in own]
        if others:
            say_once(f"{folder}: these prompts come from the set 'general': {', '.join(others)}")
        general = {template: _FOLDER / "general" / f"{template}{_END}" for template in others}
        return cls(str(name), general | own)

    @property
    def digest(self) -> str:
        """Equal for equal templates; a part of a run's settings."""
        return hashlib.sha256(json.dumps(self._sources, sort_keys=True).encode()).hexdigest()[:16]

    def render(self, template: str, **values: Any) -> str:
        """The prompt that a template gives for the variables in :data:`VARIABLES`; all of them must be given."""
        if set(values) != set(VARIABLES[template]):
            raise TypeError(f"the template {template} takes {VARIABLES[template]}, not {tuple(values)}")
        if template not in self._templates:
            raise UserError(f"the prompt set '{self.name}' has no template {template}{_END}, which this run needs")
        parts, length = [], 0
        try:
            with self._stopped(template):
                for part in self._templates[template].generate(**values):
                    length += len(part)
                    if length > LONGEST_PROMPT:
                        raise UserError(
                            f"{self._files[template]}: the prompt has more than {LONGEST_PROMPT:,} characters: make "
                            "the template shorter, or give problems with fewer or smaller pairs"
                        )
                    parts.append(part)
        except TEMPLATE_ERRORS as error:
            raise self._broken(template, error) from error
        return "".join(parts).strip()

    def write(self, folder: str | Path) -> None:
        """Write the templates into a new folder, to be edited; an existing folder is not overwritten."""
        with claim(folder):
            if Path(folder).exists():
                raise UserError(
                    f"{folder} exists already, and your prompts in it are not overwritten: name a new folder"
                )
            with atomic_folder(folder) as temporary:
                for template, source in self._sources.items():
                    write_text(temporary / f"{template}{_END}", source)

    def _compile(self, template: str) -> Template:
        """The compiled template, with its file name, so that errors can name the line."""
        file, source = str(self._files[template]), self._sources[template]
        try:
            with self._stopped(template):  # a constant such as 'x' * 10**10 is computed here
                tree = self._environment.parse(source, template, file)
                self._check_names(template, tree)
                code = self._environment.compile(tree, template, file)
        except TemplateSyntaxError as error:
            raise UserError(f"{file}, line {error.lineno}: not a jinja template: {error.message}") from error
        except ValueError as error:  # a number of too many digits
            raise UserError(f"{file}: not a jinja template: {error}") from error
        except (RecursionError, SyntaxError):  # Python has no more than 20 loops inside each other
            raise UserError(f"{file}: the template is nested too deeply: write a simpler one") from None
        return self._environment.from_string("").from_code(self._environment, code, self._environment.make_globals({}))

    def _check_names(self, template: str, tree: nodes.Template) -> None:
        """Raise :class:`UserError` for a variable that the template may not use."""
        unknown = meta.find_undeclared_variables(tree) - {*VARIABLES[template], *self._environment.globals}
        if unknown:
            name = min(unknown)
            line = min(node.lineno for node in tree.find_all(nodes.Name) if node.name == name)
            raise UserError(
                f"{self._files[template]}, line {line}: there is no variable '{name}' in this prompt; "
                f"{nearest(name, VARIABLES[template])}"
            )

    @contextlib.contextmanager
    def _stopped(self, template: str) -> Iterator[None]:
        """Raise :class:`UserError` if what is computed inside takes too long or too much memory."""
        try:
            with limited(SECONDS):
                yield
        except (TooLong, MemoryError) as error:
            took = f"{SECONDS:g} seconds" if isinstance(error, TooLong) else f"{human_bytes(MEMORY)} of memory"
            raise UserError(
                f"{self._files[template]}: the template took more than {took} for one prompt, and was stopped: write a "
                "simpler one"
            ) from None

    def _trial(self, template: str) -> str:
        """A rendering with sample values, so that a mistake is found before the first call is paid."""
        texts = self.render(template, **{name: _SAMPLES.get(name, "text") for name in VARIABLES[template]})
        empty = {name: [] if name in _SAMPLES and name != "pairs" else "" for name in VARIABLES[template]}
        self.render(template, **(empty | ({"pairs": _PAIRS} if "pairs" in empty else {})))
        if not texts and template not in OPTIONAL:
            raise UserError(f"{self._files[template]}: the prompt is empty: write what the agent is to do")
        return texts

    def _broken(self, template: str, error: Exception) -> UserError:
        """The error for a template that fails while it is rendered, with its line."""
        file, line = str(self._files[template]), ""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == file:
                line = f", line {trace.tb_lineno}"
            trace = trace.tb_next
        why = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        known = "; see the variables of the templates in the documentation" if isinstance(error, UndefinedError) else ""
        return UserError(f"{file}{line}: the template cannot be rendered: {why}{known}")


def _own_files(folder: Path) -> dict[str, Path]:
    """The templates in a user's folder. Raises :class:`UserError` for another file: its name may be misspelt."""
    own = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix != _END or path.stem not in VARIABLES:
            known = [f"{template}{_END}" for template in VARIABLES]
            raise UserError(f"{path} is not a prompt template; {nearest(path.name, known)}")
        own[path.stem] = path
    if not own:
        raise UserError(f"{folder} holds no prompt template: known names are {', '.join(VARIABLES)}, each with {_END}")
    return own
