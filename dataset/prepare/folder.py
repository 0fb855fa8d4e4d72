"""Your own images: a folder with a .txt beside each, or a table with a column of paths and one of captions."""

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator

import pyarrow.parquet as parquet

from dataset.prepare.common import (
    Summary,
    add_common,
    add_per_image,
    caption_rows,
    join,
    progress,
    stream_json,
    write_rows,
)
from dataset.prepare.exclude import Exclusions
from dataset.prepare.web import EXTENSIONS, image_files
from utils.errors import InputError

IMAGE_COLUMNS = ('image', 'image_path', 'path', 'file', 'filename', 'file_name', 'filepath', 'image_name', 'img')
CAPTION_COLUMNS = ('caption', 'text', 'captions', 'sentence', 'description', 'title', 'comment')


def add_folder(commands) -> None:
    parser = commands.add_parser(
        'folder',
        help='your own: images with a .txt each, or a CSV, TSV, Parquet or JSON Lines file with two columns',
        description='SOURCE is a folder in which a.txt holds the captions of a.jpg, one a line; or a table whose '
        'columns are named image and caption, or alike, or by --columns. Paths are written relative to '
        'the folder.',
    )
    parser.add_argument('source', metavar='SOURCE')
    parser.add_argument('--columns', nargs=2, metavar=('IMAGE', 'CAPTION'), help='names of the two columns of a table')
    parser.add_argument(
        '--image-root',
        metavar='DIR',
        help='where the paths of a table start (default: the folder of the table); absent images are dropped',
    )
    add_common(parser, 'F.json to write')
    add_per_image(parser)
    parser.set_defaults(run=run_folder)


def run_folder(args: argparse.Namespace) -> Summary:
    summary = Summary(f'Images of {args.source}')
    if os.path.isdir(args.source):
        images = images_with_texts(args.source, summary)
    else:
        root = args.image_root if args.image_root is not None else os.path.dirname(args.source)
        images = images_of_table(args.source, args.columns, root, args.one_row_per_image, summary)
    images = kept(progress(images, 'images'), Exclusions(args.exclude), args.image_prefix, summary)
    write_rows(args.out, caption_rows(images, args.one_row_per_image, summary), summary)
    return summary


def kept(images: Iterable, exclusions: Exclusions, prefix: str, summary: Summary) -> Iterator[tuple[str, list]]:
    for path, captions in images:
        if exclusions.names(path):
            summary.excluded.add(path)
        elif not is_utf8(path):
            summary.dropped['file whose name is not UTF-8'] += 1
        else:
            yield join(prefix, path), captions


def is_utf8(path: str) -> bool:
    """Whether a path can be written to a file and read back (Linux allows any bytes in names)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def images_with_texts(folder: str, summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """(path, lines of its .txt) of each image; blank lines are no captions."""
    for path in image_files(folder):
        if not path.lower().endswith(EXTENSIONS):
            continue
        summary.read['images'] += 1
        try:
            with open(
                os.path.join(folder, os.path.splitext(path)[0] + '.txt'),
                encoding='utf-8-sig',
                errors='replace',
                newline='\n',
            ) as file:
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
    """(path, captions) of each row or, if `group`, of each image, where it first comes."""
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
        try:
            with parquet.ParquetFile(path) as file:
                image, caption = choose_columns(file.schema_arrow.names, columns, path)
                for batch in file.iter_batches(columns=[image, caption]):
                    yield from zip(batch[image].to_pylist(), batch[caption].to_pylist(), strict=True)
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) or path in str(error):
                raise
            raise InputError(f'{path} is not a whole Parquet file: {str(error).splitlines()[0]}') from None
    else:
        raise InputError(f'{path} is neither a folder nor a .csv, .tsv, .parquet, .jsonl or .json file')


def _csv_pairs(path: str, delimiter: str, columns: list[str] | None) -> Iterator[tuple[object, object]]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding='utf-8-sig', errors='replace', newline='') as file:
        lines = (line.replace('\0', ' ') for line in file)  # older csv modules refuse NUL
        reader = csv.reader(lines, delimiter=delimiter)
        heading = next(reader, None)
        if heading is None:
            raise InputError(f'{path} is empty: it needs a column of images and one of captions')
        if columns is None and len(heading) == 2 and heading[0].lower().endswith(EXTENSIONS):  # no heading, then
            yield heading[0], heading[1]
            image, caption = 0, 1
        else:
            image, caption = (heading.index(name) for name in choose_columns(heading, columns, path))
        for row in reader:
            if row:
                yield tuple(row[i] if i < len(row) else None for i in (image, caption))


def choose_columns(names: list[str], wanted: list[str] | None, path: str) -> list[str]:
    """The names of the image's column and the caption's; ValueError where they cannot be told."""
    if wanted is None:
        lower = {name.lower(): name for name in reversed(names)}
        known = (IMAGE_COLUMNS, CAPTION_COLUMNS)
        wanted = [next((lower[name] for name in group if name in lower), None) for group in known]
    if not all(name in names for name in wanted):
        raise InputError(f'{path} has the columns {", ".join(names)}: name those of images and captions with --columns')
    return wanted
