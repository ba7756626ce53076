"""Sections of hyperparameters, and the set that defaults, presets and flags resolve to.

A package declares the keys it reads once, in its `hps.py`:

    @section("vqvae", "VQ-VAE")
    class VQVAEHps:
        width: int = key(128, "channels of the encoders and decoders", gt=0)

A section is a frozen pydantic dataclass. Its field names are the names in presets and on the command line; a key with
the name of a Python keyword has a field with an underscore behind it (`from_`).
"""

import difflib
import json
import keyword
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
import pydantic.dataclasses

from jukebox.errors import HparamsError
from jukebox.hparams.flags import Kind, Value, spell

S = TypeVar("S")
DEFAULT = "default"


@dataclass(frozen=True)
class Key:
    """All that is known about one hyperparameter."""

    name: str
    kind: Kind
    default: Value
    text: str
    unit: str
    example: str
    section: type


def key(default: Value, text: str, *, unit: str = "", example: str = "", **bounds: float) -> Any:
    """Declares a hyperparameter: its default, a sentence on it (with special values), its unit, an example value.

    `bounds` are pydantic's: gt, ge, lt, le, multiple_of.
    """
    extra: dict[str, Any] = {"unit": unit, "example": example}
    return pydantic.Field(default, description=text, json_schema_extra=extra, **cast(Any, bounds))


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(name: str, title: str) -> Callable[[type[S]], type[S]]:
    """Makes a class of `key` declarations a section: `name` for `--help name`, `title` above its keys."""

    def decorate(cls: type[S]) -> type[S]:
        config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
        made = cast(Any, pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=config))
        made.__section__ = (name, title)
        made.__keys__ = _declared(made)
        return cast(type[S], made)

    return decorate


def name_of(cls: type) -> str:
    """The short name of a section, as in `--help vqvae`."""
    return str(cast(Any, cls).__section__[0])


def title_of(cls: type) -> str:
    """The heading of a section."""
    return str(cast(Any, cls).__section__[1])


def field_name(name: str) -> str:
    """The field of a key: its name, which must not be a keyword of Python."""
    return f"{name}_" if keyword.iskeyword(name) else name


def keys_of(cls: type) -> Mapping[str, Key]:
    """The keys a section declares, in order."""
    return cast(Mapping[str, Key], cast(Any, cls).__keys__)


def _declared(cls: Any) -> Mapping[str, Key]:
    hints = typing.get_type_hints(cls)
    found = {}
    for name, info in cls.__pydantic_fields__.items():
        extra = info.json_schema_extra
        kind, name = Kind.of(hints[name]), name.removesuffix("_")
        found[name] = Key(name, kind, info.default, info.description, extra["unit"], extra["example"], cls)
    return MappingProxyType(found)


@dataclass(frozen=True)
class Layer:
    """Values from one origin: a preset, the command line, a checkpoint. Later layers win."""

    origin: str
    values: Mapping[str, Value]


class Schema:
    """The sections that belong together; every key stands in exactly one of them."""

    def __init__(self, sections: Sequence[type]) -> None:
        self.sections = tuple(sections)
        self.keys: dict[str, Key] = {}
        for cls in sections:
            for name, declared in keys_of(cls).items():
                assert name not in self.keys, f"{name} is declared by {cls} and {self.keys[name].section}"
                self.keys[name] = declared

    @property
    def kinds(self) -> dict[str, Kind]:
        return {name: declared.kind for name, declared in self.keys.items()}

    def convert(self, name: str, value: object, where: str) -> Value:
        """A value from TOML, Python or a checkpoint in the type of its key; HparamsError says where it stood."""
        try:
            return self.keys[name].kind.convert(value)
        except ValueError as error:
            raise HparamsError(f"{where}: {name} = {value!r}: {error}. See --help {name}.") from None

    def resolve(self, layers: Iterable[Layer]) -> "Resolved":
        """Defaults, then the layers from left to right."""
        values: dict[str, Value] = {name: declared.default for name, declared in self.keys.items()}
        origins = dict.fromkeys(values, DEFAULT)
        for layer in layers:
            values.update(layer.values)
            origins.update(dict.fromkeys(layer.values, layer.origin))
        return Resolved(self, values, origins)

    def nearest(self, name: str) -> list[str]:
        """Up to three known names that look like `name`, or that it lengthens or shortens."""
        alike = difflib.get_close_matches(name, self.keys, n=3, cutoff=0.6)
        if len(name) < 4:
            return alike
        akin = [key for key in self.keys if key.startswith(name) or (len(key) > 3 and name.startswith(key))]
        return list(dict.fromkeys([*alike, *akin]))[:3]


class Resolved:
    """Every key of a program with its value and where that came from; frozen, and valid by construction."""

    def __init__(self, schema: Schema, values: Mapping[str, Value], origins: Mapping[str, str]) -> None:
        self.schema = schema
        self.origins: Mapping[str, str] = MappingProxyType(dict(origins))
        self._sections: dict[type, object] = {cls: _build(cls, values, origins) for cls in schema.sections}
        self.values: Mapping[str, Value] = MappingProxyType(
            {name: getattr(self._sections[key.section], field_name(name)) for name, key in schema.keys.items()}
        )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Copies and pickles like any value."""
        return Resolved, (self.schema, dict(self.values), dict(self.origins))

    def section(self, cls: type[S]) -> S:
        """The values of one section, as its own type."""
        return cast(S, self._sections[cls])

    def given(self, name: str) -> bool:
        """True when a preset, flag or checkpoint set this key, even to its default."""
        return self.origins[name] != DEFAULT

    def with_values(self, origin: str, **values: object) -> "Resolved":
        """A copy in which `values` win; `origin` is what --print_hps then shows for them."""
        converted = {}
        for name, value in values.items():
            if name not in self.schema.keys:
                raise HparamsError(f"{origin}: there is no hyperparameter {name}.{suggestion(self.schema, name)}")
            converted[name] = self.schema.convert(name, value, origin)
        origins = {**self.origins, **dict.fromkeys(converted, origin)}
        return Resolved(self.schema, {**self.values, **converted}, origins)

    def differences(self, other: "Resolved") -> dict[str, tuple[Value, Value]]:
        """The keys in which two sets differ, with the values of both."""
        shared = self.values.keys() & other.values.keys()
        return {
            name: (self.values[name], other.values[name])
            for name in self.values
            if name in shared and self.values[name] != other.values[name]
        }

    def to_toml(self) -> str:
        """Every value with a comment that says where it came from; `--hps=FILE` reads it back."""
        blocks = []
        for cls in self.schema.sections:
            lines = [f"# {title_of(cls)}"]
            lines += [f"{name} = {_toml(self.values[name])}  # {self.origins[name]}" for name in keys_of(cls)]
            blocks.append("\n".join(lines) + "\n")
        return "\n".join(blocks)


def suggestion(schema: Schema, name: str) -> str:
    """` Did you mean --width (VQ-VAE: channels of ...)?`, or nothing."""
    near = schema.nearest(name)
    if not near:
        return ""
    best = schema.keys[near[0]]
    others = f" Or {', '.join('--' + other for other in near[1:])}?" if near[1:] else ""
    return f" Did you mean --{best.name} ({title_of(best.section)}: {best.text})?{others}"


def _build(cls: type[S], values: Mapping[str, Value], origins: Mapping[str, str]) -> S:
    try:
        return cls(**{field_name(name): values[name] for name in keys_of(cls)})
    except pydantic.ValidationError as error:
        raise HparamsError("\n".join(_fault(fault, values, origins) for fault in error.errors())) from None


def _fault(fault: Any, values: Mapping[str, Value], origins: Mapping[str, str]) -> str:
    """One line on a value out of range: the flag, its value, where that came from, the bound."""
    text = fault["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    name = str(fault["loc"][0]).removesuffix("_") if fault["loc"] else ""
    if name not in values:
        return str(text)
    return f"--{name}={spell(values[name])} (from: {origins[name]}) {text}. See --help {name}."


def _toml(value: Value) -> str:
    """A value in TOML, which has no null: None is written as the text \"None\"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    if value is None or isinstance(value, str):
        legible = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
        return json.dumps(legible, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
