"""The `pre_encoded` data set: latents or codes made once, cropped to their valid part when they are read.

They stand in folders, or in tars (`wds` with `pre_encoded: true`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.codestore.pre_encoded import PreEncoded, open_pre_encoded
from jukebox.data.dataset_config import CustomMetadata, Entry, PreEncodedDirs, WebDataset, load_custom_metadata
from jukebox.data.split import random_numbers
from jukebox.data.wds import TarLatents, samples
from jukebox.errors import DataError
from jukebox.files import printable

_CROP, _ORDER = 3, 4  # streams of random numbers


@dataclass(frozen=True)
class PreEncodedItem:
    """`latents` [D, n] (or codes [Q, n]) as stored, `mask` int64 [n], 1 where the audio was real, and the metadata."""

    latents: NDArray[Any]
    mask: NDArray[np.int64]
    info: dict[str, Any]


class PreEncodedDataset:
    """The items of the folders or tars of a configuration, in order of their names.

    Items outside the limits of length, or rejected by a metadata function, are listed in `left_out` with the reason;
    nothing takes their place. A random crop is a function of (seed, draw, item) and reaches every valid frame.
    Raises DataError when nothing is left.
    """

    def __init__(self, config: PreEncodedDirs | WebDataset, seed: int = 0) -> None:
        self.config, self.seed = _rules(config), seed
        self.left_out: list[tuple[str, str]] = []
        self._items: list[tuple[PreEncoded | TarLatents, int, CustomMetadata | None]] = []
        for entry in config.datasets:
            data = _opened(config, entry)
            custom = load_custom_metadata(entry.custom_metadata_module) if entry.custom_metadata_module else None
            for i, path in enumerate(data.paths):
                reason = self._reason_to_leave_out(data, i, custom)
                if reason:
                    self.left_out.append((str(path), reason))
                else:
                    self._items.append((data, i, custom))
        if not self._items:
            shown = "".join(f"\n  {printable(path)}: {reason}" for path, reason in self.left_out[:10])
            first = config.datasets[0]
            raise DataError(f"{first.path or first.s3_path}: no item is left of {len(self.left_out)}.{shown}")

    def __len__(self) -> int:
        return len(self._items)

    def about(self, index: int) -> tuple[str, int]:
        """The file that item `index` was made from, and its valid time steps."""
        data, i, _ = self._items[index]
        info = data.info(i)
        return str(info.get("relpath", data.paths[i])), data.valid_frames(i)

    def item(self, index: int, draw: int = 0) -> PreEncodedItem:
        """Item `index`, cropped as in this draw (epoch); raises StoreError when a file is damaged."""
        data, i, custom = self._items[index]
        info = {**data.info(i), "latent_filename": str(data.paths[i])}
        frames, valid = data.frames(i), data.valid_frames(i)
        start, stop = 0, frames
        length = self.config.latent_crop_length
        if length is not None:
            if self.config.random_crop and valid > length:
                start = int(random_numbers(self.seed, draw, index, _CROP).integers(0, valid - length + 1))
            stop = min(frames, start + length)
            info |= {"latent_crop_length": length, "latent_crop_start": start}
        latents = data.array(i, start, stop)
        mask = (np.arange(start, stop) < valid).astype(np.int64)
        info["padding_mask"] = mask
        if custom is not None:
            info |= custom(info, None)
            replacement = info.pop("__replace__", None)
            latents = latents if replacement is None else np.asarray(replacement)
        return PreEncodedItem(latents, mask, {**info, "audio": latents})

    def batches(
        self, batch_size: int, draw: int = 0, *, shuffle: bool = True
    ) -> Iterator[tuple[NDArray[Any], list[dict[str, Any]]]]:
        """One pass: latents [B, D, n] and the metadata of each item. `drop_last` of the configuration drops the rest.

        Raises DataError when items of a batch have different lengths.
        """
        count = len(self)
        order = random_numbers(self.seed, draw, 0, _ORDER).permutation(count) if shuffle else np.arange(count)
        for first in range(0, count, batch_size):
            chosen = order[first : first + batch_size]
            if len(chosen) < batch_size and self.config.drop_last:
                return
            items = [self.item(int(index), draw) for index in chosen]
            shapes = {item.latents.shape for item in items}
            if len(shapes) > 1:
                raise DataError(
                    f"items have the lengths {sorted(shape[-1] for shape in shapes)}; set latent_crop_length to at most "
                    "the shortest, or a batch size of 1"
                )
            yield np.stack([item.latents for item in items]), [item.info for item in items]

    def _reason_to_leave_out(self, data: PreEncoded | TarLatents, i: int, custom: CustomMetadata | None) -> str:
        config = self.config
        if config.min_length_sec is None and config.max_length_sec is None and custom is None:
            return ""
        info = data.info(i)
        seconds = info.get("seconds_total")
        if config.min_length_sec is not None or config.max_length_sec is not None:
            if not isinstance(seconds, int | float):
                return "seconds_total is missing, which min_length_sec and max_length_sec need"
            if config.min_length_sec is not None and seconds < config.min_length_sec:
                return f"{seconds:g} s is below min_length_sec {config.min_length_sec:g}"
            if config.max_length_sec is not None and seconds > config.max_length_sec:
                return f"{seconds:g} s is above max_length_sec {config.max_length_sec:g}"
        if custom is not None and custom({**info, "latent_filename": str(data.paths[i])}, None).get("__reject__"):
            return "rejected by its custom_metadata_module"
        return ""


def _opened(config: PreEncodedDirs | WebDataset, entry: Entry) -> PreEncoded | TarLatents:
    if isinstance(config, PreEncodedDirs):
        return open_pre_encoded(entry.path, config.latent_extension)
    return TarLatents(samples(replace(config, datasets=(entry,)), "npy"))


def _rules(config: PreEncodedDirs | WebDataset) -> PreEncodedDirs:
    """How items are cropped and which are left out; tars have no limits of length."""
    if isinstance(config, PreEncodedDirs):
        return config
    return PreEncodedDirs(config.datasets, config.latent_crop_length, random_crop=config.random_crop)
