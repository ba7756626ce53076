"""Quantisers of latent frames: residual codebooks by moving averages or by gradient, and finite scalar grids.

Legend: B batch, N latent frames, D latent channels, Q stages, K codes of a codebook, w codebook width, R = B N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.autoencoder.layers import WNConv1d
from jukebox.autoencoder.parts import DACQuantiserArgs, RVQArgs
from jukebox.nn.codebook import Codebook


class Draws:
    """Where random numbers come from: torch's generator of the device, or one that is given."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def integers(self, low: int, high: int, count: int, like: Tensor) -> Tensor:
        """`count` integers in [low, high)."""
        return torch.randint(low, high, (count,), generator=self.generator, device=like.device)


def full_precision(x: Tensor) -> torch.autocast:
    """Distances are compared in float32, also inside an autocast region."""
    return torch.autocast(x.device.type, enabled=False)


def straight_through(x: Tensor, quantised: Tensor) -> Tensor:
    """`quantised`, with the gradient of x (arXiv:1711.00937 sec. 3.2)."""
    return x + (quantised - x).detach()


# ------------------------------------------------------------------------------- codebooks learnt by moving averages


@dataclass
class CodebookStatistics:
    """What fell on the codes of each stage in one forward; sums and counts are to be added up over ranks.

    sums `[Q, K, w]`, counts `[Q, K]`, rows `[Q, R, w]`: the vectors that each stage had to quantise.
    """

    sums: Tensor
    counts: Tensor
    rows: Tensor


class _Stage(nn.Module):
    """A codebook under its published names: `_codebook.{initted, cluster_size, embed_avg, embed}`, one head in front."""

    def __init__(self, codebook: Codebook) -> None:
        super().__init__()
        self._codebook = codebook

    @property
    def codebook(self) -> Codebook:
        return self._codebook


def _published_codebook(bins: int, width: int) -> Codebook:
    codebook = Codebook(bins, width)
    codebook.register_state_dict_post_hook(_to_published)  # type: ignore[no-untyped-call]
    codebook.register_load_state_dict_pre_hook(_from_published)  # type: ignore[no-untyped-call]
    return codebook


def _to_published(_: nn.Module, state: dict[str, Tensor], prefix: str, __: object) -> None:
    for theirs, ours in _CODEBOOK_NAMES.items():
        value = state.pop(prefix + ours)
        state[prefix + theirs] = value.float().reshape(1) if ours == "ready" else value[None]


def _from_published(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
    for theirs, ours in _CODEBOOK_NAMES.items():
        if prefix + theirs in state:
            value = state.pop(prefix + theirs)[0]
            state[prefix + ours] = value != 0 if ours == "ready" else value


_CODEBOOK_NAMES = {"initted": "ready", "cluster_size": "counts", "embed_avg": "sums", "embed": "vectors"}


class ResidualVQ(nn.Module):
    """Residual quantisation, each stage coding what the ones before left over (arXiv:2107.03312 sec. III-C).

    A forward changes nothing: `start` gives the codebooks their first vectors and `update` moves them.
    """

    def __init__(self, args: RVQArgs) -> None:
        super().__init__()
        self.args = args
        width = args.codebook_dim or args.dim
        projected = width != args.dim
        self.project_in = nn.Linear(args.dim, width) if projected else nn.Identity()
        self.project_out = nn.Linear(width, args.dim) if projected else nn.Identity()
        books = [
            _published_codebook(args.codebook_size, width)
            for _ in range(1 if args.shared_codebook else args.num_quantizers)
        ]
        self.layers = nn.ModuleList(_Stage(books[q % len(books)]) for q in range(args.num_quantizers))
        if not args.kmeans_init:
            for book in books:
                book.start(torch.empty_like(book.vectors).uniform_(-(width**-0.5), width**-0.5))

    @property
    def codebooks(self) -> list[Codebook]:
        """The codebook of each stage; with `shared_codebook` Q times the same one."""
        return [stage.codebook for stage in self.layers if isinstance(stage, _Stage)]

    @property
    def ready(self) -> bool:
        return all(bool(book.ready) for book in self.codebooks)

    def forward(self, x: Tensor, stages: int | None = None) -> tuple[Tensor, Tensor, Tensor, CodebookStatistics]:
        """x `[B, N, D]` -> quantised `[B, N, D]`, codes `[B, N, Q]`, loss (a scalar, 0 in eval mode), statistics.

        Only the first `stages` are used; in training the codes of the rest are -1, otherwise they are left out.
        """
        used = stages or self.args.num_quantizers
        residual = self.project_in(x).float()
        quantised, loss = torch.zeros_like(residual), residual.new_zeros(())
        codes: list[Tensor] = []
        rows: list[Tensor] = []
        for book in self.codebooks[:used]:
            with full_precision(x):
                found = book(residual.flatten(0, 1))
            vectors = found.vectors.view_as(residual)
            if self.training:
                loss = loss + self.args.commitment_weight * F.mse_loss(residual, vectors)
                rows.append(residual.detach().flatten(0, 1))
                vectors = straight_through(residual, vectors)
            quantised = quantised + vectors
            residual = residual - vectors.detach()
            codes.append(found.codes.view(residual.shape[:2]))
        statistics = self._statistics(rows, codes)
        if self.training:
            codes += [torch.full_like(codes[0], -1)] * (self.args.num_quantizers - used)
        out = self.project_out(quantised.to(x.dtype))
        return out, torch.stack(codes, dim=-1), loss / self.args.num_quantizers, statistics

    def lookup(self, codes: Tensor) -> Tensor:
        """codes `[B, N, Q' <= Q]` -> `[B, N, D]`; a code of -1 adds nothing."""
        books = self.codebooks[: codes.shape[-1]]
        total = sum(
            (
                book.lookup(column.clamp_min(0)) * (column >= 0)[..., None]
                for book, column in zip(books, codes.unbind(-1), strict=True)
            ),
            start=torch.zeros((), device=codes.device),
        )
        out: Tensor = self.project_out(total)
        return out

    def _statistics(self, rows: list[Tensor], codes: list[Tensor]) -> CodebookStatistics:
        """Stages that were left out count nothing."""
        books = self.codebooks
        empty = books[0].vectors.new_zeros
        if not rows:
            none = empty(0)
            return CodebookStatistics(none, none, none)
        pairs = [book.statistics(r, c.flatten()) for book, r, c in zip(books, rows, codes, strict=False)]
        unused = len(books) - len(rows)
        sums = [s for s, _ in pairs] + [empty(pairs[0][0].shape)] * unused
        counts = [c for _, c in pairs] + [empty(pairs[0][1].shape)] * unused
        return CodebookStatistics(torch.stack(sums), torch.stack(counts), torch.stack(rows + [rows[0]] * unused))

    @torch.no_grad()
    def start(self, x: Tensor, draws: Draws) -> None:
        """First vectors by k-means, stage after stage, from latents x `[B, N, D]` of all ranks; equal on every rank."""
        rows = self.project_in(x).float().flatten(0, 1)
        done: set[int] = set()
        for book in self.codebooks:
            if id(book) not in done:
                book.start(*kmeans(rows, book.bins, self.args.kmeans_iters, draws))
                done.add(id(book))
            rows = rows - book(rows).vectors

    @torch.no_grad()
    def update(self, statistics: CodebookStatistics, candidates: Tensor) -> dict[str, Tensor]:
        """Move the codebooks by statistics of all ranks; `candidates` `[Q, K, w]` replace codes that died.

        A shared codebook moves once, by all stages together. Returns the mean metrics of the codebooks.
        """
        sums, counts, books = statistics.sums, statistics.counts, self.codebooks
        if self.args.shared_codebook:
            sums, counts, books = sums.sum(0, keepdim=True), counts.sum(0, keepdim=True), books[:1]
        metrics = [
            book.update(
                s, c, spare,
                mu=self.args.decay, threshold=self.args.threshold_ema_dead_code, reset_revived=True, smoothing=self.args.eps,
            )
            for book, s, c, spare in zip(books, sums, counts, candidates, strict=False)
            if c.sum() > 0 or self.args.shared_codebook
        ]  # fmt: skip
        return {name: torch.stack([m[name] for m in metrics]).mean() for name in metrics[0]}


def kmeans(rows: Tensor, bins: int, iterations: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Means `[K, w]` and counts `[K]` of rows `[R, w]`; starts from drawn rows, a mean that attracts none stays."""
    if len(rows) >= bins:
        order = draws.uniform((len(rows),), rows).argsort()
    else:
        order = draws.integers(0, len(rows), bins, rows)
    means = rows[order[:bins]].clone()
    book = Codebook(bins, rows.shape[1]).to(rows.device)
    counts = means.new_zeros(bins)
    for _ in range(iterations):
        book.start(means)
        sums, counts = book.statistics(rows, book(rows).codes)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], means)
    return means, counts


# ----------------------------------------------------------------------------------------- codebooks learnt by gradient


class _DACStage(nn.Module):
    """Project down, take the row nearest in direction, project up."""

    def __init__(self, dim: int, bins: int, width: int) -> None:
        super().__init__()
        self.in_proj = WNConv1d(dim, width, 1)
        self.out_proj = WNConv1d(width, dim, 1)
        self.codebook = nn.Embedding(bins, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x [B, D, N] -> quantised [B, D, N], codes [B, N], projected [B, w, N], commitment [B], codebook loss [B]."""
        projected = self.in_proj(x)
        codes = self.nearest(projected)
        rows = self.codebook(codes).mT  # (B, N, w) -> (B, w, N)
        commitment = (projected - rows.detach()).square().mean((1, 2))
        codebook = (rows - projected.detach()).square().mean((1, 2))
        return self.out_proj(straight_through(projected, rows)), codes, projected, commitment, codebook

    @torch.no_grad()
    def nearest(self, projected: Tensor) -> Tensor:
        """[B, w, N] -> codes [B, N]; both sides are scaled to length 1 (arXiv:2110.04627 sec. 3.1)."""
        frames = F.normalize(projected.mT.float().flatten(0, 1))
        rows = F.normalize(self.codebook.weight.float())
        with full_precision(frames):
            distance = frames.square().sum(1, keepdim=True) - 2 * frames @ rows.t() + rows.square().sum(1)
        return distance.argmin(1).view(projected.shape[0], -1)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [B, N] -> [B, D, N]."""
        y: Tensor = self.out_proj(self.codebook(codes).mT)
        return y


@dataclass
class DACQuantised:
    """quantised [B, D, N], codes [B, Q, N], projected [B, sum of w, N]; commitment and codebook losses, scalars."""

    quantised: Tensor
    codes: Tensor
    projected: Tensor
    commitment: Tensor
    codebook: Tensor


class DACResidualVQ(nn.Module):
    """Residual quantisation in small projected spaces (arXiv:2306.06546 sec. 3.2)."""

    def __init__(self, args: DACQuantiserArgs) -> None:
        super().__init__()
        self.dropout = args.quantizer_dropout
        dims = args.codebook_dim
        widths = dims if isinstance(dims, tuple) else (dims,) * args.n_codebooks
        self.quantizers = nn.ModuleList(_DACStage(args.input_dim, args.codebook_size, width) for width in widths)

    @property
    def stages(self) -> list[_DACStage]:
        return [stage for stage in self.quantizers if isinstance(stage, _DACStage)]

    def forward(self, x: Tensor, draws: Draws, stages: int | None = None) -> DACQuantised:
        """x [B, D, N]. In eval mode `stages` limits the codebooks; in training some items use a drawn number of them."""
        total = len(self.quantizers)
        used = torch.full((x.shape[0],), total, device=x.device)
        if self.training and self.dropout:
            drawn = draws.integers(1, total + 1, x.shape[0], x)
            dropped = int(x.shape[0] * self.dropout)
            used[:dropped] = drawn[:dropped]
        quantised, residual = torch.zeros_like(x), x
        commitment, codebook = x.new_zeros(()), x.new_zeros(())
        codes, projected = [], []
        for index, stage in enumerate(self.stages[: None if self.training else stages]):
            y, c, p, commitment_loss, codebook_loss = stage(residual)
            mask = index < used
            quantised = quantised + y * mask[:, None, None]
            residual = residual - y
            commitment = commitment + (commitment_loss * mask).mean()
            codebook = codebook + (codebook_loss * mask).mean()
            codes.append(c)
            projected.append(p)
        return DACQuantised(quantised, torch.stack(codes, 1), torch.cat(projected, 1), commitment, codebook)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [B, Q' <= Q, N] -> [B, D, N]."""
        parts = [stage.lookup(codes[:, q]) for q, stage in enumerate(self.stages[: codes.shape[1]])]
        return torch.stack(parts).sum(0)


# -------------------------------------------------------------------------------------------------- finite scalar grids


class FSQ(nn.Module):
    """Each channel is bounded and rounded to its own number of levels (arXiv:2309.15505); nothing to learn."""

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        steps = torch.tensor(levels)
        self.register_buffer("levels", steps, persistent=False)
        self.register_buffer("basis", torch.cat([steps.new_ones(1), steps.cumprod(0)[:-1]]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., L] float32 -> grid values in [-1, 1], with a straight-through gradient."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(x + torch.atanh(offset / half)) * half - offset
        return straight_through(bounded, bounded.round()) / (self.levels // 2)

    def indices(self, values: Tensor) -> Tensor:
        """Grid values [..., L] -> one integer each [...], int32."""
        half = self.levels // 2
        return ((values * half + half).round() * self.basis).sum(-1).to(torch.int32)

    def lookup(self, indices: Tensor) -> Tensor:
        """[...] -> grid values [..., L], float32."""
        half = self.levels // 2
        return ((indices[..., None] // self.basis) % self.levels - half) / half


class DitheredFSQ(nn.Module):
    """A uniform grid over [-1, 1] per channel, trained with noise of the grid's width."""

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int], noise_dropout: float) -> None:
        super().__init__()
        self.noise_dropout = noise_dropout
        steps = torch.tensor(levels)
        self.register_buffer("levels", steps, persistent=False)
        self.register_buffer("basis", torch.cat([steps.new_ones(1), steps.cumprod(0)[:-1]]), persistent=False)

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """x [B, ..., L] -> values in [-1, 1]; in training a mixture of plain, rounded and dithered items."""
        bounded = torch.tanh(x)
        step = 2 / (self.levels - 1)
        rounded = straight_through(bounded, ((bounded + 1) / step).round() * step - 1)
        if not self.training:
            return rounded
        per_item = (x.shape[0], *[1] * (x.ndim - 1))
        mixed = torch.where(draws.uniform(per_item, x) < self.noise_dropout, bounded, rounded)
        dithered = bounded + (draws.uniform(x.shape, x) - 0.5) * step
        return torch.where(draws.uniform(per_item, x) < self.noise_dropout, mixed, dithered)

    def indices(self, values: Tensor) -> Tensor:
        """Values [..., L] -> the nearest grid point's integer [...], int64."""
        steps = ((values + 1) * (self.levels - 1) / 2).round().long().clamp_min(0).minimum(self.levels - 1)
        return (steps * self.basis).sum(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        return ((indices[..., None] // self.basis) % self.levels) * (2 / (self.levels - 1)) - 1
