"""RandAugment on uint8 arrays, with the operations and strengths that ALBEF and GRIT-VLP train with.

Legend: H, W height and width in pixels. An image is [H, W, 3] uint8; the order of the channels does not matter here.
`level` is 0 to 10, `sign` 1 or -1. Operations never modify the image that they are given.
"""

from collections.abc import Callable, Iterable

import cv2
import numpy as np

from utils.errors import InputError

FILL = 128
TEN = (
    'Identity',
    'AutoContrast',
    'Equalize',
    'Brightness',
    'Sharpness',
    'ShearX',
    'ShearY',
    'TranslateX',
    'TranslateY',
    'Rotate',
)


class RandAugment:
    """Draws `num_ops` operations with replacement, each with a random sign, and applies each with `probability`.

    names: the operations to draw from. The number of draws from the generator does not depend on their results.
    """

    def __init__(self, num_ops: int = 2, level: float = 7, names: Iterable[str] = TEN, probability: float = 0.5):
        self.num_ops, self.level, self.names, self.probability = num_ops, level, tuple(names), probability
        for name in self.names:
            _operation(name)
        if not self.names:
            raise InputError('RandAugment has no operations to draw from; name some, or set randaugment: false')

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """image: [H, W, 3] uint8 -> [H, W, 3] uint8."""
        for _ in range(self.num_ops):
            name = self.names[rng.integers(len(self.names))]
            sign = 1 if rng.random() < 0.5 else -1
            if rng.random() < self.probability:
                image = apply_op(name, image, self.level, sign)
        return image


def apply_op(name: str, image: np.ndarray, level: float, sign: int) -> np.ndarray:
    """Apply one operation: [H, W, 3] uint8 -> [H, W, 3] uint8.

    At level 10 and sign +1: ShearX moves row y by 0.3 y to the right, ShearY column x by 0.3 x down, TranslateX and
    TranslateY move the content 10 pixels to the left or up, Rotate turns it 30 degrees counter-clockwise; pixels from
    outside of the image are gray (128). Brightness and Sharpness blend by the factor 0.1 + 0.18 * level, where 1
    changes nothing; they ignore the sign. Identity, AutoContrast and Equalize ignore both.
    """
    assert image.dtype == np.uint8 and image.ndim == 3, 'apply_op takes a uint8 image [H, W, 3]'
    return _operation(name)(image, level, sign)


def _operation(name: str) -> Callable[[np.ndarray, float, int], np.ndarray]:
    if name not in _OPERATIONS:
        raise InputError(f'RandAugment has no operation {name!r}: choose from {", ".join(_OPERATIONS)}')
    return _OPERATIONS[name]


def _identity(image, level, sign):
    return image


def _auto_contrast(image, level, sign):
    """Official AutoContrast: it stretches a channel only if its darkest value is 0, and turns it white otherwise.

    The official table is v * scale - low * scale with `-low` computed in uint8, where it is 256 - low: for low > 0 all
    values that occur become 255. Published results include this, so it stays; `AutoContrastFixed` is correct.
    """
    return _stretch(image, lambda low: -low % 256)


def _auto_contrast_fixed(image, level, sign):
    """Stretch the values of each channel linearly to 0..255."""
    return _stretch(image, lambda low: -low)


def _stretch(image, shift_of):
    # One axis at a time, because NumPy is many times slower on both at once.
    lows, highs = image.min(0).min(0).tolist(), image.max(0).max(0).tolist()
    table = np.repeat(np.arange(256.0)[:, None, None], 3, axis=2)  # [256, 1, 3]
    for channel, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if high > low:
            scale = 255 / (high - low)
            table[..., channel] = table[..., channel] * scale + shift_of(low) * scale
    return cv2.LUT(image, _to_uint8(table))


def _equalize(image, level, sign):
    """Flatten the histogram of each channel, in integers as Pillow's `ImageOps.equalize` does."""
    table = np.repeat(np.arange(256)[:, None, None], 3, axis=2)  # [256, 1, 3]
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        if step > 0:
            table[:, 0, channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return cv2.LUT(image, _to_uint8(table))


def _brightness(image, level, sign):
    return cv2.LUT(image, _to_uint8(np.arange(256) * _blend_factor(level)))


def _sharpness(image, level, sign):
    """Blend with a copy smoothed by the kernel [1 1 1; 1 5 1; 1 1 1] / 13; the outermost pixels stay."""
    factor = _blend_factor(level)
    # The kernel is 9/13 of a plain mean and 4/13 of the image, and a plain mean is several times faster.
    mean_weight = (1 - factor) * 9 / 13
    # Half a level less, because the official blend truncates and this one rounds.
    sharp = cv2.addWeighted(image, 1 - mean_weight, cv2.blur(image, (3, 3)), mean_weight, -0.5)
    for edge in (0, -1):
        sharp[edge], sharp[:, edge] = image[edge], image[:, edge]
    return sharp


def _shear_x(image, level, sign):
    return _warp(image, [[1, sign * 0.03 * level, 0], [0, 1, 0]])


def _shear_y(image, level, sign):
    return _warp(image, [[1, 0, 0], [sign * 0.03 * level, 1, 0]])


def _translate_x(image, level, sign):
    return _move(image.swapaxes(0, 1), -sign * level).swapaxes(0, 1)


def _translate_y(image, level, sign):
    return _move(image, -sign * level)


def _move(image, pixels):
    """Move the rows down by an integer number of pixels, or up if it is negative."""
    pixels = round(pixels)
    moved = np.full_like(image, FILL)
    if pixels > 0:
        moved[pixels:] = image[:-pixels]
    elif pixels < 0:
        moved[:pixels] = image[-pixels:]
    else:
        moved[:] = image
    return moved


def _rotate(image, level, sign):
    height, width = image.shape[:2]
    return _warp(image, cv2.getRotationMatrix2D((width / 2, height / 2), sign * 3 * level, 1))


def _warp(image, matrix):
    height, width = image.shape[:2]
    # With a fourth channel a pixel is 4 bytes: OpenCV 5 warps them in half the time, OpenCV 4 in the same time.
    rgba = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    rgba = cv2.warpAffine(rgba, np.float64(matrix), (width, height), flags=cv2.INTER_LINEAR, borderValue=(FILL,) * 4)
    return cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)


def _blend_factor(level):
    return 0.1 + 1.8 * (level / 10)


def _to_uint8(table):
    return table.clip(0, 255).astype(np.uint8)


_OPERATIONS = {
    'Identity': _identity,
    'AutoContrast': _auto_contrast,
    'AutoContrastFixed': _auto_contrast_fixed,
    'Equalize': _equalize,
    'Brightness': _brightness,
    'Sharpness': _sharpness,
    'ShearX': _shear_x,
    'ShearY': _shear_y,
    'TranslateX': _translate_x,
    'TranslateY': _translate_y,
    'Rotate': _rotate,
}
