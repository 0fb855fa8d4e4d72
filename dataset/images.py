"""Image files to RGB arrays: every file is decoded, or `BadImage` names it and the reason.

Pixels are those of Pillow's `Image.open(path).convert('RGB')`, as in the official code, except for 16-bit grayscale
(see `to_rgb`). Truncated files are decoded as far as they go, the limit on pixels is far above Pillow's, and EXIF
rotation is ignored.

Legend: H, W height and width in pixels. A box is (left, top, right, bottom) in pixels, right and bottom excluded.
"""

import functools
import io
import os
import struct

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from dataset.files import open_regular
from utils.errors import InputError

Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = True

# Of one decoded image: 2 GB in Pillow, 1.5 GB as an array. Headers of damaged files may claim more than the memory.
MAX_PIXELS = 500_000_000
MAX_BYTES = 1 << 30  # of a file: no image of so many pixels needs more
JPEG = ('JPEG', 'MPO')
Box = tuple[int, int, int, int]
OPENCV_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class BadImage(InputError):
    """An image that cannot be read; the message names the file and the reason."""


def read_image(path: str | os.PathLike, reduce: int = 1, allow_truncated: bool = True) -> np.ndarray:
    """Read and decode an image file -> [H, W, 3] uint8, RGB. BadImage if that is not possible.

    reduce: 2, 4 or 8 decodes a JPEG at that fraction of its size (rounded up), which takes less time and memory; other
    formats are decoded in full. allow_truncated: False refuses files that end early.
    """
    return open_image(path, allow_truncated).decode(reduce)


def open_image(path: str | os.PathLike, allow_truncated: bool = True) -> 'EncodedImage':
    """Read a file and its header without decoding it. BadImage if it is not an image."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if size <= MAX_BYTES else None
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL in the path
        raise bad_image(path, error) from None
    if data is None:
        raise bad_image(path, f'{size >> 20} MiB are too much for an image')
    return EncodedImage(path, data, allow_truncated)


def bad_image(path: str | os.PathLike, reason: str | Exception) -> BadImage:
    """The error about a file; the reason is in words or an exception of whoever reads or decodes it."""
    if isinstance(reason, MemoryError):
        reason = 'there is not enough memory for it'
    elif isinstance(reason, Exception):
        reason = getattr(reason, 'strerror', None) or str(reason).strip().split('\n')[0] or type(reason).__name__
    return BadImage(f'cannot read the image {os.fspath(path)!r}: {reason}')


class EncodedImage:
    """An image file in memory: its `size` (width, height) is known, its pixels are decoded on demand."""

    def __init__(self, path: str | os.PathLike, data: bytes, allow_truncated: bool = True):
        self.path, self.data, self.allow_truncated = path, data, allow_truncated
        if not data:
            raise self._bad('the file is empty')
        self.size = common_jpeg_size(data)
        self.is_common_jpeg = self.size is not None
        if not self.is_common_jpeg:
            self.size = self.header.size

    @functools.cached_property
    def header(self) -> Image.Image:
        """Pillow's image, not decoded."""
        try:
            image = Image.open(io.BytesIO(self.data))
        except UnidentifiedImageError:
            page = self.data[:512].lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<')
            raise self._bad('it is an HTML or XML page' if page else 'it is of no known image format') from None
        except Exception as error:  # Pillow's decoders raise almost any exception for invalid bytes
            raise self._bad(error) from error
        if image.format == 'EPS':
            raise self._bad('it is a PostScript program, which would be run to draw it')
        return image

    def decode(self, reduce: int = 1, box: Box | None = None) -> np.ndarray:
        """Decode the image -> [H, W, 3] uint8, RGB.

        reduce: 2, 4 or 8 decodes a JPEG at that fraction of its size, rounded up. box: the part to return, in pixels of
        the full size.
        """
        width, height = self.size
        if width * height > MAX_PIXELS * (reduce**2 if self.is_common_jpeg or self.header.format in JPEG else 1):
            raise self._bad(f'{width} x {height} pixels are too many to decode')
        try:
            return self._decode(reduce, box)
        except MemoryError as error:
            raise self._bad(error) from None
        except cv2.error:  # it could decode the pixels and not convert them
            raise self._bad(MemoryError()) from None

    def _decode(self, reduce: int, box: Box | None) -> np.ndarray:
        """[H, W, 3] uint8, RGB."""
        pixels = self._decode_with_opencv(reduce) if self.is_common_jpeg else None
        in_bgr = pixels is not None
        if not in_bgr:
            pixels = self._decode_with_pillow(reduce)
        if box:
            size = pixels.shape[1::-1]
            left, top, right, bottom = scale_box(box, 1 if size == self.size else reduce, size)
            pixels = pixels[top:bottom, left:right]
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if in_bgr else pixels

    def _decode_with_opencv(self, reduce: int) -> np.ndarray | None:
        """[H, W, 3] uint8, BGR, or None: OpenCV gives Pillow's pixels in less time, but not for every file."""
        flags = OPENCV_FLAGS[reduce] | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            return cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)
        except cv2.error:  # more pixels than OpenCV allows
            return None

    def _decode_with_pillow(self, reduce: int) -> np.ndarray:
        """[H, W, 3] uint8, RGB."""
        width, height = self.size
        ImageFile.LOAD_TRUNCATED_IMAGES = self.allow_truncated
        try:
            image = Image.open(io.BytesIO(self.data))
            image.draft(None, (max(1, width // reduce), max(1, height // reduce)))  # ignored except for JPEG
            image.load()
            image.info.pop('transparency', None)  # RGB has none, and Pillow would warn
            return to_rgb(image)
        except Exception as error:  # as in `header`
            raise self._bad(error) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True

    def _bad(self, reason: str | Exception) -> BadImage:
        return bad_image(self.path, reason)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pillow image -> [H, W, 3] uint8.

    16-bit grayscale keeps the high byte of each value, as Pillow does for 16-bit RGB; `convert('RGB')` would clip at
    255, so that almost every pixel becomes white.
    """
    if image.mode.startswith('I;16') or (
        image.mode == 'I' and image.format == 'PNG'
    ):  # 'I': 16-bit in older versions of Pillow
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image if image.mode == 'RGB' else image.convert('RGB'))


def common_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG of the common kind (complete, 8 bits, grayscale or three components), else None.

    It avoids Pillow's reading of the header, which takes several percent of the time of a training image.
    """
    if not data.startswith(b'\xff\xd8') or not data.endswith(b'\xff\xd9'):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # until the scan starts
        if data[at + 1] in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            depth, height, width, components = struct.unpack_from('>BHHB', data, at + 4)
            return (width, height) if depth == 8 and components in (1, 3) and width and height else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return None


def scale_box(box: Box, reduce: int, size: tuple[int, int]) -> Box:
    """A box in pixels of the full image -> in pixels of its reduced version of `size`: rounded, at least one pixel."""
    left, top, right, bottom = ((2 * edge + reduce) // (2 * reduce) for edge in box)
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(min(right, size[0]), left + 1), max(min(bottom, size[1]), top + 1)
