"""Fetching over a network that does everything wrong: what stands under the final name is whole, or nothing does."""

import http.server
import io
import os
import threading
import zipfile
from pathlib import Path

import pytest

from jukebox.errors import OutOfSpace, UsageError, UserError
from jukebox.files import digest_bytes, digest_file
from jukebox.weights import catalogue, download, run

BODY = bytes(range(256)) * 4000  # about 1 MB


class Server:
    """Serves BODY under any path; `faults` are used up one per request."""

    def __init__(self) -> None:
        self.faults: list = []
        self.requests: list[tuple[str, str | None]] = []
        self.body, self.etag, self.ranges = BODY, '"v1"', False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()

            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range")))
                fault = outer.faults.pop(0) if outer.faults else None
                if fault is not None and fault(self):
                    return
                outer.answer(self)

            def log_message(self, *args) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *args: None  # a client that went away
        self.url = f"http://127.0.0.1:{self.http.server_port}/weights/net.pth.tar"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(
        self, request, most: int | None = None, promise: int | None = None, off: int = 0, piece: int | None = None
    ) -> bool:
        """off: so many bytes beside what was asked for; piece: no more than so many at a time, as their headers say."""
        wanted = request.headers.get("Range")
        start = 0
        if wanted and (self.ranges if not self.etag else request.headers.get("If-Range") == self.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + off
        body = self.body[start:][:piece]
        request.send_response(206 if start or piece else 200)
        if start or piece:
            request.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(self.body)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(body) if promise is None else promise))
        request.end_headers()
        request.wfile.write(body[:most])
        return True

    def drop(self, after: int):
        return lambda request: self.answer(request, most=after)

    def status(self, code: int):
        return lambda request: request.send_error(code) or True

    def page(self, kind: str = "text/html"):
        def send(request) -> bool:
            request.send_response(200)
            request.send_header("Content-Type", kind)
            request.end_headers()
            request.wfile.write(b"<html>Please log in</html>")
            return True

        return send


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_SEC", 0.0)
    monkeypatch.setattr(download, "TIMEOUT_SEC", 5.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "cache" / "net.pth.tar"


def assert_whole(path: Path, body: bytes = BODY) -> None:
    assert path.read_bytes() == body
    names = {p.name for p in path.parent.iterdir()}
    assert names == {path.name, f"{path.name}.sha256", f".{path.name}.lock"}
    assert (path.parent / f"{path.name}.sha256").read_text().startswith(digest_bytes(body))


def test_whole_and_only_once(server, path):
    seen = []
    download.fetch(server.url, path, report=lambda done, total: seen.append((done, total)))
    assert_whole(path)
    assert seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY), len(BODY))
    download.fetch(server.url, path)
    assert len(server.requests) == 1 and download.size_of(server.url) == len(BODY)


def test_dropped_connections_are_resumed(server, path):
    server.faults = [server.drop(300_000), server.status(503), server.drop(100_000), server.drop(0), server.drop(1)]
    download.fetch(server.url, path)
    assert_whole(path)
    assert [r for _, r in server.requests] == [None, *["bytes=300000-"] * 2, *["bytes=400000-"] * 2, "bytes=400001-"]


def test_a_server_without_versions_is_asked_from_the_start(server, path):
    server.etag = ""
    server.faults = [server.drop(300_000), server.drop(200_000)]
    download.fetch(server.url, path)
    assert_whole(path)
    assert [r for _, r in server.requests] == [None, "bytes=234464-", "bytes=134464-"], "and it sends all of it"


def test_a_server_without_versions_that_knows_ranges(server, path):
    """What was fetched is compared at its end with what the server has there now: two versions never become one file."""
    server.etag, server.ranges = "", True
    server.faults = [server.drop(300_000), server.drop(200_000)]
    download.fetch(server.url, path)
    assert_whole(path)
    assert [r for _, r in server.requests] == [None, "bytes=234464-", "bytes=368928-"]
    for other in (BODY[::-1], BODY[5:] + b"12345", BODY[5:]):
        path.unlink()
        path.with_name(path.name + ".sha256").unlink()
        server.body, server.faults = BODY, [server.drop(300_000), *[server.drop(0)] * 3]
        with pytest.raises(download.FetchError):
            download.fetch(server.url, path)
        server.body, server.faults = other, []
        download.fetch(server.url, path)
        assert_whole(path, other)


def test_a_part_shorter_than_the_overlap_without_versions(server, path):
    """It begins at 0 again, and is compared, not followed by the whole file."""
    server.etag, server.ranges = "", True
    server.faults = [server.drop(5_000)]
    download.fetch(server.url, path)
    assert_whole(path)
    assert [r for _, r in server.requests] == [None, "bytes=0-"]


def test_another_piece_than_the_one_asked_for_is_never_put_in_place(server, path):
    server.faults = [server.drop(300_000), lambda request: server.answer(request, off=-7)]
    download.fetch(server.url, path)
    assert_whole(path)
    server.faults = [server.drop(300_000), server.status(416)]
    download.fetch(server.url, path.with_name("other.pth.tar"))
    assert path.with_name("other.pth.tar").read_bytes() == BODY
    assert [r for _, r in server.requests] == [None, "bytes=300000-", None] * 2


def test_large_files_in_small_pieces(server, path):
    """Some servers send no more than so much at once, whatever was asked for."""
    server.faults = [server.drop(1000)] + [lambda request: server.answer(request, piece=300_000)] * 9
    download.fetch(server.url, path)
    assert_whole(path)
    assert len(server.requests) == 5


def test_more_than_was_promised(server, path):
    server.faults = [lambda request: server.answer(request, promise=1000)]
    with pytest.raises(download.FetchError, match="sent more than the .* it promised"):
        download.fetch(server.url, path)
    assert not path.exists()


def test_a_server_that_leaves_the_connection_open(server, path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SEC", 0.3)
    done = threading.Event()
    server.faults = [lambda request: server.answer(request) and done.wait(20)]
    download.fetch(server.url, path)
    done.set()
    assert_whole(path)


def test_proxies_of_the_environment_are_asked(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/weights/net.pth.tar"))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr("urllib.request._opener", None)  # made at the first request of a process
    download.fetch("http://weights.invalid/net.pth.tar", path)
    assert_whole(path)
    assert server.requests == [("http://weights.invalid/net.pth.tar", None)]


def test_it_gives_up_and_goes_on_next_time(server, path):
    server.faults = [server.drop(300_000), *[server.drop(0)] * 9]
    with pytest.raises(download.FetchError, match="after 3 attempts; what came is kept") as error:
        download.fetch(server.url, path)
    assert not path.exists() and str(path) in str(error.value) and server.url in str(error.value)
    server.faults = []
    download.fetch(server.url, path)
    assert_whole(path)
    assert server.requests[-1][1] == "bytes=300000-"


def test_another_version_on_the_server_starts_anew(server, path):
    server.faults = [server.drop(300_000), *[server.drop(0)] * 3]
    with pytest.raises(download.FetchError):
        download.fetch(server.url, path)
    server.faults, server.body, server.etag = [], BODY[::-1], '"v2"'
    download.fetch(server.url, path)
    assert_whole(path, BODY[::-1])


def test_lies_about_length(server, path):
    server.faults = [lambda r: server.answer(r, promise=2 * len(BODY))] * 9
    with pytest.raises(download.FetchError, match="the connection ended at|connection broke"):
        download.fetch(server.url, path)
    assert not path.exists()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("data.pkl", BODY)
    server.body, server.faults = archive.getvalue()[:1000], []
    with pytest.raises(download.FetchError, match="cut short; removed"):
        download.fetch(server.url, path.with_name("zip.pth.tar"))
    assert not list(path.parent.glob("zip*"))


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_with_status_200(server, path, kind):
    server.faults = [server.page(kind)]
    with pytest.raises(download.FetchError, match="web page") as error:
        download.fetch(server.url, path)
    assert "by hand" in str(error.value) and not path.exists()


def test_a_web_page_is_no_table_of_names(server, path):
    """A table that is a page would stand there, intact, for ever."""
    table = path.with_name("v2_artist_ids.txt")
    server.faults = [server.page("text/plain")]
    with pytest.raises(download.FetchError, match=r"v2_artist_ids\.txt is a web page; removed"):
        download.fetch(server.url, table)
    server.body = b"unknown;0\n<three>;1\n"
    download.fetch(server.url, table)
    assert_whole(table, server.body)


def test_not_found_and_no_network(server, path):
    server.faults = [server.status(404)]
    with pytest.raises(download.FetchError, match="answers 404"):
        download.fetch(server.url, path)
    assert len(server.requests) == 1
    with pytest.raises(download.FetchError, match="cannot be reached"):
        download.fetch("http://127.0.0.1:9/x.pth.tar", path)
    with pytest.raises(download.FetchError, match="404|cannot be reached"):
        download.size_of("http://127.0.0.1:9/x.pth.tar")
    assert not path.exists()


def test_a_damaged_file_is_fetched_anew_and_another_one_refused(server, path, caplog):
    download.fetch(server.url, path)
    path.write_bytes(BODY[:-1] + b"?")
    download.fetch(server.url, path)
    assert_whole(path)
    assert "is damaged" in caplog.text
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(
        download.FetchError, match=r"got SHA-256 \w+\.\.\., expected \w+\.\.\. as fetched before; removed"
    ):
        download.fetch(server.url, path)
    assert not path.exists() and not path.with_name(path.name + ".part").exists()


def test_a_file_put_there_by_hand(server, path):
    path.parent.mkdir()
    path.write_bytes(BODY)
    download.fetch(server.url, path)
    assert_whole(path)
    assert not server.requests
    other = path.with_name("page.pth.tar")
    other.write_bytes(b"<html>")
    with pytest.raises(download.FetchError, match="is a web page"):
        download.fetch(server.url, other)
    assert other.exists()


def test_two_askers_at_once(server, path):
    faults: list = []
    server.faults = [server.drop(1000)]

    def ask() -> None:
        try:
            download.fetch(server.url, path)
        except UserError as error:
            faults.append(error)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert not faults and len(server.requests) == 2
    assert_whole(path)


def test_no_room_and_no_permission(server, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("jukebox.files.disk_free_bytes", lambda folder: 1000)
        with pytest.raises(OutOfSpace, match="--cache"):
            download.fetch(server.url, path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        with pytest.raises(download.FetchError, match="cannot be written .*--cache"):
            download.fetch(server.url, path)


def test_killed_in_the_middle(server, path):
    server.faults = [server.drop(300_000), lambda request: os.kill(child, 9) or True]
    child = os.fork()
    if child == 0:
        download.fetch(server.url, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert not path.exists()
    download.fetch(server.url, path)
    assert_whole(path)


# ---------------------------------------------------------------------------------------------------------- catalogue


def test_the_published_files(tmp_path, monkeypatch):
    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path))
    found = catalogue.catalogue("5b_lyrics")
    assert [r.url.partition("/jukebox/models/")[2] for r in found.remotes if r.what != "id table"] == [
        "5b/vqvae.pth.tar",
        "5b/prior_level_0.pth.tar",
        "5b/prior_level_1.pth.tar",
        "5b_lyrics/prior_level_2.pth.tar",
    ]
    assert found.remotes[0].path == tmp_path / "jukebox/models/5b/vqvae.pth.tar" and "non-commercial" in found.licence
    names = [r.path.name for r in catalogue.catalogue("1b_lyrics").remotes if r.what == "id table"]
    assert names == ["v2_artist_ids.txt", "v2_genre_ids.txt", "v3_artist_ids.txt", "v3_genre_ids.txt"]
    assert catalogue.hub_folder("1b_lyrics")[0].endswith("openai/jukebox-1b-lyrics/resolve/main")
    for ask in (lambda: catalogue.catalogue("6b"), lambda: catalogue.hub_folder("5b")):
        with pytest.raises(UsageError):
            ask()


def test_fetch_from_a_mirror(tmp_path, capsys):
    mirror, cache = tmp_path / "mirror", tmp_path / "cache"
    for remote in catalogue.catalogue("1b_lyrics", str(cache)).remotes:
        place = mirror / remote.url.split("/", 3)[3]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"weights of " + place.name.encode())
    flags = ["1b_lyrics", f"--mirror={mirror.as_uri()}", f"--cache={cache}"]
    assert run.main([*flags, "--show"]) == 0 and not cache.exists()
    assert run.main(flags) == 0
    out = capsys.readouterr().out
    assert "non-commercial" in out and "--model=1b_lyrics" in out
    fetched = cache / "jukebox/models/1b_lyrics/prior_level_2.pth.tar"
    assert fetched.read_bytes() == b"weights of prior_level_2.pth.tar"
    assert (fetched.parent / f"{fetched.name}.sha256").read_text().startswith(digest_file(fetched))
    assert len(list(catalogue.ids_folder(str(cache)).glob("*_ids.txt"))) == 4
    with pytest.raises(UsageError, match="1b_lyrics"):
        run.main([])


def test_a_part_of_a_set(tmp_path, capsys, monkeypatch):
    """For a prior of one's own the published VQ-VAE is enough: 7.5 MB of 19 GB. The error without it says so."""
    from jukebox.errors import CheckpointError
    from jukebox.models.model_set import Part, locate

    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path / "cache"))
    vqvae = catalogue.catalogue("5b").remotes[0]
    place = tmp_path / "mirror" / vqvae.url.split("/", 3)[3]
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"`python jukebox/fetch\.py 1b_lyrics --only=vqvae`, or put the file at"):
        locate(Part(vqvae.url))
    with pytest.raises(CheckpointError, match="Put the file at"):
        locate(Part("https://elsewhere/x.pth.tar"))
    assert run.main(["1b_lyrics", "--only=vqvae", f"--mirror={tmp_path / 'mirror'}"]) == 0
    assert locate(Part(vqvae.url)) == vqvae.path and vqvae.path.read_bytes() == b"weights"
    with pytest.raises(UsageError, match="the port holds all nets"):
        run.main(["1b_lyrics", "--only=vqvae", "--source=huggingface"])


def test_fetch_the_port(tmp_path):
    mirror, cache = tmp_path / "mirror" / "openai/jukebox-1b-lyrics/resolve/main", tmp_path / "cache"
    mirror.mkdir(parents=True)
    (mirror / run.INDEX).write_text('{"weight_map": {"a": "one.bin", "b": "two.bin"}}')
    for name in ("one.bin", "two.bin"):
        (mirror / name).write_bytes(name.encode())
    for remote in catalogue.catalogue("1b_lyrics").remotes:
        if remote.what == "id table":
            place = tmp_path / "mirror" / remote.url.split("/", 3)[3]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("unknown;0\n")
    flags = ["1b_lyrics", "--source=huggingface", f"--mirror={tmp_path / 'mirror'}", f"--cache={cache}"]
    assert run.main(flags) == 0
    assert (cache / "jukebox/huggingface/openai/jukebox-1b-lyrics/two.bin").read_bytes() == b"two.bin"
    (cache / "evil.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(UserError, match="plain"):
        catalogue.hub_shards(cache / "evil.json")
