"""The texts of `--help`, `--help KEY` and `--list_hps`, made from the declarations of the keys."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping

from jukebox.errors import UsageError
from jukebox.hparams.flags import spell
from jukebox.hparams.presets import Preset
from jukebox.hparams.resolve import DEFAULT, Key, Resolved, keys_of, name_of, suggestion, title_of

_COLUMN = 34


def overview(
    script: str, about: str, example: str, meta: Mapping[str, str], words: Iterable[str], now: Resolved
) -> str:
    """Every flag of a program by section, with its value after the presets given, its unit and what it means."""
    places = "".join(f" {word.upper()}" for word in words)
    blocks = [
        f"{about}\n",
        f"usage: python jukebox/{script}{places} [--key=value ...]",
        _fill(example, first="for example: ", indent=4) + "\n",
        "Flags are written --key=value or --key value; dashes and underscores are the same. A True/False flag also as"
        "\n--train and --notrain; several values by comma: --downs_t=5,3. None is written None. Shown are the defaults,"
        "\nor the values of the presets when --hps is given too.\n",
        _section("General", (_row(name, text) for name, text in meta.items())),
    ]
    for cls in now.schema.sections:
        rows = (_row(f"--{name}={spell(now.values[name])}", _meaning(key, now)) for name, key in keys_of(cls).items())
        blocks.append(_section(f"{title_of(cls)}  (--help {name_of(cls)})", rows))
    return "\n".join(blocks)


def topic(script: str, word: str, presets: Iterable[Preset], now: Resolved) -> str:
    """One key with everything known about it, or the keys of one section. Raises UsageError for an unknown word."""
    name = word.removeprefix("--").replace("-", "_")
    if name in now.schema.keys:
        return _key(now.schema.keys[name], presets, now)
    for cls in now.schema.sections:
        if name == name_of(cls):
            return "\n".join(_key(key, (), now) for key in keys_of(cls).values())
    sections = ", ".join(name_of(cls) for cls in now.schema.sections)
    raise UsageError(f"--help {word}: {script} has no such key.{suggestion(now.schema, name)} Sections: {sections}.")


def preset_list(presets: Iterable[Preset]) -> str:
    """The presets with what they say about themselves; bases apart."""
    presets = list(presets)
    lines = ["Presets for --hps=a,b (later ones win):"]
    lines += [_row(preset.name, preset.about) for preset in presets if preset.selectable]
    lines += ["", "Bases, for `extends` in a preset only:"]
    lines += [_row(preset.name, preset.about) for preset in presets if not preset.selectable]
    return "\n".join(lines)


def _key(key: Key, presets: Iterable[Preset], now: Resolved) -> str:
    value, origin = now.values[key.name], now.origins[key.name]
    rows = [
        f"--{key.name}  ({title_of(key.section)})",
        _fill(key.text[:1].upper() + key.text[1:] + ".", first="    ", indent=4),
        f"    type:    {key.kind}",
        f"    default: {spell(key.default)}{_unit(key)}",
    ]
    if origin != DEFAULT:
        rows.append(f"    now:     {spell(value)}{_unit(key)} ({origin})")
    if key.example:
        rows.append(f"    example: --{key.name}={key.example}")
    set_by = [f"{preset.name} {_shown(preset.values[key.name])}" for preset in presets if key.name in preset.values]
    if set_by:
        rows.append(_fill(", ".join(set_by), first="    presets: ", indent=13))
    return "\n".join(rows) + "\n"


def _meaning(key: Key, now: Resolved) -> str:
    text = key.text + (f" [{key.unit}]" if key.unit else "")
    if key.kind.choices:
        text += f" ({', '.join(key.kind.choices)})"
    if now.origins[key.name] != DEFAULT:
        text += f" (from {now.origins[key.name]}; default {spell(key.default)})"
    return text


def _unit(key: Key) -> str:
    return f" {key.unit}" if key.unit else ""


def _shown(value: object) -> str:
    return spell(tuple(value) if isinstance(value, list) else value)


def _section(title: str, rows: Iterable[str]) -> str:
    return "\n".join([title, *rows]) + "\n"


def _row(left: str, right: str) -> str:
    start = f"  {left}"
    if len(start) < _COLUMN:
        return _fill(right, first=start.ljust(_COLUMN), indent=_COLUMN)
    return start + "\n" + _fill(right, first=" " * _COLUMN, indent=_COLUMN)


def _fill(text: str, first: str, indent: int) -> str:
    return textwrap.fill(
        text,
        _width(),
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _width() -> int:
    return min(max(shutil.get_terminal_size((100, 24)).columns, 72), 120)
