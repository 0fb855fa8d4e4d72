"""Images in memory: small datasets are read and decoded once, not once an epoch.

Only what is the same in every epoch is kept: an image as a whole, resized to the input of the model.

Legend: H, W height and width in pixels, R the resolution of the model's input.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MIB = 1 << 20


class Resized(NamedTuple):
    """An image as a whole. size: (W, H) of the file. pixels: [R, R, 3] uint8, read-only."""

    size: tuple[int, int]
    pixels: np.ndarray


class ImageCache:
    """Keeps every image that it is given, {path: `Resized`}. Each process that loads images has its own."""

    def __init__(self):
        self._images: dict[str, Resized] = {}

    def __len__(self) -> int:
        return len(self._images)

    def get(self, path: str) -> Resized | None:
        return self._images.get(path)

    def keep(self, path: str, size: tuple[int, int], pixels: np.ndarray) -> None:
        """size: (W, H). pixels: [R, R, 3] uint8; they become read-only."""
        pixels.flags.writeable = False  # so that no transform changes the next epoch's image
        self._images[path] = Resized(size, pixels)


def create_cache(config: Mapping[str, Any], images: int) -> ImageCache | None:
    """A cache for a dataset of at most so many images, or None if they do not fit into `image_cache_mb`.

    Each loader process may come to hold all of them, so their caches share that size.
    """
    bytes_needed = images * 3 * config['image_res'] ** 2 * max(1, config['num_workers'])
    return ImageCache() if bytes_needed <= config['image_cache_mb'] * MIB else None
