"""A small server for one folder of samples: this machine only, with ranges, so that a browser can seek in the sound."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from jukebox import files
from jukebox.errors import DataError, LaunchError
from jukebox.pages.mime import TYPES

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
OUR_NAMES = {"127.0.0.1", "localhost", "[::1]"}  # another Host header is a stranger's page that was sent here
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
BLOCK_BYTES = 1 << 16


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until stopped. Raises DataError when there is no page, LaunchError when the port is taken."""
    parser = argparse.ArgumentParser(
        prog="serve.py",
        allow_abbrev=False,
        description="Serves a folder of samples on 127.0.0.1, to this machine only.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder with an index.html, or the name of one in logs/")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    choice = parser.parse_args(argv)
    server = make_server(find_page(choice.run), choice.port)
    print(f"http://{HOST}:{server.server_port}/", flush=True)
    print("Only this machine can open it. Ctrl-C stops.", file=sys.stderr)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def find_page(name: str) -> Path:
    """The folder to serve. Raises DataError when it holds no page."""
    for folder in (Path(name), Path("logs") / name):
        if (folder / "index.html").is_file():
            return folder.resolve()
    raise DataError(
        f"{files.printable(name)}: no index.html there, nor in logs/. Name the folder that sample.py printed."
    )


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of `folder` on 127.0.0.1, not started. Raises LaunchError when the port is taken."""
    handler = type("FolderHandler", (_Handler,), {"folder": folder})
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise LaunchError(f"--port={port} cannot be used ({error}). Give another one, or 0 for a free one.") from error


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of plain files in `folder`, whole or one range. No listings, no dot files, no links that lead out."""

    folder: Path
    protocol_version = "HTTP/1.1"
    timeout = 60

    def version_string(self) -> str:
        return "jukebox"

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s", files.printable(format % args))

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        host = re.sub(r":\d+$", "", self.headers.get("Host", ""))
        if host.lower() not in OUR_NAMES:
            return self._refuse(HTTPStatus.FORBIDDEN)
        path = self._find()
        if path is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        if path.is_dir():  # so that the page's relative links start from the right folder
            self.send_response(HTTPStatus.MOVED_PERMANENTLY)
            self.send_header("Location", urlsplit(self.path).path.rstrip("/").replace("//", "/") + "/")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        try:
            with open(path, "rb") as source:
                self._send(path, source, with_body=with_body)
        except OSError:
            self.close_connection = True  # the browser went away, or the file did

    def _find(self) -> Path | None:
        """The file asked for, or a folder that needs a slash at its end; None when there is nothing to give."""
        asked = unquote(urlsplit(self.path).path, errors="surrogateescape")
        relative = asked.lstrip("/")
        if any(part.startswith(".") for part in relative.split("/")):
            return None
        try:
            path = files.inside(self.folder, relative) if relative else self.folder
            if path.is_dir():
                page = files.inside(self.folder, os.path.join(relative, "index.html"))
                if not page.is_file():
                    return None
                return page if asked.endswith("/") else path
        except (DataError, OSError, ValueError):
            return None
        return path if path.is_file() and not asked.endswith("/") else None

    def _send(self, path: Path, source: BinaryIO, *, with_body: bool) -> None:
        size = os.fstat(source.fileno()).st_size
        start, stop, status = 0, size, HTTPStatus.OK
        asked = RANGE.fullmatch(self.headers.get("Range", "").strip())
        if asked and (asked[1] or asked[2]):
            status = HTTPStatus.PARTIAL_CONTENT
            if asked[1]:
                start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
            else:
                start = max(size - int(asked[2]), 0)  # the last so many bytes
            if asked[1] and asked[2] and int(asked[2]) < int(asked[1]):
                start, stop, status = 0, size, HTTPStatus.OK  # no range at all: RFC 9110 sec. 14.1.1 says ignore it
            elif start >= size or start >= stop:
                return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, ("Content-Range", f"bytes */{size}"))
        self.send_response(status)
        self.send_header("Content-Type", TYPES.get(path.suffix.lower(), "application/octet-stream"))
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.end_headers()
        source.seek(start)
        left = stop - start
        while with_body and left:
            block = source.read(min(BLOCK_BYTES, left))
            if not block:  # the file became shorter: the browser must not take what comes next for it
                self.close_connection = True
                return
            self.wfile.write(block)
            left -= len(block)

    def _refuse(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        body = f"{status.value} {status.phrase}\n".encode("ascii")
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
