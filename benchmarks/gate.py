"""How far each form of the weights is from float32, in bits per code, on runs that were trained: the gate of --dtype=auto.

    python benchmarks/gate.py --model=demo/logs/top,demo/logs/up1,demo/logs/up0          after `make demo`

One JSON line per level, form and length. The prior sings by itself under made-up labels; the same codes are then forced
through every form, step by step, as songs are sampled. 2 x 48 codes are what `--dtype=auto` measures when it loads a
prior; longer pieces say how well those speak for a window.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from jukebox.models import model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.nn import linear
from jukebox.prior.model import Prior
from jukebox.sampling import precision


def rows(prior: Prior, about: dict[str, object], lengths: list[int]) -> None:
    """Every form of one prior, on a long piece and on its beginnings."""
    piece = precision.example(prior, 2, max(lengths))
    reference, targets = piece.logits(prior), piece.codes + prior.shift
    for form in linear.forms("cpu"):
        back = linear.way_back(prior)
        linear.pack(prior, form)
        found = piece.logits(prior)
        back()
        for n in lengths:
            verdict = precision.judge(form, reference[:, :n], found[:, :n], targets[:, :n])
            bits = precision.judge("fp32", reference[:, :n] * 0, reference[:, :n], targets[:, :n]).bits
            print(json.dumps({**about, "dtype": form, "codes": 2 * n, "bits_more": round(verdict.bits, 5),
                              "same_choice": round(verdict.agreement, 4), "passes": verdict.passes,
                              "bits_below_uniform": round(-bits, 3)}), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="runs by comma, or a model set, as for sample.py")
    parser.add_argument("--codes", default="48,192,768", help="lengths of a piece")
    asked = parser.parse_args()
    models = model_set.find(asked.model)
    _, vqvae = load_codec(models.vqvae, "cpu")
    with torch.inference_mode():
        for level, part in reversed(list(enumerate(models.priors))):
            if part is not None:
                prior, _ = model_set.load_prior(part, vqvae, level)
                rows(prior, {"level": level, "run": part.checkpoint}, [int(n) for n in asked.codes.split(",")])


if __name__ == "__main__":
    main()
