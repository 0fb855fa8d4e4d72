"""A picture of mini-batches: GRIT's beside random ones.

    python -m reports.batch_grid OUTPUT_DIR --out hard_batches.png

It reads the newest checkpoint of a pre-training run, takes mini-batches of its next epoch and as many random ones, and
draws a few neighbors of each with their captions.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset.annotations import Annotations, load_annotations
from dataset.images import read_image
from utils.arguments import Parser, positive_int
from utils.checkpoint import find_run, open_run
from utils.entry import run_main
from utils.errors import InputError, MissingFileError

TILE, CAPTION, GAP, MARGIN = 150, 66, 10, 24
INK, GREY, PAPER = (30, 30, 34), (120, 120, 128), (255, 255, 255)


def draw_batches(
    columns: Mapping[str, Sequence[Sequence[int]]], table: Annotations, image_root: str, path: str
) -> None:
    """Draw rows of examples side by side and write a PNG.

    columns: {title: [batch, ...]}; a batch is a list of indices into `table`, drawn as two rows of pictures.
    """
    batches = next(iter(columns.values()))
    across = -(-len(batches[0]) // 2)
    width, block = across * (TILE + GAP), 2 * (TILE + CAPTION) + 2 * GAP
    top = 3 * MARGIN
    sheet = Image.new('RGB', (len(columns) * (width + 2 * MARGIN), top + len(batches) * (block + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (title, batches) in enumerate(columns.items()):
        left = MARGIN + number * (width + 2 * MARGIN)
        draw.text((left, MARGIN), title, INK, ImageFont.load_default(22))
        for place, batch in enumerate(batches):
            y = top + place * (block + MARGIN)
            draw.rounded_rectangle(
                (left - GAP, y - GAP, left + width, y + block - GAP), 8, outline=(200, 200, 206), width=2
            )
            for i, index in enumerate(batch):
                _draw_example(
                    sheet,
                    draw,
                    table[index],
                    image_root,
                    left + i % across * (TILE + GAP),
                    y + i // across * (TILE + CAPTION + GAP),
                )
    sheet.save(path)


def _draw_example(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Mapping[str, Any], image_root: str, x: int, y: int
) -> None:
    image = Image.fromarray(read_image(os.path.join(image_root, row['image'])))
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    sheet.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
    lines = textwrap.wrap(row['caption'][0], 25)[:4]
    draw.multiline_text((x, y + TILE + 4), '\n'.join(lines), GREY, ImageFont.load_default(12), spacing=2)


def choose_batches(order: np.ndarray, batch_size: int, batches: int, shown: int) -> list[list[int]]:
    """`batches` evenly spaced mini-batches of an order [n], each cut to its first `shown` examples."""
    complete = len(order) // batch_size
    starts = np.linspace(0, complete, batches + 2)[1:-1].astype(int)
    return [order[start * batch_size : start * batch_size + shown].tolist() for start in starts]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog='python -m reports.batch_grid', description="Draw GRIT's mini-batches beside random ones.")
    parser.add_argument('output_dir', help='of a run of Pretrain.py')
    parser.add_argument('--out', default='hard_batches.png', help='the PNG file to write')
    parser.add_argument('--batches', type=positive_int, default=3, help='number of mini-batches of each kind')
    parser.add_argument('--shown', type=positive_int, default=8, help='number of neighbors drawn of each')
    args = parser.parse_args(argv)
    if not args.out.endswith('.png'):
        raise InputError(f'--out {args.out}: the name must end in .png')
    newest = find_run(args.output_dir, 'pretrain')
    if newest is None:
        raise MissingFileError(f'{args.output_dir}: there is no checkpoint of Pretrain.py in it')
    content = open_run(newest, 'pretrain')
    config = content['config']
    table = load_annotations(config['train_file'], 'pretrain', config['annotation_cache'])
    order = content['ranks'][0]['plan']['order'].numpy()
    shuffled = np.random.default_rng(0).permutation(len(table))
    chosen = (config['batch_size'], args.batches, args.shown)
    columns = {
        "From GRIT's mini-batches: hard negatives": choose_batches(order, *chosen),
        'From random mini-batches: easy negatives': choose_batches(shuffled, *chosen),
    }
    draw_batches(columns, table, config['image_root'], args.out)
    print(f'{args.out}: mini-batches of the epoch after {newest}')


if __name__ == '__main__':
    run_main(main)
