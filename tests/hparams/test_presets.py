"""Finding, extending and refusing presets; the shipped ones carry the published values."""

import json
import logging
import tomllib
from pathlib import Path

import pytest

from jukebox import settings
from jukebox.errors import HparamsError
from jukebox.hparams import presets
from jukebox.hparams.resolve import DEFAULT

SELECTABLE = {
    "teeny", "easy", "vqvae", "upsampler_level_0", "upsampler_level_1", "prior_5b", "prior_5b_lyrics",
    "prior_1b_lyrics", "small_vqvae", "small_prior", "small_labelled_prior", "small_single_enc_dec_prior",
    "small_sep_enc_dec_prior", "small_upsampler", "all_fp16", "cpu_ema",
}  # fmt: skip
BASES = {"labels", "labels_v3", "upsamplers"}
FILES = "https://openaipublic.azureedge.net/jukebox/models/"
PUBLISHED = json.loads(Path(__file__).with_name("published_presets.json").read_text())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUKEBOX_HPS_DIR", str(tmp_path))
    return tmp_path


def test_all_published_sets_are_there() -> None:
    found = presets.listing()
    assert {preset.name for preset in found if preset.selectable} >= SELECTABLE
    assert {preset.name for preset in found if not preset.selectable} == BASES
    assert all(preset.about for preset in found)
    assert PUBLISHED.keys() == SELECTABLE


@pytest.mark.parametrize("name", sorted(SELECTABLE))
def test_values_are_the_published_ones_and_no_others(name: str) -> None:
    resolved = settings.from_presets(name)
    expected = {key: tuple(value) if isinstance(value, list) else value for key, value in PUBLISHED[name].items()}
    given = {key: resolved.values[key] for key, origin in resolved.origins.items() if origin != DEFAULT}
    files = {key: str(given.pop(key)) for key in ("restore_vqvae", "restore_prior") if key in given}
    assert given == expected
    assert all(file.startswith(FILES) for file in files.values())


@pytest.mark.parametrize("name", sorted(path.stem for path in (presets.share_folder() / "hparams").glob("*.toml")))
def test_every_shipped_preset_composes_alone_and_after_a_vqvae(name: str) -> None:
    if name in BASES:
        return
    settings.from_presets(name)
    if "vqvae" not in name:
        settings.from_presets(f"vqvae,{name}")


def test_a_child_wins_over_what_it_extends_and_origins_name_the_file() -> None:
    resolved = settings.from_presets("vqvae,prior_1b_lyrics")
    assert resolved.origins["y_bins"] == "preset labels_v3"
    assert resolved.origins["n_ctx"] == "preset prior_1b_lyrics"
    assert [preset.name for preset in presets.chain("upsampler_level_1")] == [
        "labels",
        "upsamplers",
        "upsampler_level_1",
    ]


def test_blanks_and_empty_names_are_ignored() -> None:
    assert [preset.name for preset in presets.chain(" easy , ,teeny,")] == ["easy", "teeny"]


@pytest.mark.parametrize("name", sorted(BASES))
def test_a_base_is_not_selectable_and_says_what_is(name: str) -> None:
    with pytest.raises(HparamsError, match=f"--hps={name}: {name} is a base for `extends`.*Take one"):
        presets.chain(name)


def test_an_unknown_preset_is_named_with_its_nearest() -> None:
    with pytest.raises(HparamsError, match="--hps=smal_prior: .*Did you mean small_prior"):
        presets.chain("small_vqvae,smal_prior")


def test_own_presets_come_first_and_may_extend_shipped_ones(own: Path) -> None:
    (own / "wide.toml").write_text('about = "wide"\nextends = ["small_vqvae"]\nwidth = 64\n')
    (own / "easy.toml").write_text("sr = 8000\n")
    resolved = settings.from_presets("wide,easy")
    assert [resolved.values[key] for key in ("width", "l_bins", "sr")] == [64, 1024, 8000]
    assert "wide" in [preset.name for preset in presets.listing()]


def test_a_preset_by_path_extends_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("width = 8\ndepth = 2\n")
    (tmp_path / "b.toml").write_text('extends = ["a"]\ndepth = 1\n')
    resolved = settings.from_presets(str(tmp_path / "b.toml"))
    assert (resolved.values["width"], resolved.values["depth"]) == (8, 1)
    assert resolved.origins["depth"] == f"preset {tmp_path / 'b.toml'}"
    with pytest.raises(HparamsError, match="there is no file"):
        presets.chain(str(tmp_path / "c.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht = 3", "no hyperparameter widht. Did you mean --width"),
        ("width = 1.5", "width = 1.5: an integer is needed"),
        ('width = "3"', "width = '3': an integer is needed"),
        ("train = 1", "train = 1: True or False is needed"),
        ("width = 0", r"--width=0 \(from: preset bad\) should be greater than 0"),
        ("width = 3\nwidth =\n", "not a readable preset.*line 2"),
        ("[vqvae]\nwidth = 3", "a preset is flat"),
        ('extends = "easy"', "should be a list"),
        ('extends = ["bad"]', "extends itself: bad -> bad"),
        ('extends = ["nothing"]', "no preset of this name"),
    ],
)
def test_a_faulty_preset_says_where_and_what(own: Path, text: str, message: str) -> None:
    (own / "bad.toml").write_text(text)
    with pytest.raises(HparamsError, match=message):
        settings.from_presets("bad")


def test_a_preset_that_is_no_text_is_refused(own: Path) -> None:
    (own / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HparamsError, match="not a readable preset"):
        settings.from_presets("bad")


def test_retired_keys_in_a_preset_are_accepted_with_one_warning(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    (own / "old.toml").write_text('sampler = "ancestral"\npiped = true\n')
    with caplog.at_level(logging.WARNING):
        settings.from_presets("old")
    assert len(caplog.records) == 1
    assert "sampler (see --mode of sample.py), piped" in caplog.text


def test_the_settings_of_a_run_read_back(tmp_path: Path) -> None:
    first = settings.parse("train", ["--hps=small_vqvae,cpu_ema", "--bs=4", "--name=2024_01_01"])
    (tmp_path / "hps.toml").write_text(first.to_toml())
    again = settings.parse("train", [f"--hps={tmp_path / 'hps.toml'}"])
    assert again.values == first.values


def test_model_sets_name_known_presets_and_published_files() -> None:
    assert {"1b_lyrics", "5b", "5b_lyrics"} <= set(presets.model_sets())
    for name in ("1b_lyrics", "5b", "5b_lyrics"):
        path = presets.find_model_set(name)
        assert path is not None
        table = tomllib.loads(path.read_text())
        tops = settings.from_presets(table["vqvae"]["hps"])
        assert table["vqvae"]["checkpoint"] == tops.values["restore_vqvae"]
        for level, prior in enumerate(table["priors"]):
            resolved = settings.from_presets(prior["hps"])
            assert resolved.values["level"] == level
            assert resolved.values["restore_prior"] == prior["checkpoint"]
    assert presets.find_model_set("nothing") is None
