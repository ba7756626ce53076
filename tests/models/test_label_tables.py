"""A prior for other artists and genres: what ids keep, what new ones begin as, and the optimiser's moments with them."""

from pathlib import Path

import pytest
import torch

from jukebox import settings
from jukebox.models import build, checkpoint, label_tables

SIZES = dict(
    levels=1, downs_t=(1,), strides_t=(2,), emb_width=4, width=4, depth=1, l_bins=8, n_ctx=8, prior_width=8, prior_depth=1,
    max_bow_genre_size=1, t_bins=4, min_duration=0, max_duration=10, level=0, prior=True,
)  # fmt: skip


def net_of(y_bins):
    hps = settings.from_presets("teeny", y_bins=y_bins, **SIZES)
    return build.build_prior(hps), build.prior_names(hps)


@pytest.fixture
def published():
    torch.manual_seed(0)
    net, table = net_of((3, 4))
    optimiser = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    names = [name for name, _ in net.named_parameters()]
    opt = checkpoint.opt_to_published(optimiser.state_dict(), names, table)
    return checkpoint.Checkpoint(Path("x"), checkpoint.published_state(net, table), opt=opt, extra={"players": {}})


def test_unchanged_tables_leave_the_file_as_it_is(published):
    assert label_tables.fitted(published, net_of((3, 4))[1]) is published


@pytest.mark.parametrize("y_bins", [(3, 6), (2, 9), (5, 1)])
def test_other_sizes(published, y_bins):
    net, table = net_of(y_bins)
    found = label_tables.fitted(published, table)
    assert not found.extra
    checkpoint.load_into(net, dict(found.model), table)
    for name, module, rows in (("artist", net.labels.artist, y_bins[1]), ("genre", net.labels.genre, y_bins[0])):
        before = published.model[f"y_emb.{'bow_genre' if name == 'genre' else name}_emb.emb.weight"]
        kept = min(rows, len(before))
        assert torch.equal(module.weight[:kept], before[:kept])
        assert torch.equal(module.weight[kept:], before[:1].expand(rows - kept, -1))
    optimiser = torch.optim.Adam(net.parameters())
    names = [name for name, _ in net.named_parameters()]
    optimiser.load_state_dict(checkpoint.opt_from_published(found.opt, names, table))
    for parameter in net.parameters():
        assert optimiser.state[parameter]["exp_avg"].shape == parameter.shape
    new = optimiser.state[net.labels.artist.weight]["exp_avg"][4:]
    assert not len(new) or not new.any()


def test_files_without_an_optimiser(published):
    bare = checkpoint.Checkpoint(Path("x"), published.model)
    assert label_tables.fitted(bare, net_of((3, 9))[1]).opt is None
