"""Images per second on one core: the transforms of this repository compared with Pillow + torchvision + OpenCV.

    python benchmarks/bench_loader.py

It draws photograph-like JPEGs (640 x 480, 4:2:0, quality 90 to 95). Then both ways take turns to transform them, in one
process and one thread: from file to normalized tensor, at 256 and 384 pixels, for training and evaluation. The plain
way does the same operations with the same strengths, as they are commonly written. Times are CPU times, which depend
less on other load, of the median pass. At this size both ways decode a complete JPEG, so larger files (`--grain 12`)
make the ratio smaller; of larger images (`--width 1280 --height 960`) the transforms of this repository decode less.

The pixels of evaluation are compared first: if they differ by more than one level of 255 on average, nothing is
measured. In training each way draws its own crops and operations from the same distributions, so that pixels cannot be
compared; tests/dataset compares each operation.

Legend: H, W height and width in pixels, R resolution.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms as tv

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.report import Report, add_arguments, take_turns  # noqa: E402
from dataset.loader import compute_in_one_thread  # noqa: E402
from dataset.randaugment import TEN  # noqa: E402
from dataset.transforms import MEAN, STD, EvalTransform, TrainTransform, example_rng  # noqa: E402
from utils.arguments import Parser, positive_int  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402

Transform = Callable[[str], torch.Tensor]  # path -> [3, R, R]
TOLERANCE = 1.0  # levels of 255: the mean difference of pixels, from a JPEG that is decoded at half its size


def draw_photo(rng: np.random.Generator, width: int, height: int, grain: float) -> np.ndarray:
    """[H, W, 3] uint8: detail at every scale (amplitude falls with frequency), hard edges and sensor noise."""
    image = np.zeros((height, width, 3), np.float32)
    for cell in (2, 4, 8, 16, 32, 64, 128, 256):
        shape = height // cell + 2, width // cell + 2
        coarse = (rng.normal(size=(*shape, 1)) + 0.3 * rng.normal(size=(*shape, 3))).astype(np.float32)
        image += 0.9 * cell**0.75 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image = 128 + image * (55 / image.std())
    for _ in range(15):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(8, 120)), int(rng.integers(8, 120)))
        shape = np.zeros((height, width, 1), np.float32)
        cv2.ellipse(shape, center, axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA)
        image += shape.reshape(height, width, 1) * rng.uniform(-70, 70, 3).astype(np.float32)
    return (image + grain * rng.normal(size=(height, width, 1))).clip(0, 255).astype(np.uint8)


def write_photos(folder: str, count: int, width: int, height: int, grain: float) -> list[str]:
    """Write `count` JPEGs -> their paths."""
    rng = np.random.default_rng(0)
    paths = [os.path.join(folder, f'{i}.jpg') for i in range(count)]
    for path in paths:
        photo = Image.fromarray(draw_photo(rng, width, height, grain))
        photo.save(path, quality=int(rng.integers(90, 96)), subsampling='4:2:0')
    return paths


class PlainRandAugment:
    """Two of the ten operations, each with probability 0.5, on [H, W, 3] uint8."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def __call__(self, image: Image.Image) -> np.ndarray:
        image = np.array(image)
        for name in self.rng.choice(TEN, 2):
            if self.rng.random() < 0.5:
                image = self.apply(name, image, self.rng.choice([-1, 1]))
        return image

    def apply(self, name: str, image: np.ndarray, sign: int) -> np.ndarray:
        height, width = image.shape[:2]
        if name == 'AutoContrast':
            return cv2.merge([self.stretch(channel) for channel in cv2.split(image)])
        if name == 'Equalize':
            return cv2.merge([self.equalize(channel) for channel in cv2.split(image)])
        if name == 'Brightness':
            return np.clip(np.arange(256) * 1.36, 0, 255).astype(np.uint8)[image]
        if name == 'Sharpness':
            kernel = np.ones((3, 3), np.float32)
            kernel[1, 1] = 5
            smooth = cv2.filter2D(image, -1, kernel / 13).astype(np.float32)
            sharp = image.astype(np.float32)
            sharp[1:-1, 1:-1] += 0.36 * (sharp - smooth)[1:-1, 1:-1]
            return sharp.clip(0, 255).astype(np.uint8)
        matrix = {
            'Identity': None,
            'ShearX': [[1, 0.21 * sign, 0], [0, 1, 0]],
            'ShearY': [[1, 0, 0], [0.21 * sign, 1, 0]],
            'TranslateX': [[1, 0, 7 * sign], [0, 1, 0]],
            'TranslateY': [[1, 0, 0], [0, 1, 7 * sign]],
            'Rotate': cv2.getRotationMatrix2D((width / 2, height / 2), 21 * sign, 1),
        }[name]
        if matrix is None:
            return image
        return cv2.warpAffine(image, np.float32(matrix), (width, height), borderValue=(128, 128, 128))

    def stretch(self, channel: np.ndarray) -> np.ndarray:
        low, high = int(channel.min()), int(channel.max())
        if high == low:
            return channel
        return np.clip((np.arange(256) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)[channel]

    def equalize(self, channel: np.ndarray) -> np.ndarray:
        counts = np.bincount(channel.reshape(-1), minlength=256)
        step = counts[: np.flatnonzero(counts)[-1]].sum() // 255
        if step == 0:
            return channel
        return np.clip((np.cumsum(counts) - counts + step // 2) // step, 0, 255).astype(np.uint8)[channel]


def plain_transform(resolution: int, train: bool) -> Transform:
    if train:
        steps = [
            tv.RandomResizedCrop(resolution, scale=(0.2, 1.0), interpolation=tv.InterpolationMode.BICUBIC),
            tv.RandomHorizontalFlip(),
            PlainRandAugment(np.random.default_rng(0)),
        ]
    else:
        steps = [tv.Resize((resolution, resolution), interpolation=tv.InterpolationMode.BICUBIC)]
    pipeline = tv.Compose([*steps, tv.ToTensor(), tv.Normalize(MEAN.tolist(), STD.tolist())])
    return lambda path: pipeline(Image.open(path).convert('RGB'))


def our_transform(resolution: int, train: bool, exact: bool) -> Transform:
    if not train:
        return EvalTransform(resolution, reduced_decode=not exact)
    transform, numbers = TrainTransform(resolution, reduced_decode=not exact), iter(range(1 << 60))
    return lambda path: transform(path, example_rng(0, 0, next(numbers)))


def compare_pixels(paths: Sequence[str], resolution: int, exact: bool) -> float:
    """The mean difference of both ways' pixels in evaluation, in levels of 255; InputError above `TOLERANCE`."""
    plain, ours = plain_transform(resolution, train=False), our_transform(resolution, False, exact)
    levels = 255 * torch.tensor(STD)[:, None, None]
    difference = max(((plain(path) - ours(path)) * levels).abs().mean().item() for path in paths)
    if not difference <= TOLERANCE:
        raise InputError(
            f'pixels of both ways at {resolution} px differ by {difference:.2f} levels of 255 on average; no times are '
            'measured'
        )
    return difference


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=positive_int, default=64, help='JPEGs to draw (default %(default)s)')
    parser.add_argument('--rounds', type=positive_int, default=9, help='timed passes of each way (default %(default)s)')
    parser.add_argument('--width', type=positive_int, default=640, help='of a JPEG (default %(default)s)')
    parser.add_argument('--height', type=positive_int, default=480, help='of a JPEG (default %(default)s)')
    parser.add_argument('--grain', type=float, default=2.5, help='standard deviation of the sensor noise, in levels')
    parser.add_argument('--resolutions', type=positive_int, nargs='+', default=[256, 384], help='(default 256 384)')
    parser.add_argument('--exact', action='store_true', help='the official pixels (reduced_decode=False)')
    add_arguments(parser, 'loader', cpu_only=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    compute_in_one_thread()
    report = Report('loader', args, argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(folder, args.images, args.width, args.height, args.grain)
        size = sum(map(os.path.getsize, paths)) / len(paths) / 1024
        report.facts['JPEGs'] = f'{len(paths)} of {args.width} x {args.height}, {size:.0f} KB each'
        differences = {resolution: compare_pixels(paths, resolution, args.exact) for resolution in args.resolutions}
        for train in (True, False):
            for resolution in args.resolutions:
                ways = {
                    'plain': plain_transform(resolution, train),
                    'ours': our_transform(resolution, train, args.exact),
                }
                passes = {name: partial(transform_all, way, paths) for name, way in ways.items()}
                # The first round warms up the file cache.
                seconds = take_turns(passes, args.rounds, report.device, warmup=1, clock=time.process_time)
                plain, ours = (len(paths) / float(np.median(seconds[name])) for name in ways)
                row = {
                    'transform': 'train' if train else 'eval',
                    'px': resolution,
                    'plain images/s': plain,
                    'images/s': ours,
                    'ratio': ours / plain,
                    'levels': None if train else differences[resolution],
                }
                report.add(row, seconds=seconds)
    report.finish()


def transform_all(way: Transform, paths: Sequence[str]) -> None:
    for path in paths:
        way(path)


if __name__ == '__main__':
    run_main(main)
