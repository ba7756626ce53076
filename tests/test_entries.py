"""The programs as people start them: by path from any folder, with -m, as console scripts; help, mistakes, exit codes."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jukebox import settings

ROOT = Path(__file__).resolve().parent.parent
SETUP = ast.parse((ROOT / "setup.py").read_text())
SCRIPTS = next(
    ast.literal_eval(node.value)
    for node in ast.walk(SETUP)
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ENTRIES"
)
ENTRIES = sorted(
    path.stem
    for path in (ROOT / "jukebox").glob("*.py")
    if "\n@guarded\ndef main()" in path.read_text(encoding="utf-8")
)


def start(words: list[str], folder: Path, *, importable: bool) -> subprocess.CompletedProcess[str]:
    """Run from `folder`; `importable`: as after an installation, else nothing says where jukebox is."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if importable:
        env["PYTHONPATH"] = str(ROOT)
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def by_path(entry: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return start([sys.executable, str(ROOT / f"jukebox/{entry}.py"), *flags], folder, importable=False)


def console_script(entry: str) -> list[str]:
    """The installed script, or what pip would write into it."""
    script = Path(sys.executable).parent / f"jukebox-{entry.replace('_', '-')}"
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", f"import sys\nfrom jukebox.{entry} import main\nsys.exit(main())"]


def test_every_entry_is_installed_as_a_console_script() -> None:
    assert "train" in ENTRIES and set(ENTRIES) <= set(SCRIPTS)


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_by_path_from_another_folder_without_torch(entry: str, tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", str(ROOT / f"jukebox/{entry}.py"), "--help"]
    done = start(words, tmp_path, importable=False)
    assert done.returncode == 0 and "usage: " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "jukebox.parallel.launch" in imported and "torch" not in imported


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_mistake_is_one_message_and_2_as_module_and_as_console_script(entry: str, tmp_path: Path) -> None:
    for words in ([sys.executable, "-m", f"jukebox.{entry}"], console_script(entry)):
        done = start([*words, "--no_such_flag=1"], tmp_path, importable=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.strip() and "Traceback" not in done.stderr and not done.stdout


@pytest.mark.parametrize("entry", sorted(settings.PROGRAMS))
def test_a_program_with_settings_has_its_entry(entry: str) -> None:
    assert entry in ENTRIES


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("train --help bs", 0, r"--bs +\(Data\)\n    Items per process and step"),
        ("train --help vqvae", 0, r"--l_bins"),
        ("train --list_hps", 0, r"small_vqvae +two-level VQ-VAE"),
        ("train --hps=small_vqvae --print_hps", 0, r"sr = 22050  # preset small_vqvae"),
        ("train --widht=3", 2, r"no flag --widht\. Did you mean --width"),
        ("train --help widht", 2, r"Did you mean --width"),
        ("train --hps=small_vqae", 2, r"no preset of this name\. Did you mean small_vqvae"),
        ("train --name foo bar", 2, r"word 'bar' after --name foo belongs to no flag"),
        ("train --bs=4 --bs=8", 2, r"--bs is given twice"),
        ("train --bs=many", 2, r"--bs=many: an integer is needed"),
        ("train --n_samples=3", 2, r"It belongs to sample\.py"),
        ("sample --help mode", 0, r"one of ancestral, continue, upsample, primed"),
        ("sample --mode=backwards", 2, r"one of ancestral"),
        ("sample --name=x --model=nowhere", 2, r"neither a model set \(.*5b_lyrics.*\) nor a run folder"),
        ("pre_encode", 2, r"The smallest full command is\n  python jukebox/pre_encode\.py "),
        ("codes", 2, r"COMMAND"),
        ("codes info nowhere", 1, r"nowhere"),
        ("serve nowhere", 1, r"no index\.html"),
        ("fetch", 2, r"Name a model set"),
        ("make_corpus", 2, r"--out is missing"),
    ],
)
def test_answers(command: str, code: int, said: str, tmp_path: Path) -> None:
    entry, *flags = command.split()
    done = by_path(entry, *flags, folder=tmp_path)
    text = done.stderr if code else done.stdout
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert re.search(said, text), text
    assert not list(tmp_path.iterdir())  # nothing begun


@pytest.mark.parametrize(
    "command",
    [
        "make_corpus --songs=1 --min_sec=2 --max_sec=2 --out=FILE/corpus",
        "export SINGER/vqvae.safetensors --to=safetensors --out=FILE/x.safetensors",
        "sample --model=singer --lyrics=la --name=FILE/songs",
    ],
)
def test_a_folder_that_cannot_be_made_is_said(command: str, tmp_path: Path) -> None:
    """What is named lies below a file."""
    (tmp_path / "file").write_text("here")
    words = command.replace("FILE", str(tmp_path / "file")).replace("SINGER", str(ROOT / "data" / "singer")).split()
    done = by_path(*words, folder=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"Cannot make the .*(Not a directory|File exists)\. Choose another --(out|name)\.", done.stderr), (
        done.stderr
    )


def test_a_console_script_speaks_once_for_all_processes(run_mpi: Callable[..., Any]) -> None:
    program = console_script("train")[1:] or ["-m", "jukebox.train"]
    done = run_mpi(3, [*program, "--widht=3"])
    assert done.code == 2 and done.err.count("Did you mean --width") == 1
