"""Words of a command line, and values of a preset, turned into typed values.

Nothing is guessed: the type comes from the key. `--name=2024_01_01` stays text, `--bs=1e1` is ten because ten is an
integer, `--bs=1.5` is an error.
"""

import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jukebox.errors import HparamsError, UsageError

Scalar = bool | int | float | str
Value = Scalar | None | tuple[Scalar, ...]

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}
_PLURALS = {bool: "True/False values", int: "integers", float: "numbers", str: "texts"}


@dataclass(frozen=True)
class Kind:
    """The type of a key: one scalar or a tuple of them, perhaps None, perhaps one of a few choices."""

    base: type[bool] | type[int] | type[float] | type[str]
    many: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, annotation: object) -> "Kind":
        """Reads a field annotation such as `int`, `float | None`, `tuple[int, ...]` or `Literal["a", "b"]`."""
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType):
            (inner,) = [arg for arg in args if arg is not type(None)]
            kind = cls.of(inner)
            return cls(kind.base, kind.many, optional=True, choices=kind.choices)
        if origin is typing.Literal:
            return cls(str, choices=tuple(args))
        if origin is tuple:
            return cls(cls.of(args[0]).base, many=True)
        assert annotation in (bool, int, float, str), f"a hyperparameter cannot be of type {annotation}"
        return cls(annotation)  # type: ignore[arg-type]

    def __str__(self) -> str:
        text = f"{_PLURALS[self.base]} separated by commas" if self.many else _WORDS[self.base]
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        return f"{text}, or None" if self.optional else text

    def read(self, text: str) -> Value:
        """The value that a command-line word stands for. Raises ValueError when the word is of another type."""
        if self.optional and text.strip().lower() == "none":
            return None
        if not self.many:
            return self._scalar(text)
        inner = text.strip()
        if inner[:1] + inner[-1:] in ("()", "[]"):
            inner = inner[1:-1]
        parts = [part.strip() for part in inner.split(",")]
        if parts[-1] == "":  # `()` and the comma of `(8,)`
            parts.pop()
        return tuple(self._scalar(part) for part in parts)

    def convert(self, value: object) -> Value:
        """The same value from TOML or from Python (lists are tuples, 8.0 is 8). Raises ValueError when it does not fit."""
        if value is None or (isinstance(value, str) and value == "None" and self.base is not str):
            if self.optional:
                return None
            raise ValueError(f"{self} is needed, not None")
        if self.many:
            parts = list(value) if isinstance(value, list | tuple) else [value]
            return tuple(self._convert_scalar(part) for part in parts)
        return self._convert_scalar(value)

    def _scalar(self, text: str) -> Scalar:
        if self.base is str:
            return self._chosen(text)
        word = text.strip()
        if self.base is bool and word.lower() in _BOOLEANS:
            return _BOOLEANS[word.lower()]
        if self.base is int and _INTEGER.fullmatch(word):
            return int(word)
        if self.base in (int, float) and _NUMBER.fullmatch(word):
            return self._convert_scalar(float(word))
        raise ValueError(f"{self} is needed")

    def _convert_scalar(self, value: object) -> Scalar:
        if self.base is str and isinstance(value, str):
            return self._chosen(value)
        if self.base is bool and isinstance(value, bool):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            if self.base is float:
                return float(value)
            if self.base is int and value == int(value):
                return int(value)
        raise ValueError(f"{self} is needed")

    def _chosen(self, text: str) -> str:
        if self.choices and text not in self.choices:
            raise ValueError(f"{self} is needed")
        return text


def spell(value: object) -> str:
    """A value as one would type it after `--key=`."""
    if isinstance(value, tuple):
        return ",".join(spell(part) for part in value) if value else "()"
    if isinstance(value, float) and abs(value) >= 1e6 and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


@dataclass(frozen=True)
class Flag:
    """One flag as given: `key` in underscores, `text` None where it stood without a value."""

    key: str
    text: str | None
    shown: str


def split(
    argv: Sequence[str],
    kinds: Mapping[str, Kind],
    words: Sequence[str] = (),
    lone: Sequence[str] = (),
    *,
    assignments: bool = False,
) -> list[Flag]:
    """Cuts a command line into flags; knows only which keys are True/False, since those take no following word.

    `words` are the keys that words without a flag fill, in this order; a key in `lone` may stand without a value. With
    `assignments` a word `key=value` is a flag too.
    Raises UsageError for stray words, flags given twice and flags without a value.
    """
    flags: dict[str, Flag] = {}
    waiting, rest = list(words), list(argv)
    while rest:
        word = rest.pop(0)
        if assignments and re.match(r"\w[\w-]*=", word):
            flag = _flag("--" + word, rest, kinds, lone)
        elif not word.startswith("--") or word == "--":
            if not waiting:
                raise UsageError(_stray(word, list(flags.values())))
            flag = Flag(waiting.pop(0), word, word)
        else:
            flag = _flag(word, rest, kinds, lone)
        if flag.key in flags:
            raise UsageError(
                f"--{flag.key} is given twice: {flags[flag.key].shown} and {flag.shown}. Keep one of them."
            )
        flags[flag.key] = flag
    return list(flags.values())


def _flag(word: str, rest: list[str], kinds: Mapping[str, Kind], lone: Sequence[str]) -> Flag:
    """Reads one flag, taking its value from the front of `rest` where it needs one."""
    name, equals, text = word[2:].partition("=")
    key = name.replace("-", "_")
    positive = key.removeprefix("no").removeprefix("_")
    if key not in kinds and key.startswith("no") and positive in kinds and kinds[positive].base is bool:
        if equals:
            raise UsageError(f"{word}: --{name} takes no value. Write --{positive}=True or --{positive}=False.")
        return Flag(positive, "False", word)
    if equals:
        return Flag(key, text, word)
    kind = kinds.get(key)
    following = rest[0] if rest and not rest[0].startswith("--") else None
    if kind is not None and kind.base is bool and not kind.many:
        if following is not None and following.lower() in _BOOLEANS:
            return Flag(key, rest.pop(0), f"{word} {following}")
        return Flag(key, "True", word)
    if following is not None:
        return Flag(key, rest.pop(0), f"{word} {following}")
    if kind is not None and key not in lone:
        raise UsageError(f"{word} needs a value: {kind}, for example --{key}=...")
    return Flag(key, None, word)


def _stray(word: str, before: list[Flag]) -> str:
    after = f" after {before[-1].shown}" if before else ""
    return f"The word {word!r}{after} belongs to no flag. Write --key=value; a value with blanks needs quotes."


def typed(flag: Flag, kind: Kind) -> Value:
    """The value of a flag; raises HparamsError that names the flag."""
    try:
        return kind.read(flag.text or "")
    except ValueError as error:
        raise HparamsError(f"{flag.shown}: {error}. See --help {flag.key}.") from None
