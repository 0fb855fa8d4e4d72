"""From an image file to what the image encoder takes: the official transforms, without decoding more than they need.

Legend: H, W height and width in pixels, R the resolution that the model sees. A box is (left, top, right, bottom) in
pixels, right and bottom excluded. A source is a path, a Pillow image or an array [H, W, 3] uint8.
"""

import math
import os

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dataset.images import open_image, to_rgb
from dataset.randaugment import TEN, RandAugment
from utils.errors import InputError

MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])
RATIO = (3 / 4, 4 / 3)
_NORMALISED = (np.arange(256, dtype=np.float32) / np.float32(255) - MEAN[:, None]) / STD[:, None]  # [3, 256]


def example_rng(seed, epoch, index, *more):
    """The randomness of one visit to one example, as a numpy Generator; `more` numbers tell its parts apart."""
    # The count closes the key, because NumPy takes a key that is shorter than four numbers as if filled up with zeros.
    return np.random.default_rng((seed, epoch, index, *more, 1 + len(more)))


class TrainTransform:
    """Random crop, resize to R x R, flip, RandAugment, normalisation: a source -> [3, R, R] float32.

    crop_scale: bounds of the crop's share of the image's area. randaugment: True for the official operations, False
    for none, or the names of those to draw from. reduced_decode: decode a JPEG at 1/2, 1/4 or 1/8 of its size where the
    crop still has R pixels each way, and resize fast; False gives exactly the official pixels.
    """

    def __init__(self, image_res, crop_scale=(0.2, 1.0), flip=True, randaugment=True, reduced_decode=True):
        low, high = crop_scale
        if not 0 < low <= high:
            raise InputError(f'crop_scale must be two rising shares of the area like [0.2, 1.0], not [{low}, {high}]')
        self.image_res, self.crop_scale, self.flip, self.reduced_decode = image_res, (low, high), flip, reduced_decode
        names = TEN if randaugment is True else randaugment
        self.augment = RandAugment(names=names) if names else None

    def __call__(self, source, rng):
        """source, numpy Generator -> [3, R, R] float32."""
        image = read_resized(
            source,
            lambda width, height: draw_crop(width, height, self.crop_scale, rng),
            self.image_res,
            self.reduced_decode,
        )
        if self.flip and rng.random() < 0.5:
            image = cv2.flip(image, 1)
        if self.augment:
            image = self.augment(image, rng)
        return normalise(image)


class EvalTransform:
    """Resize to R x R whatever the aspect, and normalisation: a source -> [3, R, R] float32."""

    def __init__(self, image_res, reduced_decode=True):
        self.image_res, self.reduced_decode = image_res, reduced_decode

    def __call__(self, source):
        image = read_resized(source, lambda width, height: (0, 0, width, height), self.image_res, self.reduced_decode)
        return normalise(image)


def train_transform(config):
    """The training transform that a configuration asks for."""
    return TrainTransform(
        config['image_res'], config['crop_scale'], config['flip'], config['randaugment'], config['reduced_decode']
    )


def eval_transform(config):
    """The evaluation transform that a configuration asks for."""
    return EvalTransform(config['image_res'], config['reduced_decode'])


def read_resized(source, choose_box, resolution, reduced_decode):
    """The part of a source inside `choose_box(width, height)`, at R x R: [R, R, 3] uint8.

    The box is chosen on the header's size, so that a JPEG need not be decoded larger than the box at R x R asks for.
    """
    if isinstance(source, str | os.PathLike):
        encoded = open_image(source)
        box = choose_box(*encoded.size)
        crop = encoded.decode(reduction(box, resolution) if reduced_decode else 1, box)
    else:
        image = source if isinstance(source, np.ndarray) else to_rgb(source)
        left, top, right, bottom = choose_box(*image.shape[1::-1])
        crop = image[top:bottom, left:right]
    return resize(crop, resolution) if reduced_decode else resize_as_pillow(crop, resolution)


def draw_crop(width, height, scale, rng):
    """Draw a box of a random area and aspect, as torchvision's RandomResizedCrop does.

    The area is uniform in `scale` x the image's, the aspect log-uniform in 3/4..4/3. After ten boxes that did not fit,
    the largest central box whose aspect is in bounds.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def reduction(box, resolution):
    """The largest of 8, 4, 2, 1 by which a JPEG may be reduced so that the box still has R pixels each way."""
    shorter = min(box[2] - box[0], box[3] - box[1])
    return next((factor for factor in (8, 4, 2) if shorter // factor >= resolution), 1)


def resize(image, resolution):
    """[H, W, 3] uint8 -> [R, R, 3] uint8: Pillow's antialiased bicubic within rounding, at a fraction of its time."""
    # In torch this layout takes a vectorised path that works on interleaved bytes.
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)  # [1, 3, H, W], channels last
    resized = F.interpolate(pixels, size=(resolution, resolution), mode='bicubic', antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def resize_as_pillow(image, resolution):
    """[H, W, 3] uint8 -> [R, R, 3] uint8, as officially."""
    return np.asarray(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BICUBIC))


def normalise(image):
    """[R, R, 3] uint8 -> [3, R, R] float32, (x / 255 - mean) / std by table."""
    normalised = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(cv2.split(image)):
        cv2.LUT(plane, _NORMALISED[channel], dst=normalised[channel])
    return torch.from_numpy(normalised)
