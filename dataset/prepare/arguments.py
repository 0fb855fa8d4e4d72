"""The command-line arguments that several commands share."""

import argparse
from collections.abc import Callable
from typing import Any, Literal

from dataset.annotations.json_reader import LINES_ENDINGS
from dataset.prepare.common import Summary
from dataset.prepare.texts import encoding_name
from utils.arguments import Parser

OUT_HELP = {'FOLDER': 'folder to write to', 'F.json': 'annotation file to write; JSON Lines if it ends in .jsonl'}


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], Summary]) -> Parser:
    """Add a command that calls `run`, whose docstring is its help: a title, then details. Returns its parser."""
    title, _, details = run.__doc__.partition('\n\n')
    parser = commands.add_parser(name, help=title, description=details)
    parser.set_defaults(run=run)
    return parser


def add_output_arguments(parser: Parser, out: Literal['FOLDER', 'F.json'], per_image: bool = False) -> None:
    """The arguments of all commands that write annotation files. per_image: also `--one-row-per-image`."""
    parser.add_argument(
        '--out', required=True, metavar=out, type=str if out == 'FOLDER' else annotation_file, help=OUT_HELP[out]
    )
    parser.add_argument(
        '--image-prefix',
        default='',
        metavar='DIR',
        help='put before each path, so that releases in folders side by side share one image_root (such as coco)',
    )
    parser.add_argument(
        '--exclude',
        nargs='+',
        default=[],
        metavar='FILE',
        help='leave out the images that these files name: annotation files, Karpathy JSON (its val and test images), '
        'COCO JSON, or text files with an image, COCO id or Flickr id per line',
    )
    parser.add_argument(
        '--allow-unmatched', action='store_true', help='accept lists of images in which no entry matches an image'
    )
    parser.add_argument(
        '--encoding',
        type=encoding_name,
        metavar='NAME',
        help='of the text that is not UTF-8, such as cp1252 or gb18030 (default: refuse it)',
    )
    if per_image:
        parser.add_argument(
            '--one-row-per-image',
            action='store_true',
            help='all captions of an image in one row, one of which is drawn at each access (default: one row per '
            'caption)',
        )


def annotation_file(word: str) -> str:
    """An argument that is the name of an annotation file."""
    if not word.lower().endswith(('.json', *LINES_ENDINGS)):
        raise argparse.ArgumentTypeError(
            f'{word!r} does not end in .json, .jsonl or .ndjson, which says what is written'
        )
    return word


def json_file(word: str) -> str:
    """An argument that is the name of a JSON file."""
    if not word.lower().endswith('.json'):
        raise argparse.ArgumentTypeError(f'{word!r} does not end in .json, which it will be')
    return word


def not_negative(word: str) -> int:
    """An argument that is an integer of at least 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f'{word!r} is not an integer of at least 0')
    return int(word)


def positive(word: str) -> int:
    """An argument that is an integer of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f'{word!r} is not an integer of at least 1')
    return int(word)
