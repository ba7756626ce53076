"""Reading JSON configs: strict pydantic models, and errors that say where in which file and what is allowed there.

No torch. Used for model configs; any other JSON config of the project can be a `Strict` model read by `check(read_json)`.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from jukebox.errors import HparamsError

log = logging.getLogger(__name__)

Entry = TypeVar("Entry")
Array = Annotated[tuple[Entry, ...], Field(strict=False)]
"""A JSON array, kept as a tuple."""
Pair = Annotated[tuple[Entry, Entry], Field(strict=False)]
PositiveInts = Array[PositiveInt]


class Strict(BaseModel):
    """Frozen; an unknown key is an error that lists the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        allowed = sorted(cls.model_fields)
        for key in data:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, allowed, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                known = f"allowed here: {', '.join(allowed)}" if allowed else "this type has no settings"
                raise PydanticCustomError(
                    "unknown_key", "unknown key {key}; {rest}", {"key": key, "rest": hint + known}
                )
        return data


Kind = TypeVar("Kind", bound=str)
Args = TypeVar("Args", bound=Strict)


class Part(Strict, Generic[Kind, Args]):
    """A piece of the model: `type` chooses it, `config` holds its settings; frozen when `requires_grad` is false."""

    type: Kind
    config: Args
    requires_grad: bool = True

    @model_validator(mode="before")
    @classmethod
    def _config_may_be_absent(cls, data: Any) -> Any:
        return {"config": {}, **data} if isinstance(data, Mapping) else data


def refused(what: str, reasons: Mapping[str, str]) -> BeforeValidator:
    """Refuses some types of a part by name, with the reason."""

    def check(data: Any) -> Any:
        kind = data.get("type") if isinstance(data, Mapping) else None
        if isinstance(kind, str) and kind in reasons:
            raise PydanticCustomError(
                "refused_type", "{what} type {kind} is not offered: {why}",
                {"what": what, "kind": kind, "why": reasons[kind]},
            )  # fmt: skip
        return data

    return BeforeValidator(check)


def fail(where: str, message: str) -> PydanticCustomError:
    """An error at a dotted path below the object being validated."""
    return PydanticCustomError("misfit", "{message}", {"message": message, "where": where})


def refuse_keys(data: Any, reasons: Mapping[str, str]) -> Any:
    """`data` as it is, for a validator before the fields; an error where it has one of these keys."""
    for key, why in reasons.items():
        if isinstance(data, Mapping) and key in data:
            raise fail(key, why)
    return data


_STRING_OR_TRAILING_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])')


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. A comma before a closing bracket is accepted, with a warning that names its place.

    Raises HparamsError with file, line and column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HparamsError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_json(text, str(path))


def parse_json(text: str, file: str) -> dict[str, Any]:
    """As `read_json`, from a text; `file` is the name that messages give it."""

    def blank(match: re.Match[str]) -> str:
        if match[0] != ",":
            return match[0]
        line, column = text.count("\n", 0, match.start()) + 1, match.start() - text.rfind("\n", 0, match.start())
        log.warning("%s: line %d column %d: trailing comma, which JSON does not allow; ignored", file, line, column)
        return " "

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise HparamsError(f"{file}: the key {twice[0]} stands twice in one object; keep one")
        return dict(pairs)

    def no_constant(name: str) -> float:
        raise HparamsError(f"{file}: {name} is not a JSON number")

    try:
        tree = json.loads(
            _STRING_OR_TRAILING_COMMA.sub(blank, text), object_pairs_hook=no_key_twice, parse_constant=no_constant
        )
    except json.JSONDecodeError as error:
        raise HparamsError(f"{file}: line {error.lineno} column {error.colno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise HparamsError(f"{file}: nested too deeply to be a config") from error
    if not isinstance(tree, dict):
        raise HparamsError(f"{file}: a config is a JSON object, {{...}}")
    return tree


Model = TypeVar("Model", bound=BaseModel)


def check(kind: type[Model], tree: Mapping[str, Any], file: str) -> Model:
    """`tree` as a `kind`. Raises HparamsError: file, path inside the file, what is wrong and what is allowed."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_describe(detail, tree) for detail in error.errors(include_url=False)]
        raise HparamsError("\n".join(f"{file}: {line}" for line in lines)) from error


def _describe(detail: ErrorDetails, tree: Any) -> str:
    """One line for one fault. The names of union members, which pydantic puts into the path, are left out of it."""
    path = ""
    at: Any = tree
    for step in detail["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
            at = at[step] if isinstance(at, list) and step < len(at) else None
        elif isinstance(at, dict) and step not in at and step == at.get("type"):
            continue
        elif at is None or isinstance(at, dict):
            path += f".{step}"
            at = at.get(step) if isinstance(at, dict) else None
    context = detail.get("ctx", {})
    path += f".{context['where']}" if "where" in context else ""
    message = "this key is missing" if detail["type"] == "missing" else detail["msg"]
    if detail["type"] == "union_tag_invalid":
        message = f"unknown type {context['tag']!r}; allowed: {context['expected_tags']}"
    elif detail["type"] == "union_tag_not_found":
        message = "the key type is missing; it chooses what this is"
    given = f" (given: {detail['input']!r})" if isinstance(detail["input"], str | int | float | bool) else ""
    return f"{path.lstrip('.') or 'the whole file'}: {message}{given}"
