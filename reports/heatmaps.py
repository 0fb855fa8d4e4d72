"""A picture of heat maps: an image, where the model finds a whole text in it, and where each word.

`python predict.py heatmap` writes it; `Predictor.heatmap` makes the maps.
"""

import os
from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from dataset.images import read_image, to_rgb
from dataset.sources import checked
from dataset.transforms import Source
from utils.files import atomic_write

COLUMNS, SIDE, DPI = 6, 1.9, 110  # panels in a row, inches of a panel, pixels per inch
STRENGTH = 0.8  # opacity of the color at the maximum
TINY = 1e-30  # no map is divided by 0


def draw_heatmaps(image: Source, maps: Mapping[str, Tensor], out: str | os.PathLike) -> None:
    """Write the picture as PNG, atomically.

    image: a path, a Pillow image or an array [H, W, 3] uint8. maps: {word: [H, W] >= 0}, the whole text last, as
    `Predictor.heatmap` returns them. Every map has colors of its own, from 0 to its maximum.
    """
    from matplotlib.figure import Figure

    image = checked(image)
    if not isinstance(image, np.ndarray):
        image = to_rgb(image) if isinstance(image, Image.Image) else read_image(image)
    *words, text = maps
    panels = {'image': None, 'whole text': maps[text]} | {word: maps[word] for word in words}
    rows = -(-len(panels) // COLUMNS)
    columns = min(COLUMNS, len(panels))
    ratio = min(4, max(0.25, image.shape[0] / image.shape[1]))  # of a panel, in which the image keeps its own
    figure = Figure(figsize=(columns * SIDE, rows * (SIDE * ratio + 0.32) + 0.4), dpi=DPI, layout='constrained')
    figure.suptitle(text, fontsize=10).set_parse_math(False)
    for number, (name, heat) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(image if heat is None else overlaid(image, heat.numpy()))
        axes.set_title(name, fontsize=9, fontweight='normal' if number < 3 else 'bold').set_parse_math(False)
        axes.axis('off')
    with atomic_write(out, 'wb') as file:
        figure.savefig(file, format='png')


def overlaid(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image [H, W, 3] uint8, colored where a map [H, W] is high -> [H, W, 3] float from 0 to 1."""
    from matplotlib import colormaps

    heat = heat / max(float(heat.max()), TINY)  # [H, W], 0 to 1
    colors = colormaps['plasma'](heat)[..., :3]
    opacity = STRENGTH * heat[..., None]
    return (1 - opacity) * pixels / 255 + opacity * colors
