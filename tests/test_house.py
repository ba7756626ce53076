"""The house in order: who imports whom, where torch may be, what stands where. Each rule names the file that breaks it.

The rules are those of README.md ("The house"); a new room gets its floor here.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jukebox"

# From the ground up. The ground floor (errors ... runlog) is a stair of single steps, and so is settings, which collects
# all keys; the other lines are floors whose rooms do not know each other.
FLOORS = (
    ("errors",),
    ("resources",),
    ("files",),
    ("hparams", "parallel", "event_file"),
    ("runlog",),
    ("settings",),
    ("audio", "labels", "codestore", "interop", "weights"),
    ("nn", "corpus"),
    ("vqvae", "prior", "autoencoder"),
    ("data", "models", "pages"),
    ("sampling",),
    ("encoding", "training", "walkthrough", "api"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ENTRY_FLOOR = len(FLOORS)
WITHOUT_TORCH = (
    *("errors", "resources", "files", "hparams", "parallel", "event_file", "runlog", "settings", "labels"),
    *("codestore", "interop", "weights", "pages", "corpus"),
)
TOP_LEVEL = {
    *("apex_optional", "benchmarks", "data", "docs", "hparams", "jukebox", "logs", "tests"),
    *("README.md", "LICENSE", "NOTICE-weights.md", "CITATION.cff", "Makefile", "setup.py"),
    *("requirements.txt", "constraints.txt", "pyproject.toml"),
}
PRINTS = {  # text is what these programs make
    *("settings.py", "corpus/run.py", "encoding/store_commands.py", "pages/server.py"),
    *("walkthrough/run.py", "weights/run.py", "models/export.py", "data/make_ids.py", "training/run.py"),
}
CUDA = {"sampling/graphs.py"}  # and parallel/
OWNERS = {  # the only room that knows a library
    **dict.fromkeys(("av", "soundfile", "soxr", "librosa"), "audio"),
    "mpi4py": "parallel",
    "tensorboardX": "event_file",
}

SOURCES = sorted(PACKAGE.rglob("*.py"))
ENTRIES = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in FLOOR and path.stem != "__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path: Path, node: ast.AST | None = None) -> str:
    line = getattr(node, "lineno", 0)
    return f"{path.relative_to(ROOT)}" + (f", line {line}" if line else "")


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every module imported anywhere in a file, in functions too; `from a import b` gives a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((name.name, node) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{'.' * node.level}{node.module or ''}.{name.name}", node) for name in node.names)


def room_of(path: Path) -> str:
    """The package or module directly under jukebox/ that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def broken_floor(path: Path, imported: str) -> str:
    """Why a file must not import a module of ours, or nothing."""
    parts = imported.split(".")
    room = room_of(path)
    if imported.startswith("."):
        return "imports relatively; write jukebox.room.module"
    if parts[0] != "jukebox" or parts[1] == "__version__":
        return ""
    keys = path.name == "hps.py"
    if parts[1] == room and not keys:
        return ""
    if len(parts) > 2 and parts[2] == "hps":  # keys may be read from everywhere above
        return "keys must not know other keys" if keys else ""
    mine = FLOOR["hparams"] + 1 if keys else FLOOR.get(room, ENTRY_FLOOR)
    if FLOOR.get(parts[1], ENTRY_FLOOR) < mine:
        return ""
    return f"imports {imported}, which is not below it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    wrong = [f"{shown(path, node)}: {why}" for name, node in imports(path) if (why := broken_floor(path, name))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "imported", "good"),
    [
        ("vqvae/model.py", "jukebox.nn.conv", True),
        ("vqvae/model.py", "jukebox.vqvae.encdec", True),
        ("vqvae/model.py", "jukebox.prior.model", False),
        ("nn/conv.py", "jukebox.vqvae.model", False),
        ("sampling/run.py", "jukebox.training.hps.RunHps", True),
        ("training/run.py", "jukebox.encoding.run", False),
        ("vqvae/hps.py", "jukebox.hparams.resolve", True),
        ("vqvae/hps.py", "jukebox.vqvae.model", False),
        ("vqvae/hps.py", "jukebox.prior.hps.PriorHps", False),
        ("files.py", "jukebox.runlog", False),
        ("files.py", "jukebox.errors", True),
        ("train.py", "jukebox.training.run", True),
        ("models/build.py", "jukebox.train", False),
        ("models/build.py", "..nn.conv", False),
    ],
)
def test_the_rule_of_floors_itself(file: str, imported: str, good: bool) -> None:
    assert (not broken_floor(PACKAGE / file, imported)) is good


def test_no_module_of_ours_is_imported_by_a_name_in_a_string() -> None:
    wrong = [
        shown(path, node)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("import_module", "__import__"))
        and any("jukebox" in ast.unparse(argument) for argument in node.args)
    ]
    assert not wrong


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert not rooms - FLOOR.keys(), "give these rooms a floor in tests/test_house.py, and a line in README.md"


def test_keys_are_declared_with_the_standard_library_pydantic_and_hparams_only() -> None:
    wrong = [
        f"{shown(path, node)}: {name}"
        for path in PACKAGE.glob("*/hps.py")
        for name, node in imports(path)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "pydantic", "jukebox"}
    ]
    assert not wrong


def test_torch_is_absent_where_milliseconds_count() -> None:
    """One process imports these rooms module by module and says after which one torch was there."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if room_of(path) in WITHOUT_TORCH or path.name == "hps.py"
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(f'{name} brings torch in')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def dependencies() -> set[str]:
    """Import names of everything that installs with us, dependencies of dependencies too, as far as it is here."""
    names = re.findall(r'^        "([A-Za-z0-9_.-]+)', (ROOT / "setup.py").read_text(), re.MULTILINE)
    found: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        names += [match[0] for need in needs if "extra ==" not in need and (match := re.match(r"[\w.-]+", need))]
    return {
        module
        for module, packages in metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", package).lower() in found for package in packages)
    }


def test_no_room_bears_the_name_of_another_module() -> None:
    """`python jukebox/train.py` begins with jukebox/ on the path; a jukebox/html.py would break every dependency."""
    taken = dependencies()
    assert {"torch", "numpy", "yaml", "sympy"} <= taken  # found at all, by import name, those of torch too
    ours = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith(("_", "."))}
    assert not ours & (taken | set(sys.stdlib_module_names))


def test_files_of_packages_beginnings_are_empty() -> None:
    wrong = [shown(path) for path in PACKAGE.glob("*/**/__init__.py") if path.read_text().strip()]
    assert not wrong


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.name)
def test_an_entry_is_short_and_defines_nothing_but_main(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 25, f"{shown(path)}: an entry has at most 25 lines; or is this a room without a floor?"
    body = tree(path).body
    assert ast.get_docstring(tree(path)), shown(path)
    defined = [node for node in body[1:] if not isinstance(node, ast.Import | ast.ImportFrom | ast.If)]
    assert [getattr(node, "name", "?") for node in defined] == ["main"], shown(path)
    assert [ast.unparse(mark) for mark in defined[0].decorator_list] == ["guarded"], shown(path)  # type: ignore[attr-defined]


def test_print_is_for_programs_whose_product_is_text() -> None:
    wrong = [
        shown(path, node)
        for path in SOURCES
        if str(path.relative_to(PACKAGE)) not in PRINTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write")
    ]
    assert not wrong, "use logging.getLogger(__name__)"


def test_a_library_of_one_room_is_imported_there_only() -> None:
    wrong = [
        f"{shown(path, node)}: {name} belongs to jukebox/{owner}"
        for path in SOURCES
        for name, node in imports(path)
        if (owner := OWNERS.get(name.split(".")[0])) and room_of(path) != owner
    ]
    assert not wrong


def test_cuda_is_chosen_in_one_place() -> None:
    wrong = [
        f"{shown(path)}, line {number}"
        for path in SOURCES
        if room_of(path) != "parallel" and str(path.relative_to(PACKAGE)) not in CUDA
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bcuda\b", line)
    ]
    assert not wrong, "a device is an argument; choosing one is the business of parallel/launch.py"


# --------------------------------------------------------------------------------------------------- the whole clone


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the project as git knows them."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip("not a clone")
    return tuple(Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file())


def test_the_top_level_holds_what_the_plan_names() -> None:
    found = {path.parts[0] for path in tracked() if not path.parts[0].startswith(".")}
    assert not found - TOP_LEVEL, "these do not belong to the top level"
    missing = {name for name in TOP_LEVEL if not (ROOT / name).exists()}
    assert not missing


def test_patterns_of_gitignore_are_anchored() -> None:
    lines = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not line.lstrip("!").startswith("/")] == ["__pycache__/"]


def texts() -> Iterator[tuple[Path, int, str]]:
    """Every line of every source and text of ours; not of data copied in for tests."""
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".txt", ".js", ".css", ".html", ".cff", "") and (
            "fixtures" not in path.parts and path.parts[:2] != ("data", "ids")
        ):
            for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
                yield path, number, line


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
    wrong = [f"{path}, line {number}" for path, number, line in texts() if marks.search(line)]
    assert not wrong


def test_no_path_of_one_machine() -> None:
    places = re.compile(r"(?<![\w.])/(home|root|Users|work|tmp)/\w")
    wrong = [f"{path}, line {number}: {line.strip()}" for path, number, line in texts() if places.search(line)]
    assert not wrong
