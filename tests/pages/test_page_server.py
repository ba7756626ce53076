"""The server for this machine: ranges, one folder, nothing else."""

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jukebox.errors import DataError, LaunchError
from jukebox.pages.server import find_page, main, make_server

ROOT = Path(__file__).parents[2]
BODY = bytes(range(256)) * 4


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    (run / "level_0").mkdir(parents=True)
    (run / "empty").mkdir()
    (run / "index.html").write_text("<title>all</title>")
    (run / "level_0" / "index.html").write_text("<title>0</title>")
    (run / "level_0" / "a b#1.wav").write_bytes(BODY)
    (run / ".secret").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    os.symlink(tmp_path / "outside.txt", run / "link.txt")
    os.symlink(tmp_path, run / "up")
    return run


@pytest.fixture
def ask(folder, serve_ours):
    with serve_ours(folder) as address:
        host = address.removeprefix("http://")

        def asked(path, method="GET", **headers):
            link = http.client.HTTPConnection(host, timeout=5)
            link.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                link.putheader(name, value)
            link.endheaders()
            answer = link.getresponse()
            body = answer.read()
            link.close()
            return answer.status, body, answer.headers

        yield asked


def test_whole_files(ask):
    status, body, headers = ask("/")
    assert (status, body, headers["Content-Type"]) == (200, b"<title>all</title>", "text/html; charset=utf-8")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask("/level_0/?x=1")[1] == b"<title>0</title>"
    status, body, headers = ask("/level_0/a%20b%231.wav")
    assert (status, body, headers["Content-Type"], headers["Accept-Ranges"]) == (200, BODY, "audio/wav", "bytes")
    status, _, headers = ask("/level_0")
    assert (status, headers["Location"]) == (301, "/level_0/")
    status, body, headers = ask("/level_0/a%20b%231.wav", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "1024")


@pytest.mark.parametrize(
    "asked, start, stop",
    [("bytes=0-", 0, 1024), ("bytes=10-19", 10, 20), ("bytes=1000-5000", 1000, 1024), ("bytes=-24", 1000, 1024),
     ("bytes=-5000", 0, 1024), ("bytes=1023-1023", 1023, 1024)],
)  # fmt: skip
def test_ranges(ask, asked, start, stop):
    status, body, headers = ask("/level_0/a%20b%231.wav", Range=asked)
    assert (status, body) == (206, BODY[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/1024"
    assert headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=2000-3000", "bytes=-0"])
def test_ranges_that_cannot_be(ask, asked):
    status, _, headers = ask("/level_0/a%20b%231.wav", Range=asked)
    assert (status, headers["Content-Range"]) == (416, "bytes */1024")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "seconds=1-2", "bytes=0-1,5-6"])
def test_ranges_that_mean_nothing_give_the_whole(ask, asked):
    assert ask("/level_0/a%20b%231.wav", Range=asked)[:2] == (200, BODY)


@pytest.mark.parametrize(
    "path",
    ["/../outside.txt", "/%2e%2e/outside.txt", "/level_0/../../outside.txt", "/..%2foutside.txt", "//etc/passwd", "/link.txt",
     "/up/outside.txt", "/.secret", "/empty/", "/empty", "/index.html/", "/nothing", "/a%00b", "/..%5coutside.txt", "/%ff",
     "/level_0/a%20b%231.wav/", "/~root"],
)  # fmt: skip
def test_nothing_outside_and_no_listing(ask, path):
    status, body, _ = ask(path)
    assert status == 404 and b"secret" not in body and b"outside" not in body


def test_only_this_machine_by_its_own_name(ask, folder):
    assert ask("/", Host="evil.example")[0] == 403
    assert ask("/", Host="localhost:9")[0] == 200
    assert ask("/", "POST")[0] == 501
    with make_server(folder) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_what_main_refuses(tmp_path, folder, monkeypatch):
    with pytest.raises(DataError, match="index.html"):
        find_page(str(tmp_path / "no"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    folder.rename(tmp_path / "logs" / "evening")
    assert find_page("evening") == (tmp_path / "logs" / "evening").resolve()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError, match="--port"):
            main(["evening", f"--port={taken.getsockname()[1]}"])


def test_the_command_prints_its_address(folder):
    command = [sys.executable, str(ROOT / "jukebox" / "serve.py"), str(folder)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:") and address.endswith("/")
            link = http.client.HTTPConnection(address[7:-1], timeout=5)
            link.request("GET", "/")
            assert link.getresponse().read() == b"<title>all</title>"
        finally:
            server.terminate()
