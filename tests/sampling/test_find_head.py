"""align.py --find: a planted head is found among others, written where sampling takes it from; untrained nets have none."""

import json
import math
import shutil
import tomllib

import numpy as np
import pytest
import torch

from jukebox import settings
from jukebox.audio import io
from jukebox.errors import CheckpointError, DataError, UsageError
from jukebox.models import build, checkpoint, found_head, model_set
from jukebox.parallel.comm import SoloComm
from jukebox.parallel.world import job
from jukebox.sampling import find_run
from jukebox.sampling.head_score import LEAST, score
from jukebox.sampling.hps import AlignHps, FindHps

SR, HOP, N_CTX, CHARACTERS, WIDTH = 8000, 16, 64, 16, 32

# ------------------------------------------------------------------------------------------------ synthetic attention


def rows(weights):
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def attention(codes, characters):
    """Heads of every sort by name, `[N, C]`: only two read along."""
    rng = np.random.default_rng(3)
    places = np.arange(characters)

    def around(place, width=0.5):
        return rows(np.exp(-0.5 * ((places - np.asarray(place)[:, None]) / width) ** 2) + 1e-6)

    lengths = rng.uniform(1, 3, characters).cumsum()
    sung = np.searchsorted(lengths / lengths[-1] * codes, np.arange(codes)).astype(float)
    return {
        "sung": around(sung),
        "sung, and elsewhere": 0.3 * around(sung),
        "sung, not sure": around(sung, characters / 12),
        "even": rows(np.ones((codes, characters))),
        "noise": rows(rng.random((codes, characters))),
        "sharp noise": rows(np.exp(8 * rng.random((codes, characters)))),
        "one place": around(np.full(codes, characters / 3)),
        "two places": around(np.where(np.arange(codes) < codes / 2, 0.3, 0.7) * characters),
        "back": around(sung[::-1]),
        "hardly moves": around(characters / 2 + sung / characters * 3),
        "to and fro": around(characters * (0.5 + 0.3 * np.sin(np.arange(codes) / codes * 19))),
        "faint": 0.001 * around(sung),
    }


@pytest.mark.parametrize(("codes", "characters"), [(400, 60), (1000, 200)])
def test_only_heads_that_read_along_score(codes, characters):
    heads = attention(codes, characters)
    found = score(np.stack(list(heads.values())), characters, np.random.default_rng(0))
    assert found is not None
    scores = dict(zip(heads, found[:, -1].tolist(), strict=True))
    reads = [name for name, value in scores.items() if value >= LEAST]
    assert reads == ["sung", "sung, and elsewhere", "sung, not sure"], scores
    assert scores["sung"] > 0.8 and max(value for name, value in scores.items() if name not in reads) < 0.06


def test_too_little_to_see():
    assert score(np.ones((2, 3, 40), np.float32), 40, np.random.default_rng(0)) is None
    assert score(np.ones((2, 40, 3), np.float32), 3, np.random.default_rng(0)) is None


# ---------------------------------------------------------------------------------------------------------------- a model

KINDS = {  # layers and heads of small priors, and where a head is planted
    "in front, dense": (dict(single_enc_dec=True, attn_order=0, prior_depth=3), (1, 1)),
    "in front": (dict(single_enc_dec=True, attn_order=12, prior_depth=32), (31, 0)),
    "beside": (dict(attn_order=6, prior_depth=8), (7, 1)),
}


def hps_of(root, name, **more):
    common = dict(levels=1, downs_t=(2,), strides_t=(4,), emb_width=4, width=4, depth=1, l_bins=8, sr=SR)
    return settings.from_presets("teeny", name=name, local_logdir=str(root), **common, **more)


def write(folder, hps, net, table):
    state = checkpoint.published_state(net, table)
    checkpoint.write(folder, 1, hps=dict(hps.values), model=state, opt=None, extra={})
    return folder


def sine(place):
    """Features of a place between 0 and 1, of equal length and mean 0: near places have like features. `[P, 28]`."""
    angles = torch.as_tensor(place, dtype=torch.float32)[:, None] * math.pi * torch.arange(1, 8)
    half = torch.cat([angles.cos(), angles.sin()], 1)
    return torch.cat([half, -half], 1)


@torch.no_grad()
def plant(prior, layer, head):
    """Let one head attend from every code to the character that the linear rule puts there, and the rest do nothing."""
    for parameter in prior.parameters():
        parameter.zero_()
    for module in prior.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.fill_(1)
    lyrics = torch.cat(
        [sine((torch.arange(CHARACTERS) - 0.5) / CHARACTERS), torch.tensor([[3.0, -3, 0, 0]] * CHARACTERS)], 1
    )
    codes = torch.cat([sine(torch.arange(N_CTX) / N_CTX), torch.tensor([[0.0, 0, 3, -3]] * N_CTX)], 1)
    prior.net.pos.copy_(torch.cat([lyrics, codes])[-len(prior.net.pos) :])
    attention, half = prior.net.transformer.layers[layer].attn, WIDTH // 2
    chosen = slice(half * head, half * head + 14)
    if prior.prefix:
        q, kv, base = attention.qkv, attention.qkv, WIDTH
    else:
        q, kv, base = attention.q, attention.kv, 0
        prior.lyric_encoder.net.pos.copy_(lyrics)
        prior.lyric_encoder.proj.weight.copy_(torch.eye(WIDTH))
    q.weight[:14, chosen] = 3 * torch.eye(14)
    kv.weight[:14, chosen.start + base : chosen.stop + base] = 3 * torch.eye(14)
    flag = half * head + 14  # lyrics, not codes, are what it looks for
    q.bias[flag], kv.weight[28, base + flag] = 5, 5


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Songs of noise, with lyrics beside them."""
    folder = tmp_path_factory.mktemp("find") / "music"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        io.write(folder / f"{n}.wav", 0.3 * rng.standard_normal(int(SR * (0.2 + 0.05 * n))), SR)
        (folder / f"{n}.txt").write_text("" if n == 5 else "down the river and over the hill " * (n + 1))
    return folder


@pytest.fixture(scope="module")
def run_of(music):
    """`run_of(kind, planted)`: the folder of a prior, a VQ-VAE under it, both of random weights but for what is planted."""
    root = music.parent / "logs"

    def make(kind, planted):
        more, place = KINDS[kind]
        folder = root / f"{kind.replace(', ', '_').replace(' ', '_')}_{planted}"
        if folder.exists():
            return folder
        torch.manual_seed(0)
        if not (root / "vqvae").exists():
            hps = hps_of(root, "vqvae")
            net = build.build_vqvae(hps)
            net.codebook(0).vectors.normal_()
            write(root / "vqvae", hps, net, build.vqvae_names(hps))
        hps = hps_of(
            root, folder.name, prior=True, level=0, restore_vqvae=str(root / "vqvae"), audio_files_dir=str(music),
            n_ctx=N_CTX, prior_width=WIDTH, m_attn=1.0, heads=2, blocks=8, labels=True, labels_v3=True, y_bins=(5, 5),
            max_bow_genre_size=1, t_bins=4, min_duration=0.1, max_duration=9.0, use_tokens=True, n_tokens=CHARACTERS,
            n_vocab=79, prime_width=WIDTH, prime_depth=2, prime_m_attn=1.0, prime_blocks=4, **more,
        )  # fmt: skip
        prior = build.build_prior(hps)
        if planted:
            plant(prior, *place)
        return write(folder, hps, prior, build.prior_names(hps))

    return make


def find(model, *flags):
    hps = settings.parse("align", ["--find", f"--model={model}", *map(str, flags)])
    models = model_set.find(hps.section(AlignHps).model)
    return find_run.find(models, hps.section(FindHps), "", SoloComm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_head_is_found(run_of, kind):
    """And written beside the run's checkpoint, from where it is read with the prior's settings."""
    run = run_of(kind, True)
    assert find(run, "--songs=3") == KINDS[kind][1]
    written = json.loads((run / found_head.FILE).read_text())
    assert written.pop("alignment_score") > 0.3
    assert written == {"level": 0, **dict(zip(found_head.KEYS, KINDS[kind][1], strict=True))}
    models = model_set.find(str(run))
    hps = model_set.prior_hps(models.priors[0], model_set.load_vqvae(models.vqvae)[1], 0)
    assert (hps.values["alignment_layer"], hps.values["alignment_head"]) == KINDS[kind][1]


def test_whatever_the_songs(run_of):
    found = [find(run_of("in front, dense", True), f"--seed={seed}", "--songs=2") for seed in (1, 2)]
    assert found == [(1, 1)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_net_has_none(run_of, kind, caplog):
    caplog.set_level("INFO")
    run = run_of(kind, False)
    assert find(run) is None and not (run / found_head.FILE).exists()
    assert "none: no head" in caplog.text and "5 songs have lyrics" in caplog.text


SET = """# songs of mine
about = "two nets"

[vqvae]
checkpoint = "{vqvae}"

# the only level
[[priors]]
checkpoint = "{run}"
alignment_layer = 0   # a guess
temp = 0.9

# notes of mine at the end
"""


def test_a_model_set_is_written_into_and_sung_with(run_of, music, tmp_path):
    """The rest of the file stays; songs sampled from then on come with the times of their words, without a flag."""
    run = run_of("in front, dense", True)
    (run / found_head.FILE).unlink(missing_ok=True)
    before = SET.format(vqvae=run.parent / "vqvae", run=run)
    file = tmp_path / "mine.toml"
    file.write_text(before)
    words = (
        f"--sample_length=2048 --total_sample_length_in_seconds=0.3 --n_samples=1 --device=cpu --model={file}".split()
    )
    lyrics = "--lyrics=down the river and over the hill"
    assert sing([*words, f"--name={tmp_path / 'guessed'}", lyrics]) == 0  # layer 0 and no head: not aligned
    assert not (tmp_path / "guessed/level_0/item_0/align.json").exists()
    assert find(file, "--songs=2") == (1, 1) and not (run / found_head.FILE).exists()
    after = file.read_text()
    assert tomllib.loads(after)["priors"][0].items() >= {"alignment_layer": 1, "alignment_head": 1, "temp": 0.9}.items()
    assert [line for line in before.splitlines() if line not in after.splitlines()] == [
        "alignment_layer = 0   # a guess"
    ]
    assert after.index("alignment_score") < after.index("# notes of mine")
    assert sing([*words, f"--name={tmp_path / 'found'}", lyrics]) == 0
    assert (tmp_path / "found/level_0/item_0/align.json").exists()


def sing(flags):
    """sample.py in this process."""
    from jukebox.sampling import run

    try:
        return run.main(settings.parse("sample", flags))
    finally:
        job.renew()


def test_mistakes(run_of, music, tmp_path):
    run = run_of("in front, dense", True)
    with pytest.raises(UsageError, match="--codes and --audio_files_dir both"):
        find(run, "--codes=x", "--audio_files_dir=y")
    (tmp_path / "silent").mkdir()
    shutil.copy(music / "5.wav", tmp_path / "silent")
    with pytest.raises(DataError, match="none of its songs has lyrics"):
        find(run, f"--audio_files_dir={tmp_path / 'silent'}")
    moved = shutil.copytree(run, tmp_path / "moved")
    (moved / found_head.FILE).write_text('{"alignment_layer": "1"}')
    with pytest.raises(CheckpointError, match=r"alignment\.json: not what align\.py --find writes"):
        find(moved)


def test_a_set_in_another_hand_is_left_alone(tmp_path):
    file = tmp_path / "odd.toml"
    file.write_text('priors = [{checkpoint = "a"}]\n[vqvae]\ncheckpoint = "b"\n')
    with pytest.raises(UsageError, match="by hand:\nalignment_layer = 3"):
        found_head.write_into(file, 0, {"alignment_layer": 3})
    assert "alignment" not in file.read_text()
