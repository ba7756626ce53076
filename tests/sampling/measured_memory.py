"""Samples the beginning of a window with nets of random weights, and prints what was estimated and what was taken."""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from jukebox import resources, settings
from jukebox.models import build
from jukebox.nn import linear
from jukebox.prior.model import Prior, PriorShape
from jukebox.sampling.decode import decode_window
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys
from jukebox.sampling.needs import needs_of
from jukebox.sampling.precision import made_up_labels

SIZES = {"prior_width": 640, "prior_depth": 16, "n_ctx": 4096, "blocks": 64, "cond_width": 256}
SHAPES = {
    "upsampler": ("vqvae,upsampler_level_1", {}),
    "top": ("small_vqvae,small_prior", {}),
    "lyrics": ("vqvae,prior_1b_lyrics", {"heads": 2, "alignment_layer": None}),
}


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most anonymous memory inside, looked at every millisecond."""

    def __enter__(self) -> "Peak":
        resources.release_freed()
        self.before, self.bytes, self.done = anonymous(), 0, False
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def watch(self) -> None:
        while not self.done:
            self.bytes = max(self.bytes, anonymous() - self.before)
            time.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        self.done = True
        self.watcher.join()


def sample(shape: PriorShape, form: linear.Form, songs: int, given: int, chunk_size: int | None) -> None:
    """A prior comes to life, is packed, and begins a window."""
    with torch.device("meta"):
        prior = Prior(shape)
    prior = prior.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.fill_(0.01)
    linear.pack(prior, form)
    numbers = torch.Generator().manual_seed(0)
    upper = torch.randint(shape.bins, (songs, prior.n_ctx // prior.ratio)) if prior.ratio else None
    y = made_up_labels(prior, songs, numbers) if prior.labelled else None
    keys = noise_keys(torch.zeros(songs, dtype=torch.int64), torch.arange(songs), 0)
    codes = torch.randint(shape.bins, (songs, given))
    decode_window(
        prior, codes, given + 4, lambda logits, place: draw(logits, Knobs(), gumbel(keys, place, logits.shape[1])),
        upper=upper, y=y, chunk_size=chunk_size,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.argv[1:]:
        name, form, songs, given, chunk_size = json.loads(line)
        presets, more = SHAPES[name]
        whole = build.prior_shape(settings.from_presets(presets, **{**SIZES, **more}))
        small = replace(whole, transformer=replace(whole.transformer, depth=1), alignment_layer=None)
        sample(small, form, 1, 8, None)  # what libraries take once
        needs = needs_of(whole, form, songs=songs, given=given, chunk_size=chunk_size)
        with Peak() as peak:
            sample(whole, form, songs, given, chunk_size)
        print(json.dumps({"case": [name, form, songs, given, chunk_size], "measured": peak.bytes, "peak": needs.peak,
                          **vars(needs)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
