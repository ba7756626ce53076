"""The codebook: statistics that add up, a book that moves only by `update`, candidates for any number of ranks."""

import math

import pytest
import torch

from jukebox.nn.codebook import Codebook, draw_candidates


@pytest.fixture
def rows() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(60, 5)


@pytest.fixture
def book(rows) -> Codebook:
    book = Codebook(8, 5)
    book.start(rows[:8])
    return book


def test_the_nearest_vector(book, rows):
    found = book(rows)
    distance = ((rows[:, None] - book.vectors[None]) ** 2).sum(-1)
    assert torch.equal(found.codes, distance.argmin(1))
    torch.testing.assert_close(found.distance, distance.min(1).values.mean())
    assert torch.equal(found.vectors, book.vectors[found.codes]) and torch.equal(
        book.lookup(found.codes), found.vectors
    )
    assert found.codes[:8].tolist() == list(range(8))


def test_a_forward_changes_nothing(book, rows):
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    book.train()(rows * 3)
    book.statistics(rows, book(rows).codes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in book.state_dict().items())


def test_statistics_of_parts_add_up(book, rows):
    codes = book(rows).codes
    whole = book.statistics(rows, codes)
    parts = [book.statistics(rows[part], codes[part]) for part in (slice(0, 17), slice(17, 18), slice(18, None))]
    for i in range(2):
        torch.testing.assert_close(sum(part[i] for part in parts), whole[i])
    assert whole[1].sum() == len(rows)
    for code in range(8):
        torch.testing.assert_close(whole[0][code], rows[codes == code].sum(0))


def test_update_moves_towards_the_mean(book, rows):
    sums, counts = book.statistics(rows, book(rows).codes)
    for _ in range(200):
        metrics = book.update(sums, counts, torch.zeros(8, 5), mu=0.9, threshold=0.0)
    torch.testing.assert_close(book.vectors, sums / counts[:, None], rtol=1e-4, atol=1e-5)
    assert metrics["usage"] == metrics["used_curr"] == 8 and metrics["dk"] < 1e-6
    p = counts / counts.sum()
    assert float(metrics["entropy"]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-5)
    assert 0 < float(metrics["entropy"]) <= math.log(8)


@pytest.mark.parametrize("reset", [False, True])
def test_what_is_not_used_is_drawn_anew(book, reset):
    candidates = torch.full((8, 5), 9.0) + torch.arange(8.0)[:, None]
    counts = torch.tensor([0.0, 50, 50, 50, 50, 50, 50, 50])
    sums = book.vectors * counts[:, None]
    kept = book.vectors[1:].clone()
    metrics = book.update(sums, counts, candidates, mu=0.5, threshold=1.0, reset_revived=reset)
    assert torch.equal(book.vectors[0], candidates[0]) and metrics["usage"] == 7
    torch.testing.assert_close(book.vectors[1:], kept)
    again = book.update(sums, counts, candidates + 1, mu=0.5, threshold=0.4, reset_revived=reset)
    # With fresh sums the code lives on at the threshold; the published way draws it anew until it is used.
    assert torch.equal(book.vectors[0], candidates[0] if reset else candidates[0] + 1)
    assert again["usage"] == (8 if reset else 7)


def test_restored_codes_stay_where_they_are(book):
    vectors = book.vectors.clone()
    book.restore(12.5)
    book.update(vectors * 3, torch.full((8,), 3.0), torch.zeros(8, 5), mu=0.9, threshold=1.0)
    torch.testing.assert_close(book.vectors, vectors)
    assert bool(book.ready) and float(book.counts[0]) == pytest.approx(0.9 * 12.5 + 0.3)


@pytest.mark.parametrize("total, bins", [(60, 8), (10, 32), (7, 20)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_candidates_do_not_depend_on_the_number_of_ranks(rows, total, bins, ranks):
    rows, few = rows[:total], total < bins
    repeated = total * -(-bins // total) if few else total
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(repeated, generator=generator)
    noise = torch.randn(repeated, 5, generator=generator) if few else None
    whole = draw_candidates(rows, torch.arange(total), total, order, bins, noise)
    parts = [torch.arange(total)[rank::ranks] for rank in range(ranks)]
    drawn = [draw_candidates(rows[ids], ids, total, order, bins, noise) for ids in parts]
    torch.testing.assert_close(sum(drawn), whole, rtol=0, atol=0)
    nearest = ((whole[:, None] - rows[None]) ** 2).sum(-1).min(1)
    assert nearest.values.max() < (1e-2 if few else 1e-12)
    assert len(whole.unique(dim=0)) == bins  # noise keeps copies apart
