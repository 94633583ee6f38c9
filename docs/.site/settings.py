"""Writes the settings reference from the config classes.

    python docs/.site/settings.py            writes docs/reference/settings.md
    python docs/.site/settings.py --check    says whether that file is up to date (exit code 1 if it is not)

The file is committed, so that it can be read without building the site. `make docs` writes it again, and
`tests/docs/test_settings.py` fails when it is out of date.
"""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from skillweave.audit.data.config import DataAuditConfig
from skillweave.audit.model.config import ModelAuditConfig
from skillweave.audit.repair.inner_outer import RepairConfig
from skillweave.audit.rollouts.config import RolloutAuditConfig
from skillweave.config import ByteSize, Config
from skillweave.methods.cku.config import CkuConfig
from skillweave.methods.cku.neurons.score import NeuronScoreConfig
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.e3tir.config import E3tirConfig
from skillweave.methods.specialise.config import SpecialiseConfig
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.pipeline.config import WeaveConfig
from skillweave.reason.config import ReasonConfig
from skillweave.reason.induction.config import InductionConfig
from skillweave.reason.search.methods import SEARCH_METHODS
from skillweave.serve.settings import ServeConfig
from skillweave.skillzip import ZipConfig
from skillweave.tasks.builtin import BUILTINS
from skillweave.tasks.spec import BuiltinSpec, DatasetSpec, FileSpec, ReasoningGymSpec
from skillweave.tasks.verifiers.code import CodeOptions
from skillweave.tasks.verifiers.json_value import JsonOptions
from skillweave.tasks.verifiers.maths import MathOptions
from skillweave.tasks.verifiers.numeric import NumericOptions
from skillweave.tasks.verifiers.registry import MixOptions
from skillweave.tasks.verifiers.text import ExactOptions, RegexOptions
from skillweave.tasks.with_tools import ToolUse

PAGE = Path(__file__).parents[1] / "reference" / "settings.md"

# Every part of the page: its heading, how a person reaches the settings, and the class that holds them. The classes of
# nested settings follow below the class that uses them first.
PARTS: list[tuple[str, str, type[Config]]] = [
    ("weave.yaml", "The file of `skillweave build`: [Write a weave.yaml](../how-to/weave-yaml.md).", WeaveConfig),
    ("specialise", "[Write a weave.yaml](../how-to/weave-yaml.md#settings-of-specialise).", SpecialiseConfig),
    ("tpaw", "[Align on supervised data alone](../how-to/align.md).", TpawConfig),
    ("e3tir", "[Train an agent that calls tools](../how-to/agents.md).", E3tirConfig),
    ("cku unlearn", "[Take knowledge out of a model](../how-to/unlearn.md#unlearn).", CkuConfig),
    ("cku score", "[Look at the neurons](../how-to/unlearn.md#look-at-the-neurons).", NeuronScoreConfig),
    ("cku report", "[Judge the unlearning](../how-to/unlearn.md#judge-it).", ReportConfig),
    ("reason", "[Find the rule behind examples](../how-to/reason.md).", ReasonConfig),
    *(
        (f"reason: {name}", f"The settings of `--method {name}`: {method.about}.", method.config)
        for name, method in SEARCH_METHODS.items()
        if name not in ("refinement", "self-consistency")  # they have those of direct-python and io
    ),
    (
        "induction",
        "[A model that can do it offline](../how-to/reason.md#a-model-that-can-do-it-offline).",
        InductionConfig,
    ),
    ("audit rollouts", "[Audit rollouts](../how-to/audit-rollouts.md).", RolloutAuditConfig),
    ("audit data", "[Audit RLVR data before training](../how-to/audit-data.md).", DataAuditConfig),
    ("audit model", "[Audit a checkpoint or a pack](../how-to/audit-model.md).", ModelAuditConfig),
    ("audit repair", "[Repair it](../how-to/audit-model.md#repair-it).", RepairConfig),
    ("serve", "[Serve a weave](../how-to/serve.md).", ServeConfig),
    ("zip", "[Zip a fine-tune you have](../how-to/zip.md).", ZipConfig),
    ("tools of a model", "[A file for `--tools`](../how-to/agents.md#use-it).", ToolUse),
    ("task: data files", "[Bring your own task](../how-to/tasks.md#data-files).", FileSpec),
    ("task: datasets", "[Hugging Face datasets](../how-to/tasks.md#hugging-face-datasets).", DatasetSpec),
    ("task: reasoning-gym", "[reasoning-gym](../how-to/tasks.md#reasoning-gym).", ReasoningGymSpec),
    ("task: built-in generators", "[Built-in generators](../how-to/tasks.md#built-in-generators).", BuiltinSpec),
    *(
        (f"builtin:{name}", f"The `config` of `builtin:{name}`.", builtin.settings)
        for name, builtin in sorted(BUILTINS.items())
    ),
    ("verifier: exact", "`options` of [`exact`](../how-to/verifiers.md#exact).", ExactOptions),
    ("verifier: numeric", "`options` of [`numeric`](../how-to/verifiers.md#numeric).", NumericOptions),
    ("verifier: math", "`options` of [`math`](../how-to/verifiers.md#math).", MathOptions),
    ("verifier: json", "`options` of [`json`](../how-to/verifiers.md#json).", JsonOptions),
    ("verifier: regex", "`options` of [`regex`](../how-to/verifiers.md#regex).", RegexOptions),
    ("verifier: code", "`options` of [`code`](../how-to/code-verifier.md).", CodeOptions),
    ("verifier: mix", "`options` of [`mix`](../how-to/verifiers.md#mix).", MixOptions),
]

HEAD = """\
# Settings

<!-- Written by docs/.site/settings.py from the config classes. Do not edit it by hand. -->

This page lists every setting, with its type, its default and its meaning. It is generated from the classes that read
the settings, so it cannot differ from the code. The how-to pages explain how to use them.

- A key with a dot (`dpo.beta`) is written in YAML as a nested mapping, and on the command line as `--set dpo.beta=0.2`.
- "none" is `null` in YAML. "required" means that there is no default.
- Bytes may be written as a number or as `800MB` (10^6) or `1.5GiB` (2^30), a ratio as `1/32`.
- An unknown key is an error that names the nearest known key.

"""

_PLAIN = {
    str: "text",
    SecretStr: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "none",
}
_ROLE = re.compile(r":\w+:(?=`)")
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


def configs_in(annotation: Any) -> list[type[Config]]:
    """The config classes that a type names, in order."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) is Literal:
        return []
    return [cls for part in get_args(annotation) for cls in configs_in(part)]


def type_text(annotation: Any, headings: dict[type[Config], str]) -> str:
    """A type in the words of a YAML file; a config class becomes a link to its table."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation == ByteSize:
        return "bytes"
    if origin is Literal:
        return ", ".join(f"`{value}`" if isinstance(value, str) else str(value) for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(p, headings) for p in parts if p is not type(None)))
    if hasattr(annotation, "__metadata__"):
        return type_text(parts[0], headings)
    if origin in (list, tuple):
        inner = ", ".join(dict.fromkeys(type_text(p, headings) for p in parts if p is not Ellipsis))
        return f"list of {inner}"
    if origin is dict:
        return f"mapping of {type_text(parts[1], headings)}" if configs_in(parts[1]) else "mapping"
    if annotation in headings:
        return f"[{headings[annotation]}](#{slug(headings[annotation])})"
    return _PLAIN.get(annotation, "any value")


def default_text(field: FieldInfo) -> str:
    """The default as YAML would write it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "see there" if isinstance(value, Config) else _as_yaml(value)


def _as_yaml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(_as_yaml(item).strip('`') for item in value)}]`"
    return (
        f"`{value}`"
        if isinstance(value, str) and value
        else f"`{json.dumps(value, ensure_ascii=False, default=_plain)}`"
    )


def _plain(value: object) -> object:
    """The settings of a nested class as a mapping."""
    return value.model_dump(mode="json") if isinstance(value, Config) else str(value)


def row(name: str, field: FieldInfo, headings: dict[type[Config], str]) -> str:
    """One line of a table: key, type with its bounds, default, description."""
    bounds = [
        f"{sign} {getattr(rule, attribute):g}"
        for rule in field.metadata
        for attribute, sign in _BOUNDS.items()
        if getattr(rule, attribute, None) is not None
    ]
    kind = ", ".join([type_text(field.annotation, headings), *bounds])
    cells = (f"`{name}`", kind, default_text(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def slug(heading: str) -> str:
    """The anchor of a heading, as the site and GitHub make it."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def sections() -> dict[type[Config], tuple[str, str]]:
    """Every class on the page with its heading and introduction, nested classes after the first that uses them."""
    found: dict[type[Config], tuple[str, str]] = {}
    tops = {cls for _, _, cls in PARTS}

    def add(cls: type[Config], heading: str, intro: str) -> None:
        found[cls] = (heading, intro)
        for name, field in cls.model_fields.items():
            for nested in configs_in(field.annotation):
                if nested not in found and nested not in tops:
                    add(nested, f"{heading}: {name}", "")

    for heading, intro, cls in PARTS:
        add(cls, heading, intro)
    return found


def page() -> str:
    """The whole page."""
    known = sections()
    headings = {cls: heading for cls, (heading, _) in known.items()}
    blocks = [HEAD]
    for cls, (heading, intro) in known.items():
        summary = (cls.__doc__ or "").strip().partition("\n")[0].replace("``", "`")
        lead = " ".join(part for part in (_ROLE.sub("", summary), intro) if part)
        rows = [row(name, field, headings) for name, field in cls.model_fields.items() if name != "source"]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        blocks.append(f"## {heading}\n\n{lead}\n\n{table if rows else 'There are no settings.'}\n\n")
    return "".join(blocks).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` compare it with the file."""
    if "--check" not in arguments:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is out of date: run python {Path(__file__).name}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
