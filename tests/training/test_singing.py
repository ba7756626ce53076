"""It sings: the recipes tiny_lyrics and tiny_lyrics_sep, from songs of known truth to lyrics heard in new ones.

Slow: about an hour on two cores for each recipe. JUKEBOX_SINGING=FOLDER keeps what was trained there, so that the tests
can be run one by one, and go on where they were stopped; JUKEBOX_TEST_EFFORT=0.01 runs all steps within minutes, and
then holds no figure against its bound. The figures are printed, and stand in docs/benchmarks.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jukebox.audio import io
from jukebox.codestore.store import CodeStore
from jukebox.corpus import listen
from jukebox.data.code_dataset import CodeDataset
from jukebox.data.code_loader import code_evaluation_batches
from jukebox.labels.song import SongMeta
from jukebox.models import model_set
from jukebox.models.labels import build_labeller
from jukebox.walkthrough import singing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
ROOT = Path(__file__).resolve().parents[2]
EFFORT = float(os.environ.get("JUKEBOX_TEST_EFFORT", "1"))
RECIPES = ("tiny_lyrics", "tiny_lyrics_sep")
SONGS, HELD_OUT, ASKED = (9600, 16, 32) if EFFORT >= 1 else (40, 2, 4)
SONG_SEC, SUNG_SEC = 5.96, 5.76
LONG_SONGS, LONG_HELD_OUT = (1600, 16) if EFFORT >= 1 else (40, 2)
LONG_SEC, LONG_SUNG_SEC = 17.7, 17.28  # three windows
STEPS = {  # all of them, and those before the learning rate begins to fall
    "vqvae": (5000, 2500), "tiny_lyrics": (6000, 3500), "tiny_lyrics_sep": (6000, 3500), "up1": (2500, 1000),
    "up0": (2000, 800), "tiny_lyrics_2": (10000, 6500), "tiny_lyrics_sep_2": (9400, 6300), "timed": (8000, 6500),
    "untimed": (8000, 6500),
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    kept = os.environ.get("JUKEBOX_SINGING")
    found = Path(kept).resolve() if kept else tmp_path_factory.mktemp("singing")
    found.mkdir(parents=True, exist_ok=True)
    return found


def program(name, *flags, ranks=2):
    """A program as anyone types it; one that has finished already ends at once."""
    command = [sys.executable, str(ROOT / "jukebox" / f"{name}.py"), *map(str, flags)]
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = [str(beside if beside.exists() else "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    subprocess.run([*launcher, *command], check=True)


def train(folder, preset, name, *flags):
    count, flat = (max(4, round(EFFORT * steps)) for steps in STEPS[name])
    program(
        "train", f"--hps={preset}", f"--name={name}", f"--local_logdir={folder / 'logs'}", f"--steps={count}",
        f"--save_iters={count}", f"--eval_iters={-(-count // 4)}", f"--lr_start_linear_decay={flat}",
        f"--lr_decay={count - flat + 1}", *flags,
    )  # fmt: skip
    return folder / "logs" / name


@pytest.fixture(scope="session")
def asked(folder):
    """What will be asked for: drawn first, so that no song of the corpus has a word or four characters in a row of it."""
    if not (folder / "asked.jsonl").exists():
        singing.ask(folder / "asked.jsonl", ASKED, length_sec=SONG_SEC, unlike=[], seed=50000)
    return folder / "asked.jsonl"


@pytest.fixture(scope="session")
def corpus(folder, asked):
    for name, songs, seed in (("corpus", SONGS, 21), ("held_out", HELD_OUT, 7777)):
        make_corpus(folder / name, songs, seed, SONG_SEC, f"--unlike={asked}")
    return folder / "corpus"


def make_corpus(out, songs, seed, length_sec, *flags):
    if not (out / "metadata.jsonl").exists():
        program("make_corpus", f"--out={out}", f"--songs={songs}", f"--seed={seed}", f"--min_sec={length_sec}",
                f"--max_sec={length_sec}", *flags, ranks=1)  # fmt: skip


@pytest.fixture(scope="session")
def vqvae(folder, corpus):
    return train(folder, "tiny_lyrics_vqvae", "vqvae", "--bs=4", f"--audio_files_dir={corpus}")


@pytest.fixture(scope="session")
def codes(folder, corpus, vqvae):
    program(
        "pre_encode", f"--restore_vqvae={vqvae}", f"--audio_files_dir={corpus}", f"--output-path={folder / 'codes'}"
    )
    return folder / "codes"


@pytest.fixture(scope="session")
def upsamplers(folder, codes):
    return [
        train(
            folder, "tiny_lyrics_upsampler", f"up{level}", "--bs=6", "--prior", f"--level={level}", f"--codes={codes}"
        )
        for level in (1, 0)
    ]


@pytest.fixture(scope="session", params=RECIPES)
def top(request, folder, codes):
    """In two parts: when it begins to know its songs by heart, dropout keeps it from that, and learning begins to fall anew."""
    flags = ("--bs=6", "--prior", "--level=2", f"--codes={codes}")
    first = train(folder, request.param, request.param, *flags) / "checkpoint_latest.pth.tar"
    lr = {"tiny_lyrics": 0.002, "tiny_lyrics_sep": 0.0015}[request.param]
    return train(
        folder, request.param, f"{request.param}_2", f"--restore_prior={first}", f"--lr={lr}", "--resid_dropout=0.1",
        "--emb_dropout=0.1", *flags,
    )  # fmt: skip


def check(name, value, bound, most=True):
    """Print a figure; hold it against its bound when training was whole."""
    print(f"{name}: {value:.3f} ({'<=' if most else '>='} {bound:g})", flush=True)
    if EFFORT >= 1:
        assert value <= bound if most else value >= bound, f"{name}: {value:.3f}, bound {bound:g}"


def sing(folder, top, upsamplers):
    """A run that sings what was asked for."""
    run, models = folder / f"sung_{top.name}", ",".join(map(str, [top, *upsamplers]))
    program("sample", f"--model={models}", f"--name={run}", f"--requests={folder / 'asked.jsonl'}",
            f"--sample_length_in_seconds={SUNG_SEC}", "--temp=0.5,0.3,0.5")  # fmt: skip
    return run


def test_the_vqvae_keeps_what_is_sung(folder, corpus, vqvae):
    """(a) the ear on the songs themselves, (b) on what each level keeps of songs never trained on, as long as is sung."""
    truth = [json.loads(line) for line in (folder / "held_out" / "metadata.jsonl").read_text().splitlines()]
    songs = [SongMeta.from_json(song) for song in truth]
    codec, _ = model_set.load_vqvae(model_set.Part(str(vqvae)))
    length = round(SUNG_SEC * 8000)
    sounds = [io.read(folder / "held_out" / song["file"], sr_hz=8000, channels=1)[:length, 0] for song in truth]
    real = singing.compare(songs, [listen.listen(sound, 8000) for sound in sounds])
    check("songs of the corpus: characters misheard", real.error_rate, 0.02)
    for level, bound in ((2, 0.1), (1, 0.03), (0, 0.02)):
        kept = [codec.decode(codec.encode(sound, [level])[level], level) for sound in sounds]
        found = singing.compare(songs, [listen.listen(sound, 8000) for sound in kept])
        check(f"level {level} of the VQ-VAE: characters misheard", found.error_rate, bound)


def teacher_forced(folder, codes, top, timed=True):
    """Bits per held-out code, and the share of codes that are the likeliest one, with the lyrics that are sung and with
    those of another song of the genre: ((bits, share), (bits, share))."""
    _, vqvae_hps = model_set.load_vqvae(model_set.Part(str(folder / "logs" / "vqvae")))
    prior, hps = model_set.load_prior(model_set.Part(str(top)), vqvae_hps, 2)
    labeller = build_labeller(hps, prior, timed=timed)
    assert labeller is not None
    windows = CodeDataset(CodeStore.open(codes), 2, prior.n_ctx, part="test")
    by_genre = {}
    for batch in code_evaluation_batches(windows, bs=8):
        facts = zip(batch.codes, batch.songs, batch.totals.tolist(), batch.offsets.tolist(), strict=True)
        for row, song, total, offset in facts:
            y = torch.from_numpy(labeller.label(song, total, offset))
            by_genre.setdefault(song.genre, []).append((row, y))
    found = {True: [], False: []}
    with torch.inference_mode():
        for songs in by_genre.values():
            rows, y = (torch.stack(part) for part in zip(*songs, strict=True))
            other = y.clone()
            other[:, -prior.n_tokens :] = y[:, -prior.n_tokens :].roll(1, 0)
            for right, labels in ((True, y), (False, other)):
                for some, their in zip(rows.split(32), labels.split(32), strict=True):
                    made = prior(some, None, their)
                    first = prior.codes(made.logits.argmax(-1))
                    found[right] += [(float(made.gen_loss), float((first == some).float().mean()))] * len(some)
    return tuple(np.mean(found[right], axis=0).tolist() for right in (True, False))


def test_the_top_prior_reads_its_lyrics(folder, codes, top):
    """(c) With teacher forcing: what it foretells, and that it takes that from the lyrics."""
    (bits, share), (wrong_bits, wrong_share) = teacher_forced(folder, codes, top)
    print(
        f"{top.name}: {bits:.3f} bits per code, {share:.1%} foretold; other lyrics {wrong_bits:.3f}, {wrong_share:.1%}"
    )
    check("bits per code", bits, 1.0)
    check("bits per code that the right lyrics save", wrong_bits - bits, 0.2, most=False)


def test_it_sings(folder, top, upsamplers):
    """(d) Characters asked for are heard, read at every level; another song's are not."""
    run = sing(folder, top, upsamplers)
    asked = singing.asked_of(run)
    for level in (2, 1, 0):
        found = singing.compare(asked, singing.heard(run, level))
        print(f"{top.name}, level {level}: {found}")
    check("characters misheard", found.error_rate, 0.25)
    check("against lyrics of other songs", found.control, 0.75, most=False)
    check("songs sung by the artist asked for", found.artist, 0.9, most=False)
    check("songs in the genre asked for", found.genre, 0.9, most=False)


def test_characters_begin_where_the_alignment_puts_them(folder, codes, top, upsamplers):
    """The head that follows the lyrics is found, and the songs are aligned by it."""
    program("align", "--find", f"--model={top}", f"--codes={codes}", ranks=1)
    if EFFORT < 1 and not (top / "alignment.json").exists():
        pytest.skip("a prior that learned nothing has no head that follows the lyrics")
    run = sing(folder, top, upsamplers)
    program("align", f"--logdir={run}", ranks=1)
    check("characters that begin within 0.25 s of their alignment", singing.onsets_found(run, 0), 0.8, most=False)


@pytest.fixture(scope="session")
def long_codes(folder, vqvae):
    """Songs of three windows, so that a window must find its part of the lyrics."""
    for name, songs, seed in (("long", LONG_SONGS, 22), ("long_held_out", LONG_HELD_OUT, 7778)):
        make_corpus(folder / name, songs, seed, LONG_SEC)
    program(
        "pre_encode", f"--restore_vqvae={vqvae}", f"--audio_files_dir={folder / 'long'}",
        f"--output-path={folder / 'long_codes'}",
    )  # fmt: skip
    return folder / "long_codes"


def test_what_timed_lyrics_bring(folder, codes, long_codes):
    """tiny_lyrics goes on with songs of 17.3 s: once with the times of their characters, once without.

    Told either way what to sing: lyrics spread evenly over the song, as for lyrics that were never sung, and at times that
    are known.
    """
    first = train(folder, "tiny_lyrics", "tiny_lyrics", "--bs=6", "--prior", "--level=2", f"--codes={codes}")
    truth = [json.loads(line) for line in (folder / "long_held_out" / "metadata.jsonl").read_text().splitlines()]
    for name, fields in (("untimed", ()), ("timed", ("times",))):
        lines = [{key: song[key] for key in ("artist", "genre", "lyrics", *fields)} for song in truth]
        (folder / f"asked_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bits, misheard = {}, {}
    for name, timed in (("untimed", False), ("timed", True)):
        trained = train(
            folder, "tiny_lyrics", name, "--bs=6", "--prior", "--level=2", f"--codes={long_codes}", "--aug_shift",
            f"--restore_prior={first / 'checkpoint_latest.pth.tar'}", "--lr=0.0015", "--min_duration=17",
            "--max_duration=18", f"--lyric_times={timed}",
        )  # fmt: skip
        (bits[name], share), _ = teacher_forced(folder, long_codes, trained, timed)
        print(f"trained {name}: {bits[name]:.3f} bits per code, {share:.1%} foretold")
        for told in ("untimed", "timed"):
            run = folder / f"sung_{name}_told_{told}"
            program("sample", f"--model={trained}", f"--name={run}", f"--requests={folder / f'asked_{told}.jsonl'}",
                    f"--sample_length_in_seconds={LONG_SUNG_SEC}", "--temp=0.5")  # fmt: skip
            found = singing.compare(singing.asked_of(run), singing.heard(run, 2))
            misheard[name, told] = found.error_rate
            print(f"trained {name}, told {told}: {found}")
    check("bits per code that times save", bits["untimed"] - bits["timed"], 0.0, most=False)
    check("characters misheard less", misheard["untimed", "untimed"] - misheard["timed", "timed"], 0.0, most=False)
