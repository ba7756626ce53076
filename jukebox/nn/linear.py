"""Every matrix product of the priors goes through this file: plain in training, packed once for decoding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """`y = x @ weight + bias` with the published orientation of the matrix.

    Shapes: x `[..., n_in]`, weight `[n_in, n_out]`, bias `[n_out]`, y `[..., n_out]`. The weight is drawn from
    normal(0, 0.02 * init_scale), or is zero with `zero_out`; the bias starts at zero. Weight and bias are cast to the
    dtype of x, so that half weights can be trained by float32 activations and the reverse (arXiv:2005.00341 sec. 4).
    """

    def __init__(self, n_in: int, n_out: int, *, init_scale: float = 1.0, zero_out: bool = False) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        if not zero_out:
            nn.init.normal_(self.weight, std=0.02 * init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n_in]` -> `[..., n_out]`, in the dtype of x."""
        return F.linear(x, self.weight.to(x.dtype).t(), self.bias.to(x.dtype))


class Head(nn.Module):
    """Logits over a vocabulary: `y = x @ weight.T`, weight `[bins, n_in]`, always float32, no bias.

    `tied_to` shares the weight of an embedding; otherwise the weight starts uniform in +-1/sqrt(n_in).
    """

    def __init__(self, n_in: int, bins: int, tied_to: nn.Embedding | None = None) -> None:
        super().__init__()
        if tied_to is not None:
            self.weight = tied_to.weight
        else:
            self.weight = nn.Parameter(torch.empty(bins, n_in).uniform_(-(n_in**-0.5), n_in**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n_in]` -> `[..., bins]` float32."""
        return F.linear(x.float(), self.weight.float())
