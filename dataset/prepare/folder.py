"""Your own images: a folder with a .txt file for each image, or a table with a column of paths and one of captions."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet as parquet

from dataset.files import open_regular
from dataset.prepare.arguments import add_command, add_output_arguments
from dataset.prepare.common import Summary, add_prefix, caption_rows, progress_bar, stream_json, write_rows
from dataset.prepare.exclude import Exclusions
from dataset.prepare.web import EXTENSIONS, image_files
from utils.errors import InputError

IMAGE_COLUMNS = ('image', 'image_path', 'path', 'file', 'filename', 'file_name', 'filepath', 'image_name', 'img')
CAPTION_COLUMNS = ('caption', 'text', 'captions', 'sentence', 'description', 'title', 'comment')


def add_folder(commands: Any) -> None:
    parser = add_command(commands, 'folder', run_folder)
    parser.add_argument('source', metavar='SOURCE')
    parser.add_argument('--columns', nargs=2, metavar=('IMAGE', 'CAPTION'), help='names of the two columns of a table')
    parser.add_argument(
        '--image-root',
        metavar='DIR',
        help='folder that the paths of a table are relative to (default: that of the table); missing images are '
        'dropped',
    )
    add_output_arguments(parser, 'F.json', per_image=True)


def run_folder(args: argparse.Namespace) -> Summary:
    """your own: images with a .txt file each, or a CSV, TSV, Parquet or JSON Lines file with two columns

    SOURCE is a folder in which a.txt contains the captions of a.jpg, one per line; or a table with columns named image
    and caption, or similarly, or as --columns says. Paths are written relative to the folder.
    """
    summary = Summary(f'Images of {args.source}')
    if os.path.isdir(args.source):
        images = images_with_texts(args.source, summary)
    else:
        root = args.image_root if args.image_root is not None else os.path.dirname(args.source)
        images = images_of_table(args.source, args.columns, root, args.one_row_per_image, summary)
    images = drop_unusable(progress_bar(images, 'images'), Exclusions(args.exclude), args.image_prefix, summary)
    write_rows(args.out, caption_rows(images, args.one_row_per_image, summary), summary)
    return summary


def drop_unusable(
    images: Iterable[tuple[str, list]], exclusions: Exclusions, prefix: str, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(prefixed path, captions) of the images that are not excluded and whose name can be written."""
    for path, captions in images:
        if exclusions.contains(path):
            summary.excluded.add(path)
        elif not is_utf8(path):
            summary.dropped['file whose name is not UTF-8'] += 1
        else:
            yield add_prefix(prefix, path), captions


def is_utf8(path: str) -> bool:
    """Whether a path can be written to a file and read back (Linux allows any bytes in names)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def images_with_texts(folder: str, summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """(path, lines of its .txt file) of each image; blank lines are ignored."""
    for path in image_files(folder):
        if not path.lower().endswith(EXTENSIONS):
            continue
        summary.read['images'] += 1
        try:
            text = open_regular(os.path.join(folder, os.path.splitext(path)[0] + '.txt'))
            with io.TextIOWrapper(text, encoding='utf-8-sig', errors='replace', newline='\n') as file:
                captions = [line for line in file if line.strip()]
        except FileNotFoundError:
            summary.dropped['image without a .txt'] += 1
            continue
        if captions:
            yield path, captions
        else:
            summary.dropped['image with an empty .txt'] += 1


def images_of_table(
    path: str, columns: list[str] | None, root: str, group: bool, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(path, captions) of each row or, if `group`, of each image, in the order of first occurrence."""
    groups: dict[str, list] = {}
    for image, caption in table_pairs(path, columns):
        summary.read['rows'] += 1
        if not isinstance(image, str) or not image.strip():
            summary.dropped['row without the path of an image'] += 1
        elif '\0' in image or not os.path.isfile(os.path.join(root, image.strip())):
            summary.dropped['image that is not there'] += 1
        else:
            captions = caption if isinstance(caption, list) else [caption]
            if group:
                groups.setdefault(image.strip(), []).extend(captions)
            else:
                yield image.strip(), captions
    yield from groups.items()


def table_pairs(path: str, columns: list[str] | None) -> Iterator[tuple[object, object]]:
    """(image, caption) of each row of a CSV, TSV, Parquet or JSON Lines file."""
    ending = os.path.splitext(path)[1].lower()
    if ending in ('.csv', '.tsv'):
        yield from _csv_pairs(path, '\t' if ending == '.tsv' else ',', columns)
    elif ending in ('.jsonl', '.json'):
        for number, row in enumerate(stream_json(path)):
            if not isinstance(row, dict):
                raise InputError(f'{path}: row {number} is not an object with an image and a caption')
            if number == 0:
                columns = choose_columns(list(row), columns, path)
            yield row.get(columns[0]), row.get(columns[1])
    elif ending == '.parquet':
        with open(path, 'rb') as file:
            yield from _parquet_pairs(path, file, columns)
    else:
        raise InputError(f'{path} is not a folder or a .csv, .tsv, .parquet, .jsonl or .json file')


def _parquet_pairs(path: str, file: BinaryIO, columns: list[str] | None) -> Iterator[tuple[object, object]]:
    try:
        with parquet.ParquetFile(file) as table:
            image, caption = choose_columns(table.schema_arrow.names, columns, path)
            for batch in table.iter_batches(columns=[image, caption]):
                yield from zip(batch[image].to_pylist(), batch[caption].to_pylist(), strict=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f'{path} is not a complete Parquet file: {str(error).splitlines()[0]}') from None


def _csv_pairs(path: str, delimiter: str, columns: list[str] | None) -> Iterator[tuple[object, object]]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding='utf-8-sig', errors='replace', newline='') as file:
        lines = (line.replace('\0', ' ') for line in file)  # the csv module of older Pythons refuses NUL
        reader = csv.reader(lines, delimiter=delimiter)
        heading = next(reader, None)
        if heading is None:
            raise InputError(f'{path} is empty: give a table with a column of images and one of captions')
        if columns is None and len(heading) == 2 and heading[0].lower().endswith(EXTENSIONS):  # there is no heading
            yield heading[0], heading[1]
            image, caption = 0, 1
        else:
            image, caption = (heading.index(name) for name in choose_columns(heading, columns, path))
        for row in reader:
            if row:
                yield tuple(row[i] if i < len(row) else None for i in (image, caption))


def choose_columns(names: list[str], wanted: list[str] | None, path: str) -> list[str]:
    """The names of the image and caption columns; InputError if they are not found."""
    if wanted is None:
        lower = {name.lower(): name for name in reversed(names)}
        known = (IMAGE_COLUMNS, CAPTION_COLUMNS)
        wanted = [next((lower[name] for name in group if name in lower), None) for group in known]
    if not all(name in names for name in wanted):
        raise InputError(
            f'{path} has the columns {", ".join(names)}: choose those of images and captions with --columns'
        )
    return wanted
