"""A small template language without logic, so that the look of the page stays in page.html.

    {{name}}               the value, escaped for HTML text and quoted attributes
    {{{name}}}             the value as it is (only for what this package has escaped itself)
    {{#name}}...{{/name}}  once per entry of a list, or once when the value is neither empty, None nor False
    {{^name}}...{{/name}}  when it is

Inside a section the entry's own keys come first, then those around it; {{.}} is the entry itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jukebox.pages import escape

View = Mapping[str, Any]
TAG = re.compile(r"\{\{\{([\w.]+)\}\}\}|\{\{([#^/]?)([\w.]+)\}\}")
Node = str | tuple[str, str, "list[Any]"]  # text, or (kind, name, children)


def fill(template: str, view: View) -> str:
    """The template with the view's values. Raises KeyError for a name the view lacks: a fault of ours."""
    out: list[str] = []
    _write(_parse(template), [view], out)
    return "".join(out)


def _parse(template: str) -> list[Node]:
    root: list[Node] = []
    open_sections: list[tuple[str, list[Node]]] = [("", root)]
    end = 0
    for tag in TAG.finditer(template):
        here = open_sections[-1][1]
        here.append(template[end : tag.start()])
        end = tag.end()
        raw, kind, name = tag.groups()
        if raw:
            here.append(("raw", raw, []))
        elif not kind:
            here.append(("text", name, []))
        elif kind == "/":
            opened, _ = open_sections.pop()
            assert opened == name, f"{{{{/{name}}}}} closes {opened!r}"
        else:
            children: list[Node] = []
            here.append((kind, name, children))
            open_sections.append((name, children))
    root.append(template[end:])
    assert len(open_sections) == 1, f"{open_sections[-1][0]!r} is never closed"
    return root


def _write(nodes: Sequence[Node], scopes: list[View], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
            continue
        kind, name, children = node
        value = _find(name, scopes)
        if kind == "raw":
            out.append(str(value))
        elif kind == "text":
            out.append(escape.text(value))
        elif kind == "^":
            if _is_empty(value):
                _write(children, scopes, out)
        elif not _is_empty(value):
            entries = value if isinstance(value, (list, tuple)) else [value]
            for entry in entries:
                _write(children, [*scopes, entry if isinstance(entry, Mapping) else {".": entry}], out)


def _find(name: str, scopes: list[View]) -> Any:
    for scope in reversed(scopes):
        if name in scope:
            return scope[name]
    raise KeyError(name)


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, list, tuple, dict)) and not value)
