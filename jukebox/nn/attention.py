"""Multi-head attention under a pattern: all positions at once, or the next few against a preallocated cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.nn import patterns as P
from jukebox.nn.cache import LayerCache
from jukebox.nn.linear import Linear
from jukebox.nn.patterns import Pattern


class Attention(nn.Module):
    """Attention of one layer (arXiv:2005.00341 sec. 4.1); holds weights only.

    W is the width of the transformer, S = int(m_attn * W) the state, split over `heads`. Kind 6 takes its keys and
    values from encoder states. `zero_out` starts the output projection at zero. Raises ValueError when S is not
    divisible by heads.
    """

    def __init__(
        self, width: int, state: int, heads: int, pattern: Pattern, *, dropout: float = 0.0, resid_dropout: float = 0.0,
        init_scale: float = 1.0, zero_out: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if state % heads:
            raise ValueError(f"the attention state {state} (m_attn x width) is not divisible by heads {heads}")
        self.pattern, self.heads, self.state = pattern, heads, state
        self.dropout, self.resid_dropout = dropout, nn.Dropout(resid_dropout)
        if pattern.kind == P.ENCODER:
            self.q = Linear(width, state, init_scale=init_scale)
            self.kv = Linear(width, 2 * state, init_scale=init_scale)
        else:
            self.qkv = Linear(width, 3 * state, init_scale=init_scale)
        self.out = Linear(state, width, init_scale=init_scale, zero_out=zero_out)

    def forward(
        self, x: Tensor, encoded: Tensor | None = None, weights: list[Tensor] | None = None
    ) -> Tensor:  # fmt: skip
        """All positions at once. x `[B, n, W]`, encoded `[B, E, W]` for kind 6 -> `[B, n, W]`.

        The softmax weights are appended to `weights` when a list is given: `[B, H, queries, keys]`; kinds 1 and 3
        `[B*blocks, H, width, width]`, kind 2 `[B*width, H, blocks, blocks]`, kind 7 cut to code queries x lyric keys.
        """
        if self.pattern.kind == P.ENCODER:
            assert encoded is not None, "encoder states are missing"
            q = self.q(x)
            k, v = self.kv(encoded.to(x.dtype)).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        y = self._attend(q, k, v, weights)
        return self.resid_dropout(self.out(y))  # type: ignore[no-any-return]

    def extend(self, x: Tensor, start: int, cache: LayerCache) -> Tensor:
        """The m positions from `start` on, with the past in `cache`, which is extended by them.

        x `[B, m, W]` -> `[B, m, W]`; equal to `forward` at these positions up to rounding, for any partition.
        """
        if self.pattern.kind == P.ENCODER:
            y = self._heads_attend(self.q(x), *cache.encoded())
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            y = self._step(q, k, v, start, cache) if x.shape[1] == 1 else self._extend(q, k, v, start, cache)
        return self.out(y)  # type: ignore[no-any-return]

    def encode(self, encoded: Tensor, cache: LayerCache) -> None:
        """Kind 6: fill the cache with the keys and values of encoder states `[B, E, W]`, once per window."""
        cache.write_encoded(*self.kv(encoded).chunk(2, dim=-1))

    # ------------------------------------------------------------------------------------------- all positions

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, weights: list[Tensor] | None) -> Tensor:
        p, (B, n, S) = self.pattern, q.shape
        rows = (B, n // p.width, p.width, S)
        match p.kind:
            case P.DENSE | P.LYRICS:
                seen = n if p.kind == P.DENSE else min(n, p.seen_len)
                k, v = k[:, :seen], v[:, :seen]
                if seen == n:
                    return self._heads_attend(q, k, v, causal=True, weights=self._lyric_cut(weights))
                at = torch.arange(n, device=q.device)
                mask = p.visible(at[:, None], at[None, :seen])
                return self._heads_attend(q, k, v, mask=mask, weights=self._lyric_cut(weights))
            case P.ROW:
                q, k, v = (t.reshape(-1, p.width, S) for t in (q, k, v))
                return self._heads_attend(q, k, v, causal=True, weights=weights).reshape(B, n, S)
            case P.COLUMN:
                q, k, v = (t.view(rows).transpose(1, 2).reshape(B * p.width, -1, S) for t in (q, k, v))
                y = self._heads_attend(q, k, v, causal=True, weights=weights)
                return y.reshape(B, p.width, -1, S).transpose(1, 2).reshape(B, n, S)
            case P.PREVIOUS_ROW:
                k, v = (F.pad(t.view(rows)[:, :-1], (0, 0, 0, 0, 1, 0)).flatten(0, 1) for t in (k, v))
                return self._heads_attend(q.reshape(-1, p.width, S), k, v, weights=weights).reshape(B, n, S)
            case P.SUMMARY | P.SUMMARY_SPREAD:
                kept = p.kept_positions().to(q.device)
                k, v = (F.pad(t[:, kept], (0, 0, p.zero_slots, 0)) for t in (k, v))
                return self._heads_attend(q, k, v, mask=self._summary_mask(0, n, q.device), weights=weights)
            case _:
                return self._heads_attend(q, k, v, weights=weights)

    def _summary_mask(self, start: int, m: int, device: torch.device) -> Tensor:
        kept = self.pattern.kept_positions().to(device)
        at = torch.arange(start, start + m, device=device)
        return F.pad(kept[None, :] <= at[:, None], (self.pattern.zero_slots, 0), value=True)

    def _lyric_cut(self, weights: list[Tensor] | None) -> list[Tensor] | None:
        if weights is None or self.pattern.kind != P.LYRICS:
            return weights
        return _LyricCut(weights, self.pattern.lyric_len)

    def _heads_attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """softmax(q k / sqrt(D)) v per head, the softmax in float32. q `[b, Q, S]`, k and v `[b, L, S]` -> `[b, Q, S]`."""
        split = (self.heads, self.state // self.heads)
        q, k, v = (t.view(*t.shape[:2], *split).transpose(1, 2) for t in (q, k, v))  # (b, L, S) -> (b, H, L, D)
        dropout = self.dropout if self.training else 0.0
        if weights is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
        else:
            logits = (q * split[1] ** -0.5) @ k.transpose(-1, -2)
            if causal:
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            if mask is not None:
                logits = logits.masked_fill(~mask, -1e9)
            w = logits.float().softmax(-1).to(q.dtype)
            weights.append(w.detach())
            y = F.dropout(w, dropout, self.training) @ v
        return y.transpose(1, 2).flatten(2)  # (b, H, Q, D) -> (b, Q, S)

    # ------------------------------------------------------------------------------------------- with a past

    def _step(self, q: Tensor, k: Tensor, v: Tensor, t: int, cache: LayerCache) -> Tensor:
        """One position: write its key and value into their slot, look at the slots the pattern shows."""
        p = self.pattern
        row, column = divmod(t, p.width)
        match p.kind:
            case P.DENSE:
                keys, values = cache.put(slice(t, t + 1), k, v).take(slice(0, t + 1))
            case P.LYRICS:
                if t < p.seen_len:
                    cache.put(slice(t, t + 1), k, v)
                keys, values = cache.take(slice(0, min(t + 1, p.seen_len)))
            case P.ROW:
                keys, values = cache.put(slice(column, column + 1), k, v).take(slice(0, column + 1))
            case P.COLUMN:
                at = column * p.blocks
                keys, values = cache.put(slice(at + row, at + row + 1), k, v).take(slice(at, at + row + 1))
            case P.PREVIOUS_ROW:
                at = (row % 2) * p.width + column
                other = (1 - row % 2) * p.width
                keys, values = cache.put(slice(at, at + 1), k, v).take(slice(other, other + p.width))
            case _:
                return self._extend(q, k, v, t, cache)
        return self._heads_attend(q, keys, values)

    def _extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, cache: LayerCache) -> Tensor:
        """Positions start ... start+m-1, rows and columns in parallel. Unfinished rows are completed from the cache."""
        p, (B, m, S) = self.pattern, q.shape
        at = torch.arange(start, start + m, device=q.device)
        if p.kind in (P.DENSE, P.LYRICS):
            stop = min(start + m, p.n if p.kind == P.DENSE else p.seen_len)
            if start < stop:
                cache.put(slice(start, stop), k[:, : stop - start], v[:, : stop - start])
            mask = p.visible(at[:, None], torch.arange(stop, device=q.device)[None])
            return self._heads_attend(q, *cache.take(slice(0, stop)), mask=mask)
        if p.kind in (P.SUMMARY, P.SUMMARY_SPREAD):
            kept = p.kept_positions().to(q.device)
            new = (kept >= start) & (kept < start + m)
            slots, local = new.nonzero().flatten(), kept[new] - start
            cache.put(slots, k[:, local], v[:, local])
            keys, values = (F.pad(t, (0, 0, p.zero_slots, 0)) for t in cache.take(slice(0, len(kept))))
            return self._heads_attend(q, keys, values, mask=self._summary_mask(start, m, q.device))

        first, lead = divmod(start, p.width)
        last = (start + m - 1) // p.width
        rows = last - first + 1
        pad = (0, 0, lead, rows * p.width - lead - m)  # to whole rows
        q, k, v = (F.pad(t, pad).view(B, rows, p.width, S) for t in (q, k, v))
        y = self._extend_rows(q, k, v, first, lead, start + m - last * p.width, cache)
        return y.reshape(B, rows * p.width, S)[:, lead : lead + m]

    def _extend_rows(
        self, q: Tensor, k: Tensor, v: Tensor, first: int, lead: int, filled: int, cache: LayerCache
    ) -> Tensor:
        """Whole rows `[B, R, width, S]` from row `first` on; `lead` positions of the first are in the cache already,
        the last row has `filled` positions so far."""
        p, (B, rows, width, S) = self.pattern, q.shape
        last = first + rows - 1
        if p.kind == P.ROW:
            if lead:
                k[:, 0, :lead], v[:, 0, :lead] = cache.take(slice(0, lead))
            cache.put(slice(0, filled), k[:, -1, :filled], v[:, -1, :filled])
            return self._heads_attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), causal=True)
        if p.kind == P.COLUMN:
            cached_k, cached_v = cache.columns()  # (B, width, blocks, S)
            if lead:
                k[:, 0, :lead], v[:, 0, :lead] = cached_k[:, :lead, first], cached_v[:, :lead, first]
            cached_k[:, :, first : last + 1] = k.transpose(1, 2)
            cached_v[:, :, first : last + 1] = v.transpose(1, 2)
            keys, values = (c[:, :, : last + 1].reshape(B * width, last + 1, S) for c in (cached_k, cached_v))
            row_q = torch.arange(first, last + 1, device=q.device)
            mask = torch.arange(last + 1, device=q.device)[None] <= row_q[:, None]
            y = self._heads_attend(q.transpose(1, 2).reshape(B * width, rows, S), keys, values, mask=mask)
            return y.reshape(B, width, rows, S).transpose(1, 2)
        pages_k, pages_v = cache.pages()  # (B, 2, width, S), page = row % 2
        if lead:
            k[:, 0, :lead], v[:, 0, :lead] = pages_k[:, first % 2, :lead], pages_v[:, first % 2, :lead]
        before_k, before_v = pages_k[:, 1 - first % 2].clone(), pages_v[:, 1 - first % 2].clone()
        for row in range(max(first, last - 1), last + 1):
            pages_k[:, row % 2], pages_v[:, row % 2] = k[:, row - first], v[:, row - first]
        keys = torch.cat([before_k[:, None], k[:, :-1]], 1).flatten(0, 1)
        values = torch.cat([before_v[:, None], v[:, :-1]], 1).flatten(0, 1)
        return self._heads_attend(q.flatten(0, 1), keys, values)


class _LyricCut(list[Tensor]):
    """Keeps code queries x lyric keys of what is appended, and hands that on."""

    def __init__(self, target: list[Tensor], lyric_len: int) -> None:
        super().__init__()
        self.target, self.lyric_len = target, lyric_len

    def append(self, w: Tensor) -> None:
        self.target.append(w[:, :, self.lyric_len :, : self.lyric_len])
