"""Windows, the four modes of sampling, and alignment against golden files: greedy codes are equal, one by one."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch

from jukebox import settings
from jukebox.data.hps import AudioHps
from jukebox.labels.song import SongMeta
from jukebox.models import build, checkpoint
from jukebox.models.codec import VQVAECodec
from jukebox.models.labels import build_labeller
from jukebox.sampling import align_files, modes
from jukebox.sampling.alignment import align, why_not
from jukebox.sampling.decode import decode_window
from jukebox.sampling.levels import LevelSinger, Song
from jukebox.sampling.logits import Knobs, draw
from jukebox.sampling.plan import LevelPlan, Window, hop_codes, window_starts
from jukebox.sampling.requests import LevelSettings, Request
from jukebox.sampling.schedule import Schedule, goals
from jukebox.sampling.walk import walk


def close(found, expected, what):
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-4, atol=1e-5, msg=lambda text: f"{what}: {text}"
    )


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.golden("get_starts")
def test_starts_of_windows(golden):
    for case in golden.info["get_starts"]:
        total, n_ctx = case["total_length"], case["n_ctx"]
        # Shorter than a window is one window here; the first implementation never asked (tests/golden/DEFECTS.md).
        expected = case["starts"] if total >= n_ctx else [0]
        assert window_starts(total, n_ctx, case["hop_length"]) == expected, case


@pytest.mark.golden("get_starts")
def test_songs_in_batches(golden):
    hps = settings.from_values({"n_ctx": 4, "prior_width": 4, "prior_depth": 1, "blocks": 2, "level": 1}, "test")
    prior = build.build_prior(hps).eval()
    plan = LevelPlan(1, prior.n_ctx, 2, prior.hop, None)
    for case in golden.info["split_batch"]:
        songs = [Song(Request(i, SongMeta(), 0), prior.sample_length, prior.sample_length) for i in range(case["n"])]
        made = windows_of(songs, LevelSinger(prior, plan, LevelSettings(max_batch_size=case["size"])))
        assert [len(one.songs) for one in made] == case["parts"], case


# ------------------------------------------------------------------------------------------------------------- sampling


class Models:
    """The nets of a sampling file, how each level is sampled, and its songs."""

    def __init__(self, golden, tmp_path):
        info = self.info = golden.info
        weights = golden.companion(golden.name.replace("sampling", "sampling_weights", 1))
        weights = weights or golden.companion(f"{golden.name}_weights")
        self.hps = self._hps(info["config"])
        vqvae = build.build_vqvae(self.hps[0])
        checkpoint.load_into(vqvae, _under("vqvae.", weights), build.vqvae_names(self.hps[0]))
        self.codec = VQVAECodec(vqvae, self.hps[0].section(AudioHps).sr)
        for file in golden.path.parent.glob("ids_v*_*.txt"):
            _, version, kind = file.stem.split("_")
            shutil.copy(file, tmp_path / f"{version}_{kind}_ids.txt")
        self.priors, self.labellers, self.plans = [], [], []
        for level, hps in enumerate(self.hps):
            prior = build.build_prior(hps).eval()
            checkpoint.load_into(prior, _under(f"prior{level}.", weights), build.prior_names(hps))
            hop, rounded = hop_codes(info["hop_fraction"][level], prior.n_ctx, prior.ratio)
            assert not rounded
            self.priors.append(prior)
            self.plans.append(LevelPlan(level, prior.n_ctx, hop, prior.hop, prior.ratio))
            self.labellers.append(build_labeller(hps, prior, ids_dir=str(tmp_path)))
        self.top = len(self.priors) - 1

    @staticmethod
    def _hps(config):
        """One set of settings for each level; what differs between upsamplers stands in words in the file."""
        found = []
        for level in range(config["vqvae"]["levels"]):
            part = dict(config["top" if level == config["vqvae"]["levels"] - 1 else "upsampler"])
            for key, value in part.items():
                if isinstance(value, str):
                    part[key] = f"True for level {level}" in value
            found.append(
                settings.from_values({**config["vqvae"], **config["common"], **part, "level": level}, "golden")
            )
        return found

    def songs(self, sample_length, given):
        return [
            Song(self.request(i), sample_length, self.info["metas"][i]["total_length"], dict(codes))
            for i, codes in enumerate(given)
        ]

    def request(self, item):
        meta = self.info["metas"][item]
        return Request(item, SongMeta(artist=meta["artist"], genre=meta["genre"], lyrics=meta["lyrics"]), seed=0)

    def settings(self, kwargs):
        knobs = Knobs(kwargs["temp"], kwargs.get("top_k", 0), kwargs.get("top_p", 0.0))
        return LevelSettings(knobs, kwargs.get("chunk_size"), kwargs["max_batch_size"])

    def sing(self, level, songs, kwargs):
        """Sample one level of the songs; the windows that were made."""
        singer = LevelSinger(self.priors[level], self.plans[level], self.settings(kwargs), self.labellers[level])
        return [made.window for made in windows_of(songs, singer)]


def windows_of(songs, singer):
    """Sample one level of the songs; every window that was made."""
    plans = {singer.plan.level: singer.plan}
    schedule = Schedule(plans, goals(songs, plans), lambda request, level: singer.settings)
    return list(walk(songs, schedule, lambda level, settings: singer))


def _under(prefix, arrays):
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def printed_windows(lines):
    """What was printed of windows, by level: start, length and given codes, where there was something to sample."""
    found: dict[int, list[Window]] = {}
    for line in lines:
        if level := re.fullmatch(r"Sampling level (\d+)", line):
            windows = found.setdefault(int(level[1]), [])
            continue
        pattern = r"Sampling \d+ tokens for \[(-?\d+),(\d+)\]. Conditioning on (\d+) tokens"
        start, stop, given = map(int, re.fullmatch(pattern, line).groups())
        if start + given < stop:
            windows.append(Window(start, stop - start, given))
    return found


def rows(arrays, prefix, levels):
    """Recorded codes as what each song begins with."""
    n = len(arrays[f"{prefix}{levels[0]}"])
    return [{level: arrays[f"{prefix}{level}"][i].numpy() for level in levels} for i in range(n)]


@pytest.fixture
def models(golden, tmp_path):
    return Models(golden, tmp_path)


def plan_of(name, run, models, golden, tmp_path):
    """The plan that the mode of a recorded run makes; a name says the mode, as in `continue_level2`."""
    arrays, geometry, levels = golden.arrays, models.codec.geometry, range(models.top + 1)
    mode = name.split("_")[0]
    if mode == "ancestral":
        return modes.ancestral(levels, golden.info["n_samples"])
    if mode == "continue":
        saved = tmp_path / "data.pth.tar"
        torch.save({"zs": [arrays[f"{name}.given_{level}"] for level in levels]}, saved)
        codes = modes.load_codes(str(saved), geometry, models.codec.fingerprint)
        return modes.continued(levels, codes, geometry, None)
    if mode == "upsample":
        saved = rows(arrays, f"{name}.z_", [models.top])
        return modes.upsampled(levels, saved, geometry, None, run["sample_length"])
    assert mode == "primed", f"{name}: an unknown mode"
    prompts = []
    for i, prompt in enumerate(arrays[f"{name}.x"]):
        prompts.append(str(tmp_path / f"prompt_{i}.wav"))
        soundfile.write(prompts[-1], prompt.numpy(), geometry.sr_hz, subtype="FLOAT")
    seconds = (arrays[f"{name}.x"].shape[1] + 0.5) / geometry.sr_hz
    return modes.primed(levels, prompts, models.codec, seconds, golden.info["n_samples"])


@pytest.mark.golden("sampling")
def test_labels_of_songs(golden, models):
    for level, labeller in enumerate(models.labellers):
        found = [
            labeller.label(models.request(i).song, meta["total_length"], meta["offset"])
            for i, meta in enumerate(golden.info["metas"])
        ]
        assert np.stack(found).tolist() == golden.arrays[f"labels_y_{level}"].tolist()


@pytest.mark.golden("sampling")
def test_modes(golden, models, tmp_path):
    """Every run of all levels: the same windows, the same codes, the same sound."""
    runs = {name: run for name, run in golden.info["runs"].items() if "sample_length" in run}
    assert runs
    for name, run in runs.items():
        plan = plan_of(name, run, models, golden, tmp_path)
        songs = models.songs(run["sample_length"], plan.given)
        printed = printed_windows(run["windows"])
        assert list(plan.levels) == list(printed), name
        for level in plan.levels:
            assert models.sing(level, songs, run["final_sampling_kwargs"][level]) == printed[level], (name, level)
        assert models.plans[models.top].total(run["sample_length"]) == run["top_tokens"]
        for level, shape in enumerate(run["shapes"]):
            found = torch.from_numpy(np.stack([song.codes[level] for song in songs]))
            assert list(found.shape) == shape
            assert torch.equal(found, golden.arrays[f"{name}.z_{level}"]), (name, level)
            if f"{name}.x_{level}" in golden.arrays:
                audio = np.stack([models.codec.decode(song.codes[level], level) for song in songs])
                close(audio[..., None], golden.arrays[f"{name}.x_{level}"], f"{name}.x_{level}")


@pytest.mark.golden("sampling")
def test_one_level(golden, models):
    """Runs of one level, also of part of a window.

    Where codes were given, the first implementation made too many (tests/golden/DEFECTS.md): every window it printed is
    decoded as it was, and ours, of the right length, are the same as far as they saw the same.
    """
    runs = {name: run for name, run in golden.info["runs"].items() if "total_length" in run}
    assert runs
    for name, run in runs.items():
        level, given, total, kwargs = run["level"], run["given"], run["total_length"], run["final_sampling_kwargs"]
        expected = golden.arrays[f"{name}.z_{level}"]
        assert expected.shape[1] == run["result_len"]
        songs = models.songs(
            total * models.plans[level].samples_per_code, [{level: row[:given].numpy()} for row in expected]
        )
        (windows,) = printed_windows(run["windows"]).values()
        for window in windows:
            found = decode_again(models, level, songs, expected, window, kwargs)
            assert torch.equal(found, expected[:, window.start : window.start + window.length]), (name, window)
        made = models.sing(level, songs, kwargs)
        found = torch.from_numpy(np.stack([song.codes[level] for song in songs]))
        assert found.shape[1] == total and torch.equal(found[:, :given], expected[:, :given])
        if run["result_len"] == total:
            assert made == windows
        if windows[0].start == 0:
            assert torch.equal(found, expected[:, :total]), name


def decode_again(models, level, songs, codes, window, kwargs):
    prior, labeller, knobs = models.priors[level], models.labellers[level], models.settings(kwargs).knobs
    labels = (labeller.full(song.request.song, song.total_samples, 0) for song in songs)
    y = np.stack([labeller.at(label, window.start * prior.hop, prior.sample_length)[0] for label in labels])
    return decode_window(
        prior, codes[:, window.start : window.start + window.given], window.length,
        lambda logits, place: draw(logits, knobs, torch.zeros_like(logits)), y=torch.from_numpy(y),
        chunk_size=kwargs["chunk_size"],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ alignment


@pytest.mark.golden("sampling")
def test_alignment(golden, models):
    prior, labeller, plan = models.priors[models.top], models.labellers[models.top], models.plans[models.top]
    assert not why_not(prior.shape)
    cases = {name: case for name, case in golden.info["alignment"].items() if isinstance(case, dict) and "html" in case}
    assert cases
    codes = golden.arrays[f"ancestral.z_{models.top}"].numpy()
    for name, case in cases.items():
        songs = models.songs(1, [{models.top: row[: case["shapes"][i][0]]} for i, row in enumerate(codes)])
        for i, weights in enumerate(align(prior, labeller, plan, songs)):
            assert list(weights.shape) == case["shapes"][i]
            close(weights, golden.arrays[f"{name}.{i}"], f"{name}.{i}")
            label = labeller.full(songs[i].request.song, songs[i].total_samples, 0)
            assert len(label.tokens) == case["full_tokens"][i]
            check_files(weights, label.lyrics, case["html"][str(i)], _under(f"{name}.", golden.arrays), i)


def check_files(weights, lyrics, expected, arrays, item):
    weights = align_files.trimmed(weights)
    assert json.loads(align_files.lyrics_json(lyrics[: weights.shape[1]])) == expected["lyrics_json"]
    found = np.array(json.loads(align_files.align_json(weights)))
    assert list(found.shape) == expected["align_json_shape"]
    assert np.array_equal(found, arrays[f"json_{item}"].numpy())
    picture = align_files.align_png(weights)
    width, height, depth, colour = int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24]), *picture[24:26]
    assert [width, height] == expected["png_size"] and (depth, colour, expected["png_mode"]) == (8, 0, "L")
    if f"png_small_{item}" in arrays:
        small = arrays[f"png_small_{item}"].numpy()
        grey = np.rot90(align_files.resized(align_files.to_bytes(weights), *expected["png_size"]))
        down, across = (n // few for n, few in zip(grey.shape, small.shape, strict=True))
        assert np.array_equal(grey[down // 2 :: down, across // 2 :: across], small)  # its nearest pixels


@pytest.mark.golden("sampling")
def test_alignment_without_lyrics(golden, models):
    """Nothing to align, and no crash (tests/golden/DEFECTS.md)."""
    case = golden.info["alignment"].get("nolyrics")
    if case is None:
        pytest.skip("this file has no songs without lyrics")
    codes = golden.arrays[f"ancestral.z_{models.top}"].numpy()
    for i, (length, characters) in enumerate(case["shapes"]):
        song = Song(
            Request(i, SongMeta(), 0), 1, models.info["metas"][i]["total_length"], {models.top: codes[i][:length]}
        )
        (weights,) = align(models.priors[models.top], models.labellers[models.top], models.plans[models.top], [song])
        assert weights.shape == (length, characters)
        assert align_files.lyrics_json("") == "[]" and align_files.trimmed(weights).shape == (length, 0)
