"""From an image file to the input of the image encoder: the official transforms, decoding no more than they need.

Legend: H, W height and width in pixels, R the resolution of the model's input. A box is (left, top, right, bottom) in
pixels, right and bottom excluded. A source is a path, a Pillow image or an array [H, W, 3] uint8.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dataset.image_cache import ImageCache, create_cache
from dataset.images import Box, open_image, to_rgb
from dataset.randaugment import TEN, RandAugment
from utils.errors import InputError

MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])
RATIO = (3 / 4, 4 / 3)
LOG_RATIO = (math.log(RATIO[0]), math.log(RATIO[1]))
Source = str | os.PathLike | Image.Image | np.ndarray
_NORMALIZED = (np.arange(256, dtype=np.float32) / np.float32(255) - MEAN[:, None]) / STD[:, None]  # [3, 256]


def example_rng(seed: int, epoch: int, index: int, *more: int) -> np.random.Generator:
    """The random generator of one access to one example; further numbers distinguish its parts."""
    # The key ends with its length, because NumPy pads a key of less than four numbers with zeros.
    return np.random.default_rng((seed, epoch, index, *more, 1 + len(more)))


class TrainTransform:
    """Random crop, resize to R x R, flip, RandAugment, normalization: source -> [3, R, R] float32.

    crop_scale: minimum and maximum area of the crop, as a fraction of the image. randaugment: True for the official
    operations, False for none, or the names of the operations to draw from. reduced_decode: decode a JPEG at 1/2, 1/4
    or 1/8 of its size if the crop still has R pixels in both directions, and resize fast; False gives exactly the
    official pixels. cache: keeps images whose crop is all of them.
    """

    def __init__(
        self,
        image_res: int,
        crop_scale: Sequence[float] = (0.2, 1.0),
        flip: bool = True,
        randaugment: bool | Sequence[str] = True,
        reduced_decode: bool = True,
        cache: ImageCache | None = None,
    ):
        low, high = crop_scale
        if not 0 < low <= high:
            raise InputError(
                f'crop_scale must be two increasing fractions of the area like [0.2, 1.0], not [{low}, {high}]'
            )
        self.image_res, self.crop_scale, self.flip, self.reduced_decode = image_res, (low, high), flip, reduced_decode
        self.cache = cache
        names = TEN if randaugment is True else randaugment
        self.augment = RandAugment(names=names) if names else None

    def __call__(self, source: Source, rng: np.random.Generator) -> torch.Tensor:
        """source -> [3, R, R] float32."""
        image = read_resized(
            source,
            lambda width, height: draw_crop(width, height, self.crop_scale, rng),
            self.image_res,
            self.reduced_decode,
            self.cache,
        )
        if self.flip and rng.random() < 0.5:
            image = cv2.flip(image, 1)
        if self.augment:
            image = self.augment(image, rng)
        return normalize(image)


class EvalTransform:
    """Resize to R x R, ignoring the aspect ratio, and normalization: source -> [3, R, R] float32."""

    def __init__(self, image_res: int, reduced_decode: bool = True, cache: ImageCache | None = None):
        self.image_res, self.reduced_decode, self.cache = image_res, reduced_decode, cache

    def __call__(self, source: Source) -> torch.Tensor:
        """source -> [3, R, R] float32."""
        image = read_resized(source, whole, self.image_res, self.reduced_decode, self.cache)
        return normalize(image)


def train_transform(config: Mapping, images: int) -> TrainTransform:
    """The training transform of a configuration, for a dataset of at most so many images."""
    settings = (config[name] for name in ('image_res', 'crop_scale', 'flip', 'randaugment', 'reduced_decode'))
    return TrainTransform(*settings, create_cache(config, images))


def eval_transform(config: Mapping, images: int | None = None) -> EvalTransform:
    """The evaluation transform of a configuration; images: at most so many, if they will be read more than once."""
    cache = create_cache(config, images) if images is not None else None
    return EvalTransform(config['image_res'], config['reduced_decode'], cache)


def whole(width: int, height: int) -> Box:
    """The box of the image as a whole."""
    return 0, 0, width, height


def read_resized(
    source: Source,
    choose_box: Callable[[int, int], Box],
    resolution: int,
    reduced_decode: bool,
    cache: ImageCache | None = None,
) -> np.ndarray:
    """The part of a source inside `choose_box(width, height)`, resized -> [R, R, 3] uint8, of a cache read-only.

    The box is chosen from the size in the header, so that a JPEG is not decoded larger than its crop at R x R requires.
    """
    shrink = resize if reduced_decode else resize_as_pillow
    if not isinstance(source, str | os.PathLike):
        image = source if isinstance(source, np.ndarray) else to_rgb(source)
        left, top, right, bottom = choose_box(*image.shape[1::-1])
        return shrink(image[top:bottom, left:right], resolution)
    kept = cache.get(source) if cache is not None else None
    encoded = open_image(source) if kept is None else None
    size = encoded.size if kept is None else kept.size
    box = choose_box(*size)
    if kept is not None and box == whole(*size):
        return kept.pixels
    encoded = encoded or open_image(source)
    pixels = shrink(encoded.decode(reduction(box, resolution) if reduced_decode else 1, box), resolution)
    if cache is not None and box == whole(*size):
        cache.keep(source, size, pixels)
    return pixels


def draw_crop(width: int, height: int, scale: Sequence[float], rng: np.random.Generator) -> Box:
    """A box of random area and aspect ratio, as torchvision's RandomResizedCrop draws it.

    The area is uniform in `scale` x the area of the image, the aspect ratio log-uniform in 3/4..4/3. If ten boxes did
    not fit, it is the largest central box whose aspect ratio is within these bounds.
    """
    for _ in range(10):
        u, v = rng.random(2).tolist()  # one call instead of two of `uniform`: the same draws
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u)
        aspect = math.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * v)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def reduction(box: Box, resolution: int) -> int:
    """The largest of 8, 4, 2, 1 by which a JPEG can be reduced so that the box still has R pixels in each direction."""
    shorter = min(box[2] - box[0], box[3] - box[1])
    return next((factor for factor in (8, 4, 2) if shorter // factor >= resolution), 1)


def resize(image: np.ndarray, resolution: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [R, R, 3] uint8: Pillow's antialiased bicubic up to rounding, in a fraction of its time."""
    # In this layout torch uses a vectorized implementation that works on interleaved bytes.
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)  # [1, 3, H, W], channels last
    resized = F.interpolate(pixels, size=(resolution, resolution), mode='bicubic', antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def resize_as_pillow(image: np.ndarray, resolution: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [R, R, 3] uint8, the official pixels."""
    return np.asarray(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BICUBIC))


def normalize(image: np.ndarray) -> torch.Tensor:
    """[R, R, 3] uint8 -> [3, R, R] float32: (x / 255 - mean) / std, looked up in a table."""
    normalized = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(cv2.split(image)):
        cv2.LUT(plane, _NORMALIZED[channel], dst=normalized[channel])
    return torch.from_numpy(normalized)
