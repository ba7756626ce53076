"""Data sets named by their JSON files: the same training as from flags, and mistakes named."""

import json
import tarfile

import pytest

from jukebox.errors import DataError, HparamsError, UsageError

PRIOR = ("--steps=4", "--train_test_split=1", "--level=1")


@pytest.fixture
def described(tmp_path):
    """`described("pre_encoded", path, key=value)`: the flag with a data set's file of that type."""

    def write(kind, path, entry=None, **keys):
        file = tmp_path / f"{kind}.json"
        dataset = {"id": "my_audio", "path": str(path), **(entry or {})}
        file.write_text(json.dumps({"dataset_type": kind, "datasets": [dataset], **keys}))
        return f"--dataset-config={file}"

    return write


def test_a_prior_trains_on_the_published_pre_encoded_example(train, made, small, described):
    """The example's file as it stands, but for its path: a store or one of its levels."""
    by_flag = train(0, "flag", *PRIOR, f"--codes={made / 'codes'}", net=small.prior, audio="").losses()
    for folder in ("codes", "codes/level_1"):
        file = described("pre_encoded", made / folder, random_crop=False)
        run = train(0, f"file_{folder[-1]}", *PRIOR, file, net=small.prior, audio="")
        assert run.losses() == by_flag and len(by_flag) == 4


def test_audio_for_a_vqvae_and_for_a_prior(train, made, songs, small, described):
    file = described("audio_dir", songs, random_crop=False)
    assert train(0, "file", "--steps=2", file, audio="").losses() == train(0, "flag", "--steps=2").losses()
    stand = f"--restore_vqvae={made / 'vqvae'}"
    of_file = train(0, "prior_file", *PRIOR, stand, file, net=small.prior, audio="").losses()
    assert of_file == train(0, "prior_flag", *PRIOR, stand, "--aug_shift=False", net=small.prior).losses()


def test_what_does_not_fit_is_named(train, made, songs, small, described, tmp_path):
    def refused(error, text, *more, **kind):
        with pytest.raises(error, match=text):
            train(0, "refused", "--steps=1", *more, **kind)

    stored, audio = described("pre_encoded", made / "codes"), described("audio_dir", songs)
    refused(UsageError, "stored codes are for priors", stored, audio="")
    refused(UsageError, "--dataset-config and --audio_files_dir are both given", audio)
    refused(UsageError, "--dataset-config and --codes are both given", audio, "--codes=x", net=small.prior, audio="")
    refused(UsageError, "of a store --train_test_split", stored, "--val-dataset-config=x", net=small.prior, audio="")
    refused(UsageError, "--val-dataset-config needs --dataset-config", "--val-dataset-config=x")
    refused(DataError, "cannot be read", "--dataset-config=gone.json", audio="")
    model = tmp_path / "model.json"
    model.write_text('{"model_type": "lm", "training": {"pre_encoded": true}}')
    refused(HparamsError, "is a prior here: leave --model-config out", f"--model-config={model}", stored, audio="")
    cropped = described("pre_encoded", made / "codes", latent_crop_length=8)
    refused(DataError, "latent_crop_length has no effect on a prior", cropped, net=small.prior, audio="")


def test_tars_train_a_vqvae(train, songs, described, tmp_path, run_at):
    """Local tars of the same songs: the same chunks, so the same losses; what changes the sound changes them."""
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "x.tar", "w") as tar:
        for n in range(6):
            tar.add(songs / f"{n}.wav", f"{n}.wav")
            tar.add(_labels(tmp_path, n), f"{n}.json")
    flags = ("--steps=2", "--train_test_split=1")
    of_folder = train(0, "folder", *flags, described("audio_dir", songs, random_crop=False), audio="").losses()
    of_tars = train(0, "tars", *flags, described("wds", tmp_path / "tars", random_crop=False), audio="").losses()
    assert of_tars.keys() == of_folder.keys() == {1, 2}
    louder = described("wds", tmp_path / "tars", random_crop=False, volume_norm=True)
    assert train(0, "louder", *flags, louder, audio="").losses() != of_tars
    with pytest.raises(UsageError, match="audio to train on is of dataset_type"):
        train(0, "codes", *flags, described("wds", tmp_path / "tars", pre_encoded=True), audio="")


def _labels(folder, n):
    (folder / f"{n}.json").write_text(json.dumps({"artist": "mira vale"}))
    return folder / f"{n}.json"
