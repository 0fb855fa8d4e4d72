"""What users give a trained model: images and texts, one or several, of any kind that can be read."""

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from dataset.images import open_image
from dataset.transforms import Source
from utils.errors import InputError

Sources = Source | Sequence[Source]
Texts = str | Sequence[str]


def listed(values: Sources | Texts) -> list:
    """One image or text, or several -> a list. InputError for what is neither."""
    if isinstance(values, np.ndarray):
        return list(values) if values.ndim > 3 or values.dtype.kind in 'UO' and values.ndim else [values]
    if isinstance(values, str | os.PathLike | Image.Image):
        return [values]
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        raise InputError(f'{type(values).__name__} is no image and no text; give one, or a list of them')
    return list(values)


def paired(images: list, texts: list) -> tuple[list, list]:
    """Images and texts of the same number; one of a kind is repeated. InputError if they do not fit."""
    if len(images) != len(texts) and 1 not in (len(images), len(texts)):
        raise InputError(f'{len(images)} images and {len(texts)} texts are no pairs; give as many, or one of a kind')
    count = max(len(images), len(texts)) if images and texts else 0
    return images * (count // max(1, len(images))), texts * (count // max(1, len(texts)))


def distinct(values: Sequence) -> tuple[list, list[int]]:
    """(distinct values, the position of each value among them): paths and texts by value, other images by identity."""
    keys = [value if isinstance(value, str | os.PathLike) else id(value) for value in values]
    first = {key: value for key, value in reversed([*zip(keys, values, strict=True)])}
    order = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    return [first[key] for key in order], [order[key] for key in keys]


def batches(values: list, size: int) -> Iterator[list]:
    """Lists of at most so many values. InputError for a size below 1."""
    if not isinstance(size, int) or size < 1:
        raise InputError(f'batch_size {size}: must be an integer of at least 1')
    return (values[start : start + size] for start in range(0, len(values), size))


def checked(image: Source) -> Source:
    """An image as the transform takes it. InputError if it is none."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise InputError(
                f'an array of {image.dtype} {list(image.shape)} is no image; give uint8 [H, W, 3] (RGB) or '
                '[H, W] (gray)'
            )
        image = image if image.flags.writeable else image.copy()  # torch would warn
        return Image.fromarray(image) if image.ndim == 2 else image
    if not isinstance(image, str | os.PathLike | Image.Image):
        raise InputError(f'{type(image).__name__} is no image; give a path, a Pillow image or an array')
    return image


def size_of(image: Source) -> tuple[int, int]:
    """(width, height) in pixels."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return image.size if isinstance(image, Image.Image) else open_image(image).size


def require_strings(texts: Sequence[str]) -> None:
    """InputError for a text that is none."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f'{type(text).__name__} is no text; give a string, or a list of them')


def refuse_empty(texts: Sequence[str], cleaned: Sequence[str]) -> None:
    """InputError for a text without a word."""
    for text, words in zip(texts, cleaned, strict=True):
        if not words.strip():
            raise InputError(f'the text {text!r} has no word in it; give words')
