"""Multi-head attention under a pattern: all positions at once, or the next few against a preallocated cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.nn import patterns as P
from jukebox.nn.cache import LayerCache
from jukebox.nn.linear import Linear
from jukebox.nn.patterns import Pattern, Place


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
            q, kv = self.q(x), self.kv(encoded.to(x.dtype))
        else:
            q, kv = self.qkv(x).split((self.state, 2 * self.state), dim=-1)
        y = self._attend(q, kv, weights)
        return self.resid_dropout(self.out(y))  # type: ignore[no-any-return]

    def extend(self, x: Tensor, start: int | Tensor, cache: LayerCache, place: Place | None = None) -> Tensor:
        """The m positions from `start` on, with the past in `cache`, which is extended by them.

        x `[B, m, W]` -> `[B, m, W]`; equal to `forward` at these positions up to rounding, for any partition. start may
        be a tensor on the device where m = 1. place: `pattern.place(start)`, where the caller has it already.
        """
        if self.pattern.kind == P.ENCODER:
            return self.out(self._heads_attend(self.q(x), cache.kv[:, 0]))  # type: ignore[no-any-return]
        q, kv = self.qkv(x).split((self.state, 2 * self.state), dim=-1)
        if x.shape[1] == 1:
            place = place or self.pattern.place(start)
            cache.write(place, kv)
            kv, mask = cache.read(place)
            y = self._heads_attend(q, kv, mask=mask)
        else:
            assert isinstance(start, int), "a block of positions starts at a known one"
            y = self._extend(q, kv, start, cache)
        return self.out(y)  # type: ignore[no-any-return]

    def encode(self, encoded: Tensor, cache: LayerCache) -> None:
        """Kind 6: fill the cache with the keys and values of encoder states `[B, E, W]`, once per window."""
        cache.kv[:, 0] = self.kv(encoded)

    # ------------------------------------------------------------------------------------------- all positions

    def _attend(self, q: Tensor, kv: Tensor, weights: list[Tensor] | None) -> Tensor:
        p, (B, n, S) = self.pattern, q.shape
        rows = (B, n // p.width, p.width, -1)
        match p.kind:
            case P.DENSE | P.LYRICS:
                seen = n if p.kind == P.DENSE else min(n, p.seen_len)
                weights = self._lyric_cut(weights)
                if seen == n:
                    return self._heads_attend(q, kv, causal=True, weights=weights)
                at = torch.arange(n, device=q.device)
                return self._heads_attend(
                    q, kv[:, :seen], mask=p.visible(at[:, None], at[None, :seen]), weights=weights
                )
            case P.ROW:
                q, kv = (t.reshape(-1, p.width, t.shape[-1]) for t in (q, kv))
                return self._heads_attend(q, kv, causal=True, weights=weights).reshape(B, n, S)
            case P.COLUMN:
                q, kv = (t.view(rows).transpose(1, 2).flatten(0, 1) for t in (q, kv))
                y = self._heads_attend(q, kv, causal=True, weights=weights)
                return y.reshape(B, p.width, -1, S).transpose(1, 2).reshape(B, n, S)
            case P.PREVIOUS_ROW:
                kv = F.pad(kv.view(rows)[:, :-1], (0, 0, 0, 0, 1, 0)).flatten(0, 1)
                return self._heads_attend(q.reshape(-1, p.width, S), kv, weights=weights).reshape(B, n, S)
            case P.SUMMARY | P.SUMMARY_SPREAD:
                kv = F.pad(kv[:, p.kept_positions().to(q.device)], (0, 0, p.zero_slots, 0))
                return self._heads_attend(q, kv, mask=self._summary_mask(0, n, q.device), weights=weights)
            case _:
                return self._heads_attend(q, kv, weights=weights)

    def _summary_mask(self, start: int, m: int, device: torch.device) -> Tensor:
        kept = self.pattern.kept_positions().to(device)
        at = torch.arange(start, start + m, device=device)
        return F.pad(kept[None, :] <= at[:, None], (self.pattern.zero_slots, 0), value=True)

    def _lyric_cut(self, weights: list[Tensor] | None) -> list[Tensor] | None:
        if weights is None or self.pattern.kind != P.LYRICS:
            return weights
        return _LyricCut(weights, self.pattern.lyric_len)

    def _heads_attend(
        self, q: Tensor, kv: Tensor, *, causal: bool = False, mask: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """softmax(q k / sqrt(D)) v per head, the softmax in float32. q `[b, Q, S]`, kv `[b, L, 2S]` -> `[b, Q, S]`."""
        (b, Q, _), L, H, D = q.shape, kv.shape[1], self.heads, self.state // self.heads
        q = q.to(kv.dtype).view(b, Q, H, D).transpose(1, 2)  # (b, Q, S) -> (b, H, Q, D)
        both = kv.view(b, L, 2 * H, D).transpose(1, 2)
        k, v = both[:, :H], both[:, H:]  # (b, H, L, D)
        dropout = self.dropout if self.training else 0.0
        if weights is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
        else:
            logits = (q * D**-0.5) @ k.transpose(-1, -2)
            if causal:
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            if mask is not None:
                logits = logits.masked_fill(~mask, -1e9)
            w = logits.float().softmax(-1).to(q.dtype)
            weights.append(w.detach())
            y = F.dropout(w, dropout, self.training) @ v
        return y.transpose(1, 2).flatten(2)  # (b, H, Q, D) -> (b, Q, S)

    # ------------------------------------------------------------------------------------------- with a past

    def _extend(self, q: Tensor, kv: Tensor, start: int, cache: LayerCache) -> Tensor:
        """Positions start ... start+m-1, rows and columns in parallel. Unfinished rows are completed from the cache."""
        p, (B, m, S) = self.pattern, q.shape
        kv = kv.to(cache.kv.dtype)
        if p.kind in (P.DENSE, P.LYRICS):
            stop = min(start + m, p.n if p.kind == P.DENSE else p.seen_len)
            if start < stop:
                cache.kv[:, 0, start:stop] = kv[:, : stop - start]
            at = torch.arange(start, start + m, device=q.device)
            mask = p.visible(at[:, None], torch.arange(stop, device=q.device)[None])
            return self._heads_attend(q, cache.kv[:, 0, :stop], mask=mask)
        if p.kind in (P.SUMMARY, P.SUMMARY_SPREAD):
            kept = p.kept_positions()  # chosen on the CPU: a device would have to be waited for
            new = (kept >= start) & (kept < start + m)
            slots = (p.zero_slots + new.nonzero().flatten()).to(q.device)
            cache.kv[:, 0, slots] = kv[:, (kept[new] - start).to(q.device)]
            mask = self._summary_mask(start, m, q.device)
            return self._heads_attend(q, cache.kv[:, 0, : mask.shape[1]], mask=mask)

        first, lead = divmod(start, p.width)
        last = (start + m - 1) // p.width
        rows = last - first + 1
        pad = (0, 0, lead, rows * p.width - lead - m)  # to whole rows
        q, kv = (F.pad(t, pad).view(B, rows, p.width, -1) for t in (q, kv))
        y = self._extend_rows(q, kv, first, lead, start + m - last * p.width, cache.kv)
        return y.reshape(B, rows * p.width, S)[:, lead : lead + m]

    def _extend_rows(self, q: Tensor, kv: Tensor, first: int, lead: int, filled: int, pages: Tensor) -> Tensor:
        """Whole rows `[B, R, width, S]` from row `first` on; `lead` positions of the first are in the cache already,
        the last row has `filled` positions so far. pages `[B, pages, slots, 2S]`: the cache."""
        p, (B, rows, width, S) = self.pattern, q.shape
        last = first + rows - 1
        if p.kind == P.ROW:
            kv[:, 0, :lead] = pages[:, 0, :lead]
            pages[:, 0, :filled] = kv[:, -1, :filled]
            return self._heads_attend(q.flatten(0, 1), kv.flatten(0, 1), causal=True)
        if p.kind == P.COLUMN:
            kv[:, 0, :lead] = pages[:, :lead, first]
            pages[:, :, first : last + 1] = kv.transpose(1, 2)
            seen = pages[:, :, : last + 1].flatten(0, 1)
            row_q = torch.arange(first, last + 1, device=q.device)
            mask = torch.arange(last + 1, device=q.device)[None] <= row_q[:, None]
            y = self._heads_attend(q.transpose(1, 2).flatten(0, 1), seen, mask=mask)
            return y.reshape(B, width, rows, S).transpose(1, 2)
        kv[:, 0, :lead] = pages[:, first % 2, :lead]
        before = torch.cat([pages[:, 1 - first % 2, None], kv[:, :-1]], 1)
        for row in range(max(first, last - 1), last + 1):
            pages[:, row % 2] = kv[:, row - first]
        return self._heads_attend(q.flatten(0, 1), before.flatten(0, 1))


class _LyricCut(list[Tensor]):
    """Keeps code queries x lyric keys of what is appended, and hands that on."""

    def __init__(self, target: list[Tensor], lyric_len: int) -> None:
        super().__init__()
        self.target, self.lyric_len = target, lyric_len

    def append(self, w: Tensor) -> None:
        self.target.append(w[:, :, self.lyric_len :, : self.lyric_len])
