"""What all tests share: one thread, the root of the repository, programs run under a real mpiexec, one Chromium."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from jukebox.parallel.world import job

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes in

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job; programs started here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def one_program_per_test() -> Iterator[None]:
    """A test that runs a program here, in this process, leaves no connection and no silence to the next one."""
    job.comm = None
    logging.getLogger("jukebox").setLevel(logging.INFO)
    yield
    job.comm = None


@dataclass(frozen=True)
class Ran:
    """What a program left: exit code, stdout, stderr, and how long all its processes took to end."""

    code: int
    out: str
    err: str
    seconds: float


@pytest.fixture(scope="session")
def jukebox_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def mpiexec() -> str:
    if MPIEXEC is None:
        pytest.skip("no mpiexec here")
    return MPIEXEC


@pytest.fixture(scope="session")
def run_mpi(mpiexec: str) -> Callable[..., Ran]:
    """`run_mpi(n, args)`: `python args...` as n processes of one mpiexec, or plainly with n = 0.

    `env` adds variables, or with None takes them away.
    """

    def run(n: int, args: Sequence[object], timeout: float = 60, env: Mapping[str, str | None] | None = None) -> Ran:
        command = [*([mpiexec, "-n", str(n)] if n else []), sys.executable, *map(str, args)]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        wanted = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
        variables = {name: value for name, value in wanted.items() if value is not None}
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    return run


# --- a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium():
    """One browser for all; without Chromium a skip, and under CI a failure."""
    where = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        where = None
    if where is None:
        word = "no browser here: install Debian's chromium, and playwright from PyPI"
        if os.environ.get("CI") == "true":
            pytest.fail(word)
        pytest.skip(word)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=where, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


class OpenPage:
    """A page in the browser, with everything it asked for and everything that went wrong."""

    def __init__(self, context):
        self.tab = context.new_page()
        self.tab.set_default_timeout(120_000)  # a machine may be busy
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("console", lambda line: line.type == "error" and self.faults.append(line.text))
        self.tab.on("dialog", lambda dialog: (self.faults.append("dialog"), dialog.dismiss()))

    def __getattr__(self, name):
        return getattr(self.tab, name)

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression holds."""
        self.tab.wait_for_function(f"() => {condition}", polling=20)

    def positions(self) -> list[float]:
        return self.tab.evaluate("[...document.querySelectorAll('audio')].map(a => a.currentTime)")

    def playing(self) -> list[int]:
        """Which of the page's audio elements sound."""
        return self.tab.evaluate("[...document.querySelectorAll('audio')].flatMap((a, k) => a.paused ? [] : [k])")


@pytest.fixture
def open_page(chromium):
    """open_page(path or address, **context options) -> OpenPage"""
    contexts = []

    def opened(where, **options) -> OpenPage:
        options.setdefault("viewport", {"width": 1000, "height": 900})
        context = chromium.new_context(**options)
        contexts.append(context)
        page = OpenPage(context)
        page.goto(where if isinstance(where, str) else where.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a server of moto's, found through the environment as any other."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    import boto3
    import fsspec
    import requests
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_DEFAULT_REGION", "us-east-1"),
                        ("AWS_ENDPOINT_URL", f"http://{host}:{port}")):  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=60)  # what another server of this process was given
    boto3.client("s3").create_bucket(Bucket="music")
    yield "music"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()
