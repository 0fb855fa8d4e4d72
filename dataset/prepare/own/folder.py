"""Your own images: files with a .txt each, a table with a column of images and one of captions, or packed images."""

import argparse
import ntpath
import os
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from dataset.annotations.json_reader import short
from dataset.files import open_regular
from dataset.prepare.arguments import add_command, add_output_arguments
from dataset.prepare.columns import captions_of
from dataset.prepare.common import Summary, add_prefix, caption_rows, progress_bar, write_rows
from dataset.prepare.exclude import Exclusions
from dataset.prepare.images import (
    BESIDE,
    count_other,
    files_under,
    has_image_extension,
    is_utf8,
    without_extension,
)
from dataset.prepare.own.packed import is_packed, unpack
from dataset.prepare.own.splits import Splits, split_of_path
from dataset.prepare.own.tables import ENDINGS, find_tables, table_pairs
from dataset.prepare.texts import captions_in, decode_text
from utils.errors import InputError


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
    parser.add_argument(
        '--keep-missing',
        action='store_true',
        help='keep the rows of a table whose images are not there, so that check --rebase or --find can correct their '
        'paths',
    )
    parser.add_argument(
        '--split',
        action='append',
        default=[],
        metavar='NAME',
        help='read only the examples of this split, as the column split or the folders of images name it; may be '
        'repeated (needed if the examples are of several)',
    )
    parser.add_argument(
        '--unpack-to', metavar='DIR', help='folder for the images of tars and of Parquet files with embedded images'
    )
    parser.add_argument(
        '--kind',
        choices=['pretrain', 'retrieval_train', 'retrieval_eval'],
        default='pretrain',
        help='rows to write: for pre-training, for retrieval with the image_id that its training needs, or for the '
        'evaluation of retrieval, one row per image (default pretrain)',
    )
    add_output_arguments(parser, 'F.json', per_image=True)


def run_folder(args: argparse.Namespace) -> Summary:
    """your own: images with a .txt file each, a table with two columns, or packed images

    SOURCE is a folder in which a.txt contains the captions of a.jpg, one per line; or a CSV, TSV, Parquet or JSON Lines
    file with columns named image and caption, or similarly, or as --columns says, or a pattern or folder of such
    tables; or a webdataset .tar or a Parquet file with embedded images, or a folder of them, which are unpacked once to
    --unpack-to. Paths are written relative to the folder of the images.
    """
    summary, group = Summary(f'Images of {args.source}'), args.one_row_per_image or args.kind == 'retrieval_eval'
    splits = Splits(args.source, args.split, summary)
    tables = [] if (packed := is_packed(args.source, args.columns)) else find_tables(args.source)
    if args.keep_missing and not tables:
        raise InputError(f'--keep-missing is for tables, and {args.source} is none: leave it out')
    if packed:
        if not args.unpack_to:
            raise InputError(f'{args.source} has packed images: give a folder to unpack them to with --unpack-to')
        images = unpack(args.source, args.unpack_to, args.columns, args.encoding, splits, summary)
    elif tables:
        images = images_of_tables(tables, args, splits, summary)
    else:
        images = images_with_texts(args.source, args.encoding, splits, summary)
    images = splits.checked(images)
    exclusions = Exclusions.of(args, summary)
    images = drop_unusable(progress_bar(images, 'images'), exclusions, args.image_prefix, summary)
    if group:
        images = captions_by_image(images).items()
    rows = exclusions.reported(rows_of(images, args.kind, group, summary), summary)
    write_rows(args.out, rows, summary)
    return summary


def rows_of(images: Iterable[tuple[str, list]], kind: str, per_image: bool, summary: Summary) -> Iterator[dict]:
    """The rows of a kind of annotation file; the image_id of retrieval is the path of the image."""
    for row in caption_rows(images, per_image, summary):
        yield row | ({'image_id': row['image']} if kind == 'retrieval_train' else {})


def captions_by_image(images: Iterable[tuple[str, list]]) -> dict[str, list]:
    """All captions of each image, in the order of first occurrence."""
    groups: dict[str, list] = {}
    for path, captions in images:
        groups.setdefault(path, []).extend(captions)
    return groups


def drop_unusable(
    images: Iterable[tuple[str, list]], exclusions: Exclusions, prefix: str, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(prefixed path, captions) of the images that are not excluded and whose name can be written."""
    for path, captions in images:
        if exclusions.contains(path):
            summary.excluded.add(path)
        elif not is_utf8(path):
            summary.drop('file whose name is not UTF-8', repr(path))
        else:
            yield add_prefix(prefix, path), captions


def images_with_texts(
    folder: str, encoding: str | None, splits: Splits, summary: Summary
) -> Iterator[tuple[str, list[str]]]:
    """(path, lines of its .txt file) of each image; blank lines are ignored.

    InputError after the last if the text of some cannot be decoded.
    """
    files = list(progress_bar(files_under(folder, summary), 'files'))
    texts = find_texts(files, summary)
    if not texts and (table := next((path for path in files if path.lower().endswith(ENDINGS)), None)):
        raise InputError(
            f'{folder} has no .txt files: if a table has the captions, give it, such as {os.path.join(folder, table)}'
        )
    unused, faults = set(texts), []
    users: dict[str, str] = {}  # {name without extension: its first image}
    for path in files:
        name = without_extension(path)
        if not has_image_extension(path) and (name not in texts or not _is_image(os.path.join(folder, path))):
            if not path.lower().endswith(BESIDE):
                count_other(path, summary)
            continue
        summary.read['images'] += 1
        unused.discard(name)
        if name not in texts:
            summary.drop('image without a .txt', path)
            continue
        if (first := users.setdefault(name, path)) != path:
            summary.note('image that shares its .txt with another, such as a mask', f'{path} and {first}')
        if not splits.takes(split_of_path(path), path):
            continue
        try:
            captions = _read_text(os.path.join(folder, texts[name]), encoding, summary)
        except InputError as error:
            faults.append(str(error))
            continue
        if captions:
            yield path, captions
        else:
            summary.drop('image with an empty .txt', path)
    summary.drop('.txt without an image', texts[min(unused)] if unused else None, len(unused))
    if faults:
        raise InputError(f'{len(faults)} of {len(texts)} .txt files cannot be read, the first: {faults[0]}')


def find_texts(files: list[str], summary: Summary) -> dict[str, str]:
    """{path without extension: path} of the .txt files; of those that differ in the case of .txt the last one."""
    texts: dict[str, str] = {}
    for path in files:
        name, extension = os.path.splitext(path)
        if extension.lower() == '.txt':
            if name in texts:
                summary.drop('.txt with the name of another in another case', texts[name])
            texts[name] = path
    return texts


def _read_text(path: str, encoding: str | None, summary: Summary) -> list[str]:
    with open_regular(path) as file:
        return captions_in(decode_text(file.read(), path, encoding, summary))


def _is_image(path: str) -> bool:
    """Whether a file without the extension of an image is one."""
    from dataset.images import BadImage, open_image  # here, because OpenCV is slow to import

    try:
        return bool(open_image(path))
    except BadImage:
        return False


def images_of_tables(
    tables: list[str], args: argparse.Namespace, splits: Splits, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(path, captions) of each row of tables whose image is there. InputError if no image is."""
    missing, found = [], False
    stems = {path: os.path.splitext(os.path.basename(path))[0] for path in tables}
    for table in splits.choose_files(stems):
        root = args.image_root if args.image_root is not None else os.path.dirname(table)
        for image, caption in table_pairs(table, args.columns, args.encoding, root, splits, summary):
            summary.read['rows'] += 1
            path = image.strip() if isinstance(image, str) else ''
            if not path:
                summary.dropped['row without the path of an image'] += 1
            elif (there := existing_path(path, root, summary)) is not None:
                found = True
                yield there, captions_of(caption, summary)
            elif args.keep_missing and '\0' not in path:
                found = True
                summary.note('image that is not there, kept', os.path.join(root, path))
                yield path, captions_of(caption, summary)
            else:
                missing = missing or [os.path.join(root, path)]
                summary.drop('image that is not there', os.path.join(root, path))
    if missing and not found:
        raise InputError(
            f'no image of {args.source} is there, the first that was looked for is {short(missing[0], 200)}: give the '
            'folder of the images with --image-root, or write the rows with --keep-missing, and correct the paths with '
            'check --rebase OLD=NEW or --find FOLDER'
        )


def existing_path(path: str, root: str, summary: Summary) -> str | None:
    """The path of an image in its shortest form, so that one image has one path; None if it is not there."""
    if '\0' in path:
        return None
    file = os.path.join(root, path)
    if not os.path.isfile(file):
        other = path.replace('\\', '/')
        if other == path or ntpath.splitdrive(path)[0] or not os.path.isfile(os.path.join(root, other)):
            return None
        summary.note('path with backslashes, which become slashes', path)
        path, file = other, os.path.join(root, other)
    normal = posixpath.normpath(path)
    is_same = (
        normal == path or '..' not in path or os.path.realpath(os.path.join(root, normal)) == os.path.realpath(file)
    )
    return normal if is_same else path  # a link before .. may lead elsewhere
