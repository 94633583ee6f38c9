"""Settings: strict pydantic classes, read from YAML and overridden with ``key.sub=value``.

An error for an unknown key names the file, the line and the nearest known key.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from skillweave.errors import UserError, nearest, shown_value
from skillweave.files.parse_yaml import parse_yaml, yaml_nodes
from skillweave.files.read import LARGEST_YAML, read_text


class Config(BaseModel):
    """The base class of all settings: unknown keys and numbers that make no sense are errors; values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # A validator of fields would be simpler, and pydantic refuses one for the field that tells kinds of tasks apart.
    @model_validator(mode="before")
    @classmethod
    def _check_flags(cls, values: Any) -> Any:
        # YAML reads yes and on as true, which pydantic would take for the number 1.
        flags = {
            name: values[name]
            for name, field in (cls.model_fields.items() if isinstance(values, Mapping) else ())
            if isinstance(values.get(name), bool) and _is_number(field)
        }
        if flags:
            wrong = PydanticCustomError(
                "flag", "a number is expected, not true or false (in YAML also yes, no, on, off)"
            )
            raise ValidationError.from_exception_data(
                cls.__name__,
                [InitErrorDetails(type=wrong, loc=(name,), input=value) for name, value in flags.items()],
            )
        return values

    @field_validator("*")
    @classmethod
    def _check_whole(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= _WHOLE:
            raise ValueError("a whole number of at most 18 digits is expected")
        return value


C = TypeVar("C", bound=Config)
_WHOLE = 10**18
"""No setting is this large, and neither random generators nor the cards of artefacts take more than 64 bits."""


def _is_number(field: FieldInfo) -> bool:
    """Whether a setting takes numbers, and neither true nor false."""
    kinds: set[Any] = set()
    left: list[Any] = [field.annotation]
    while left:
        kind = left.pop()
        kinds.add(kind)
        left += get_args(kind)
    return bool({int, float} & kinds) and not {bool, Any} & kinds


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MOST_BYTES = 2.0**63
_AS_BYTES = "write bytes as 800MB, 1.5GiB or a plain number"


def _parse_bytes(value: Any) -> Any:
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, str):
            raise ValueError(f"this is no number of bytes: {_AS_BYTES}")
        return value
    unit = match[2].upper()
    if unit not in _UNITS:
        raise ValueError(f"unknown unit '{match[2]}': {_AS_BYTES}")
    count = float(match[1]) * _UNITS[unit]
    if count >= _MOST_BYTES:
        raise ValueError(f"that is more bytes than any machine has: {_AS_BYTES}")
    return int(count)


def _parse_ratio(value: Any) -> Any:
    match = re.fullmatch(r"\s*([\d.]+)\s*/\s*([\d.]+)\s*", value) if isinstance(value, str) else None
    return float(match[1]) / float(match[2]) if match and float(match[2]) else value


ByteSize = Annotated[int, BeforeValidator(_parse_bytes)]
"""A number of bytes; texts such as ``"800MB"`` (10^6) and ``"1.5GiB"`` (2^30) are accepted too."""

Ratio = Annotated[float, BeforeValidator(_parse_ratio), PlainSerializer(lambda value: value)]
"""A fraction; a text such as ``"1/32"`` is accepted too."""


def read_config(
    cls: type[C],
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    called: str = "the given settings",
) -> C:
    """Settings of the class ``cls``, read from a YAML file or a mapping.

    - ``overrides`` are texts ``key.sub=value``, which replace what the source says.
    - ``called`` is the name of a mapping in errors.

    Raises :class:`UserError` with file, line, key and the nearest known key.
    """
    text, where = "", called
    if source is None or isinstance(source, Mapping):
        values = copy.deepcopy(dict(source or {}))
    else:
        where = str(source)
        text = read_text(source, "a YAML file", largest=LARGEST_YAML)
        values = parse_yaml(text, where)
        values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, found {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, cls, where, text, overrides)) from error
    except UserError as error:  # a part of the settings that names itself, but not its file
        if source is None or isinstance(source, Mapping) or where in str(error):
            raise
        raise UserError(f"{where}: {error}") from error
    except RecursionError:  # a regular expression, or another text that a library parses recursively
        raise UserError(f"{where}: a value is nested too deeply: write a simpler one") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, without checking the keys. Raises :class:`UserError`."""
    values = parse_yaml(read_text(path, "a YAML file", largest=LARGEST_YAML), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    """Put the value of ``key.sub=value`` into the values. No error shows it: it may be a secret."""
    key, sign, raw = override.partition("=")
    if not sign or not key:
        begins = re.match(r"[\w.-]*", override)
        shown = begins[0] if begins else ""
        raise UserError(f"--set {shown}...: write key=value, for example --set seed=1")
    *parents, last = key.split(".")
    for parent in parents:
        step: Any = values.get(parent, {})
        if not isinstance(step, dict):
            raise UserError(f"--set {key}=...: '{parent}' holds a value, not keys of its own")
        # A copy: with a YAML anchor, several keys have the same mapping, and only this one is overridden.
        values[parent] = dict(step)
        values = values[parent]
    try:
        values[last] = parse_yaml(raw, "")
    except UserError:
        raise UserError(
            f"--set {key}=...: the value is not valid YAML: put a text with other characters than letters and digits "
            "in quotes, inside those of the shell"
        ) from None


def _explain(error: ValidationError, cls: type[BaseModel], where: str, text: str, overrides: Sequence[str]) -> str:
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path)
        line = _line_of(text, path)
        # Of two overrides of one key the last one counts.
        override = next((o for o in reversed(overrides) if f"{key}.".startswith(f"{o.partition('=')[0]}.")), None)
        # A misspelt name may be that of a secret.
        secret = problem["type"] == "extra_forbidden" or _is_secret(cls, path)
        given = f"{key}=..." if override and secret else override
        place = f"--set {given}" if override else f"{where}, line {line}" if line else where
        if problem["type"] == "extra_forbidden":
            known = _fields_at(cls, path[:-1])
            deeper = _places_below(cls, path[:-1], path[-1])
            hint = f"did you mean {' or '.join(map(repr, deeper))}?" if deeper else nearest(path[-1], known)
            lines.append(f"{place}: unknown key '{key}'; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: the key '{key}' is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            shown = (
                f" (found {shown_value(problem['input'])})" if key and not secret and "(found " not in message else ""
            )
            # Without a key, several settings do not fit together, and the message itself names them.
            lines.append(f"{place}: {': '.join(part for part in (key, message) if part)}{shown}")
    return "\n".join(lines)


def _is_secret(cls: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether the value at ``path`` below ``cls`` must not be shown."""
    fields = (model.model_fields.get(path[-1]) for model in _models_at(cls, path[:-1]) if path)
    return any(SecretStr in (field.annotation, *get_args(field.annotation)) for field in fields if field)


def _fields_at(cls: type[BaseModel], path: Sequence[str]) -> set[str]:
    """The field names of the class at ``path`` (field names, mapping keys and indices) below ``cls``."""
    return {name for model in _models_at(cls, path) for name in model.model_fields}


def _places_below(cls: type[BaseModel], path: Sequence[str], name: str) -> list[str]:
    """The keys of settings called ``name`` one level below ``path``: people often leave that level out."""
    return sorted(
        {
            ".".join([*path, group, name])
            for model in _models_at(cls, path)
            for group, field in model.model_fields.items()
            if get_origin(field.annotation) not in (dict, list, tuple)
            and any(name in inner.model_fields for inner in _models_in(field.annotation))
        }
    )


def _models_at(cls: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    models = [cls]
    for part in path:
        models = [
            inner
            for model in models
            for inner in (_models_in(model.model_fields[part].annotation) if part in model.model_fields else [model])
        ]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _line_of(text: str, path: Sequence[str]) -> int | None:
    """The line (from 1) of the YAML node at ``path``, or of the nearest node above it that the file has."""
    node = yaml_nodes(text, "") if text else None
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line
