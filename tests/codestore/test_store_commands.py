"""`codes.py` as a person types it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jukebox.codestore.store import CodeStore
from jukebox.codestore.writer import StoreWriter
from jukebox.encoding.store_commands import main
from jukebox.errors import StoreError, UsageError, UserError

PROGRAM = Path(__file__).parents[2] / "jukebox" / "codes.py"


def test_info_tells_hours_levels_and_perplexity(tiny, tmp_path, capsys):
    root = tiny.make(tmp_path / "s").root
    assert main(["info", str(root), "--items"]) == 0
    text = capsys.readouterr().out
    assert ": finished" in text and "5 in 2 shards" in text and "8000 Hz, hops 8, 32, 128, 64 bins" in text
    assert text.count("perplexity") == 3 and "0010000000001" in text and "a/song 3.wav" in text
    (root / "level_0" / "details.json").unlink()
    assert main(["info", str(root), "--quick"]) == 0
    text = capsys.readouterr().out
    assert "UNFINISHED: 5 of 5 items" in text and "perplexity" not in text


def test_verify_and_repair(tiny, tmp_path, capsys):
    root = tiny.make(tmp_path / "s").root
    assert main(["verify", str(root)]) == 0 and "every digest is right" in capsys.readouterr().out
    (root / "level_2" / "0" / "0000000000000.npy").write_bytes(b"")
    assert main(["verify", str(root)]) == 1
    text = capsys.readouterr().out
    assert "0000000000000.npy: not an .npy file" in text and "--repair" in text
    assert main(["verify", str(root), "--repair"]) == 0 and "1 items removed" in capsys.readouterr().out
    tiny.make(root)
    assert main(["verify", str(root)]) == 0


def test_cat_prints_seconds_and_codes(tiny, tmp_path, capsys):
    root = tiny.make(tmp_path / "s").root
    assert main(["cat", str(root), "a/song 1.wav", "--level=2", "--start-sec=0.032", "--end_sec=0.06"]) == 0
    codes = tiny.codes(1)[2]
    assert capsys.readouterr().out.splitlines() == [f"{n * 128 / 8000:.5f} {codes[n]}" for n in (2, 3)]


def test_cut_and_join(tiny, tmp_path, capsys):
    root = tiny.make(tmp_path / "s").root
    assert main(["cut", str(root), "--items=0,a/song 3.wav", "--out", str(tmp_path / "a"), "--end_sec=0.1"]) == 0
    assert main(["cut", str(root), "--items=1", "--out", str(tmp_path / "b")]) == 0
    assert main(["join", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
    assert "3 items" in capsys.readouterr().out
    np.testing.assert_array_equal(CodeStore.open(tmp_path / "c").codes(1, 1), tiny.codes(3)[1][:28])


def test_keep_chooses_out_of_runs_too(tiny, tmp_path, capsys):
    run = tmp_path / "songs"  # the folder of a sampling run keeps its store in codes/
    tiny.make(run / "codes")
    other = tiny.make(tmp_path / "a:b").root
    with pytest.raises(StoreError, match="is in .* too"):
        main(["keep", f"{run}:2", f"{other}:2", "--out", str(tmp_path / "twice")])
    assert main(["keep", f"{run}:3,a/song 1.wav", f"{other}:0", "--out", str(tmp_path / "best")]) == 0
    assert "from" in capsys.readouterr().out
    assert CodeStore.open(tmp_path / "best").relpaths == ["a/song 3.wav", "a/song 1.wav", "a/song 0.wav"]
    assert main(["info", str(run), "--quick"]) == 0 and "5 in 2 shards" in capsys.readouterr().out
    for choice in (str(run), "songs:", ":1"):
        with pytest.raises(UsageError, match="which items of it"):
            main(["keep", choice, "--out", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["verify"], "STORE"),
        (["shuffle", "x"], "invalid choice"),
        (["info", "x", "--colour"], "unrecognized"),
        (["cat", "x", "0", "--level=top"], "invalid int"),
    ],
)
def test_mistakes_are_usage_errors(argv, reason):
    with pytest.raises(UsageError, match=reason):
        main(argv)


def test_a_level_or_item_that_is_not_there(tiny, tmp_path):
    root = tiny.make(tmp_path / "s").root
    with pytest.raises(StoreError, match="level 5 is not in this store"):
        main(["cat", str(root), "0", "--level=5"])
    with pytest.raises(StoreError, match="no item '17'"):
        main(["cat", str(root), "17"])
    with pytest.raises(StoreError, match="is not a code store"):
        main(["info", str(tmp_path)])
    with pytest.raises(StoreError, match="give the folder above"):
        main(["info", str(root / "level_0")])


def test_the_program_by_path_from_another_folder(tiny, tmp_path):
    root = tiny.make(tmp_path / "s").root
    run = subprocess.run(
        [sys.executable, str(PROGRAM), "verify", str(root)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and "every digest is right" in run.stdout
    (root / "plan.json").write_text(json.dumps({}))
    run = subprocess.run([sys.executable, str(PROGRAM), "info", str(root)], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "plan.json" in run.stderr and "Traceback" not in run.stderr
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(PROGRAM), "info", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0 and "STORE" in run.stdout and "| torch" not in run.stderr


WRONG = [None, True, -1, 0, 1e308, float("nan"), "x", "", [], {}, [1], {"a": 1}, 10**30, 1.5, "../../x", [None]]


def places(value, path=()):
    """The path of every value inside a JSON value, itself first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for name, item in inner:
        yield from places(item, (*path, name))


def with_a_wrong_value(root, draw):
    """Put a value of another kind, or none, somewhere into a JSON file of a store; where and what."""
    path = draw.choice(sorted(path for path in root.rglob("*") if path.suffix in (".json", ".jsonl")))
    lines = path.read_text().splitlines()
    n = draw.randrange(len(lines))
    tree = {"": json.loads(lines[n])}
    where = ("", *draw.choice(list(places(tree[""]))))
    holder = tree
    for name in where[:-1]:
        holder = holder[name]
    if len(where) > 1 and draw.random() < 0.25:
        del holder[where[-1]]
    else:
        holder[where[-1]] = draw.choice(WRONG)
    lines[n] = json.dumps(tree[""])
    path.unlink()
    path.write_text("\n".join(lines) + "\n")
    return path.relative_to(root), where


def test_200_stores_with_wrong_values_give_clear_errors_from_every_command(tiny, tmp_path, capsys):
    """Text that parses and is not what it should be: what programs and people leave, more often than flipped bits."""
    kinds = [tiny.make(tmp_path / str(compat), count=2, compat=compat).root for compat in (False, True)]
    with StoreWriter.create_or_resume(tmp_path / "skipped", tiny.GEOMETRY, "abc", tiny.sources(3), shards=2) as writer:
        writer.skip(0, "no audio frames")
        tiny.fill(writer)
        kinds.append(writer.finish().root)
    refused = 0
    for seed in range(200):
        draw = random.Random(seed)
        root, out = tmp_path / f"m{seed}", tmp_path / f"out{seed}"
        shutil.copytree(draw.choice(kinds), root, ignore=shutil.ignore_patterns(*[".index-cache"][seed % 2 :]))
        what = with_a_wrong_value(root, draw)
        for words in (
            ["verify", root], ["info", root, "--items"], ["cat", root, "1", "--level=2"],
            ["cut", root, "--end_sec=0.1", f"--out={out}"], ["join", root, kinds[0], f"--out={out}j"],
            ["verify", root, "--repair"], ["info", root, "--quick"],
        ):  # fmt: skip
            try:
                main([str(word) for word in words])
            except UserError as error:
                refused += 1
                assert len(str(error)) < 1000 and str(tmp_path) in str(error), (what, words[0], error)
        for made in (root, out, tmp_path / f"out{seed}j"):
            shutil.rmtree(made, ignore_errors=True)
    assert refused > 300
