"""The README against the code: its commands parse, its files exist, its tree is the tree, its demo is the demo."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from jukebox import settings
from jukebox.encoding import store_commands
from jukebox.sampling.hps import SongHps
from jukebox.sampling.requests import requests_of
from jukebox.walkthrough import run as walkthrough
from jukebox.walkthrough.hps import WalkthroughHps

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "NOTICE-weights.md", "hparams/README.md", "apex_optional/README.md", "docs/multi-node.md"]
OTHERS = ("make", "pip", "tensorboard", "pytest", "git", "cd")
LAUNCHERS = ("mpiexec", "torchrun", "srun")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Every command of the fenced shell blocks, lines ended by a backslash joined, comments left out."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    """The rows of a table, its head left out."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def files(text: str) -> list[str]:
    return re.findall(r"`([^`]+\.[a-z]+)`", text)


COMMANDS = [(page, words) for page in PAGES for words in commands((ROOT / page).read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda part: part if isinstance(part, str) else None)
def test_a_command_parses(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Through the parser of the program itself; help and listings answer."""
    if words[0] in OTHERS:
        return
    assert words[0] in ("python", *LAUNCHERS), f"{page}: {shlex.join(words)}"
    (place,) = [i for i, word in enumerate(words) if word.startswith("jukebox/")]
    assert (ROOT / words[place]).is_file(), f"{page}: there is no {words[place]}"
    entry, flags = Path(words[place]).stem, words[place + 1 :]
    try:
        if entry in settings.PROGRAMS:
            settings.parse(entry, flags)
        elif entry == "codes":
            store_commands._parser().parse_args(flags)
        else:
            assert entry == "serve" and len(flags) == 1
    except SystemExit as ended:
        assert ended.code == 0 and capsys.readouterr().out


def test_there_are_commands_of_every_program() -> None:
    shown = {word for _, words in COMMANDS for word in words if word.startswith("jukebox/")}
    assert {f"jukebox/{name}.py" for name in settings.PROGRAMS} - {"jukebox/demo.py"} <= shown


def demo_steps() -> list[tuple[str, list[str]]]:
    """What `make demo` types, and why."""
    hps = WalkthroughHps()
    found = []
    for step in walkthrough.steps(Path(hps.out), hps):
        launcher = ["mpiexec", "-n", str(hps.ranks)] if step.parallel else []
        found.append((step.why, [*launcher, "python", f"jukebox/{step.entry}.py", *step.flags]))
    return found


def demo_block() -> str:
    """The block of the README that shows these steps."""
    lines = []
    for why, words in demo_steps():
        lines += [f"# {why}"] if why else []
        line = ""
        for word in map(shlex.quote, words):
            if len(line) + len(word) > 115:
                lines.append(f"{line} \\")
                line = "   "
            line += f" {word}" if line else word
        lines.append(line)
    return "```sh\n" + "\n".join(lines) + "\n```\n"


def test_the_demo_is_what_the_readme_shows() -> None:
    block = README.partition("<!-- demo steps: begin")[2].partition("<!-- demo steps: end")[0]
    shown = commands(block)
    assert shown == [words for _, words in demo_steps()], f"put this between the marks of README.md:\n{demo_block()}"


def test_the_tree_names_every_room() -> None:
    lines = re.findall(r"^  (\w[\w./]*)(?:  (\w+\.py))?", blocks(section("The house"), "text")[0], re.MULTILINE)
    named = {name.strip("/") for pair in lines for name in pair if name}
    named |= set(re.findall(r"\b(\w+\.py) ", blocks(section("The house"), "text")[0]))
    folder = ROOT / "jukebox"
    there = {
        path.name
        for path in folder.iterdir()
        if (path / "__init__.py").is_file() or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert not there - named, "name these in the tree of README.md"
    assert not {name for name in named if not (folder / name).exists() and name != "linear.py"}
    top = re.findall(r"^(\w[\w./]*)/ ", blocks(section("The house"), "text")[0], re.MULTILINE)
    assert all((ROOT / name).is_dir() for name in top)


def test_where_a_change_goes() -> None:
    named = [name for _, where in table(section("Where a change goes")) for name in files(where)]
    assert len(named) > 10
    for name in named:
        pattern = name.replace("<name>", "*") if "/" in name else f"jukebox/**/{name}"
        assert list(ROOT.glob(pattern)) or name == "metadata.jsonl", f"{name} is not there"


def test_every_promise_names_the_test_that_holds_it() -> None:
    rows = table(section("Reliability"))
    assert len(rows) >= 4
    for promise, where in rows:
        (name,) = files(where)
        assert name.startswith("tests/") and (ROOT / name).is_file(), f"{promise}: {name}"
        assert "\ndef test_" in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_examples_of_files_are_read(tmp_path: Path) -> None:
    (requests,) = blocks(README, "toml")
    path = tmp_path / "songs.toml"
    path.write_text(requests, encoding="utf-8")
    asked = requests_of(SongHps(requests=str(path)), 0, None)
    assert [request.seed for request in asked] == [1, 0, 0] and asked[1].blends
    for line in "".join(blocks(README, "json")).splitlines():
        assert {"file", "artist", "genre", "lyrics"} <= json.loads(line).keys()


def test_the_versions_agree() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "jukebox/__init__.py").read_text())[1]  # type: ignore[index]
    assert f'version="{version}"' in (ROOT / "setup.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"] == "py311"
