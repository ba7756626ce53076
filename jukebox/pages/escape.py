"""One escape function per context: HTML text and attributes, JSON inside a script element, links."""

from __future__ import annotations

import html
import json
import re
from typing import Any
from urllib.parse import quote

from jukebox.errors import DataError

# What HTML cannot hold: C0 controls except tab and newline, DEL and C1 controls, lone surrogates, non-characters.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def plain(value: object) -> str:
    """Text that is valid in UTF-8 and HTML: what is not becomes U+FFFD, newlines are one character."""
    return UNPRINTABLE.sub("\ufffd", str(value).replace("\r\n", "\n").replace("\r", "\n"))


def text(value: object) -> str:
    """HTML text, equally good between double quotes as an attribute's value."""
    return html.escape(plain(value), quote=True)


def json_script(value: Any) -> str:
    """JSON for <script type="application/json">: ASCII only, and nothing in it can end the element."""
    packed = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def href(path: str) -> str:
    """A link to a file in the page's own folder or below, percent-encoded.

    Raises DataError for anything else: an absolute path, one that climbs with "..", an address with a scheme.
    """
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts:
        raise DataError(f"a page links only to files in its own folder, not to {path!r}")
    return "/".join(quote(part.encode("utf-8", "surrogateescape"), safe="") for part in parts)  # ":" is encoded too
