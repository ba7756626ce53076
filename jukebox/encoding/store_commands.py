"""The program around a store: `python jukebox/codes.py verify|info|cat|cut|keep|join|decode STORE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from jukebox.codestore import tools
from jukebox.codestore.store import CodeStore, find_store, read_plan
from jukebox.errors import UsageError
from jukebox.files import printable
from jukebox.runlog import Progress


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Raises UserError with what to change."""
    arguments = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    command = {"verify": verify, "info": info, "cat": cat, "cut": cut, "keep": keep, "join": join, "decode": decode}
    return command[arguments.command](arguments)


def verify(arguments: argparse.Namespace) -> int:
    """Compare every byte with the digests; 0 when all is well. With --repair remove what is damaged."""
    root = arguments.store
    count = read_plan(root).items
    with Progress(count, "items", "verify") as bar:
        faults = tools.verify(root, bar.update)
    for fault in faults:
        print(printable(fault.text))
    if not faults:
        print(f"{root}: every digest is right")
        return 0
    if arguments.repair:
        removed = tools.repair(root, faults)
        print(f"{removed} items removed; the pre_encode command that made this store makes them again")
        return 0
    print(f"{len(faults)} faults. With --repair the damaged items are removed, so that pre_encode makes them again.")
    return 1


def info(arguments: argparse.Namespace) -> int:
    """What is in a store: rate, levels, hours, and how the codes use the codebook."""
    store = CodeStore.open(arguments.store, unfinished=True)
    plan, rate = store.plan, store.geometry.sr_hz
    state = "finished" if store.is_finished() else f"UNFINISHED: {len(store)} of {plan.items} items"
    print(f"{store.root}: {state}")
    print(f"model        {plan.fingerprint}")
    print(f"geometry     {store.geometry.describe()}")
    print(f"items        {len(store)} in {plan.shards} shards, {store.lengths.sum() / rate / 3600:.2f} hours")
    if len(store):
        print(f"item length  {store.lengths.min() / rate:.2f} to {store.lengths.max() / rate:.2f} s")
    for level in store.levels:
        spec, place = plan.array(level), store.levels.index(level)
        frames = store.index.frames[:, place].sum()
        print(f"level {level}      hop {store.geometry.hops[level]}, {frames} steps, {spec.rows} x {spec.dtype}")
        if store.geometry.bins and spec.axes != "DN" and not arguments.quick:
            for row in tools.usage(store, level):
                which = f" of row {row.row}" if spec.rows > 1 else ""
                print(
                    f"             codebook{which}: {row.used} of {len(row.counts)} bins used, "
                    f"perplexity {row.perplexity:.1f}, {row.entropy_bits:.3f} bits per code"
                )
    if arguments.items:
        for i in range(len(store)):
            print(f"{i:6d}  {store.id(i)}  {store.lengths[i] / rate:9.3f} s  {printable(store.relpaths[i])}")
    return 0


def cat(arguments: argparse.Namespace) -> int:
    """Print the codes of a range, one time step per line: seconds, then the codes."""
    store = CodeStore.open(arguments.store, levels=[arguments.level])
    i, level = store.find(arguments.item), arguments.level
    start, stop = tools.code_range(store, i, level, arguments.start_sec, arguments.end_sec)
    block = store.array(level, i, start, stop)
    for step, codes in enumerate(block if store.plan.array(level).axes == "NQ" else block.T, start):
        print(f"{store.geometry.seconds_at(level, step):.5f}", *codes.tolist())
    return 0


def cut(arguments: argparse.Namespace) -> int:
    """A new store of some items, or of a range of each."""
    store = CodeStore.open(arguments.store)
    names = [name for name in arguments.items.split(",") if name]
    items = [store.find(name) for name in names] if names else list(range(len(store)))
    made = tools.cut(arguments.out, store, items, arguments.start_sec, arguments.end_sec)
    print(f"{made.root}: {len(made)} items, {made.lengths.sum() / made.geometry.sr_hz:.2f} s")
    return 0


def keep(arguments: argparse.Namespace) -> int:
    """A new store of the takes you like best, out of one store or several."""
    picks = []
    for choice in arguments.choices:
        name, _, items = choice.rpartition(":")
        if not name or not items:
            raise UsageError(f"{choice}: say which items of it are kept, for example {name or items}:0,3")
        store = CodeStore.open(find_store(name))
        picks += [(store, store.find(item)) for item in items.split(",") if item]
    made = tools.keep(arguments.out, picks)
    for i, (store, place) in enumerate(picks):
        print(f"{i:6d}  {made.lengths[i] / made.geometry.sr_hz:9.3f} s  from {store.root}:{place}")
    return 0


def join(arguments: argparse.Namespace) -> int:
    """A new store of the items of several."""
    made = tools.join(arguments.out, [CodeStore.open(find_store(path)) for path in arguments.stores])
    print(f"{made.root}: {len(made)} items, {made.lengths.sum() / made.geometry.sr_hz:.2f} s")
    return 0


def decode(arguments: argparse.Namespace) -> int:
    """Play a range back: write it as a sound file."""
    store = CodeStore.open(arguments.store, levels=[arguments.level])
    i = store.find(arguments.item)
    tools.code_range(store, i, arguments.level, arguments.start_sec, arguments.end_sec)  # before anything is loaded

    from jukebox.audio import io
    from jukebox.models.autoencoder_codec import load_codec
    from jukebox.models.model_set import Part

    codec, _ = load_codec(Part(arguments.restore_vqvae))
    audio = tools.decode(store, i, arguments.level, codec, arguments.start_sec, arguments.end_sec)
    io.write(arguments.out, audio, store.geometry.sr_hz)
    print(f"{arguments.out}: {len(audio) / store.geometry.sr_hz:.3f} s from level {arguments.level}")
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports mistakes as all our programs do."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `codes.py --help` and `codes.py COMMAND --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="codes.py", description="Checks, shows, cuts, chooses from, joins and plays stores of codes.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str | None, *, store: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if store:
            made.add_argument(
                "store", type=find_store, metavar="STORE", help="folder made by pre_encode.py, or of a sampling run"
            )
        return made

    made = command("verify", verify.__doc__)
    made.add_argument("--repair", action="store_true", help="remove damaged items, so that pre_encode makes them again")
    made = command("info", info.__doc__)
    made.add_argument("--items", action="store_true", help="list the items too")
    made.add_argument("--quick", action="store_true", help="do not read all codes to count them")
    for name, text in (("cat", cat.__doc__), ("decode", decode.__doc__)):
        made = command(name, text)
        made.add_argument("item", metavar="ITEM", help="position from 0, id, or file as listed by `info --items`")
        made.add_argument("--level", type=int, default=0, help="level to read, 0 = finest (default)")
        _add_range(made)
    made.add_argument("--restore_vqvae", "--restore-vqvae", required=True, help="run or checkpoint of the VQ-VAE")
    made.add_argument("--out", type=Path, required=True, help="sound file to write: .wav, .flac, .mp3, .ogg ...")
    made = command("cut", cut.__doc__)
    made.add_argument("--items", default="", help="positions, ids or files, by comma (default: all)")
    made.add_argument("--out", type=Path, required=True, help="folder of the new store")
    _add_range(made)
    made = command("keep", keep.__doc__, store=False)
    made.add_argument(
        "choices", nargs="+", metavar="STORE:ITEMS", help="a store or a sampling run, and items of it: songs:0,3"
    )
    made.add_argument("--out", type=Path, required=True, help="folder of the new store")
    made = command("join", join.__doc__, store=False)
    made.add_argument("stores", type=Path, nargs="+", metavar="STORE", help="folders made by pre_encode.py")
    made.add_argument("--out", type=Path, required=True, help="folder of the new store")
    return parser


def _add_range(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--start_sec", "--start-sec", type=float, help="begin here, in seconds (default: the beginning)"
    )
    parser.add_argument("--end_sec", "--end-sec", type=float, help="end here, in seconds (default: the true end)")
