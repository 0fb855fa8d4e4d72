"""CC3M and SBU: lists of captions and URLs, and the images that a downloader could still get."""

import argparse
import glob
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as parquet

from dataset.prepare.arguments import add_command, add_output_arguments
from dataset.prepare.common import Summary, add_prefix, clean_caption, load_json, progress_bar, require_key, write_rows
from dataset.prepare.exclude import Exclusions, flickr_id
from utils.arguments import Parser
from utils.errors import InputError, MissingFileError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff')


def stem_of(path: str) -> str:
    """The name of a file without folder, extension and leading zeros."""
    return os.path.splitext(os.path.basename(path))[0].lstrip('0') or '0'


def _crc_stems(row: int, url: str) -> list[str]:
    crc = zlib.crc32(url.encode())
    return [stem_of(f'{row}_{crc}'), stem_of(str(crc))]


# {naming: function from row number and URL to the possible stems of the file}
NAMINGS: dict[str, Callable[[int, str], list[str]]] = {
    'crc32': _crc_stems,
    'basename': lambda row, url: [stem_of(url.split('?')[0])],
    'row': lambda row, url: [stem_of(str(row))],
}


def add_cc3m(commands: Any) -> None:
    parser = add_command(commands, 'cc3m', run_cc3m)
    parser.add_argument('files', nargs=1, metavar='TSV')
    add_download_arguments(parser)


def add_sbu(commands: Any) -> None:
    parser = add_command(commands, 'sbu', run_sbu)
    parser.add_argument('files', nargs='+', metavar='FILE')
    add_download_arguments(parser)


def add_download_arguments(parser: Parser) -> None:
    parser.add_argument('--images', required=True, metavar='FOLDER', help='where the downloader put the images')
    parser.add_argument(
        '--naming',
        choices=['auto', 'table', *NAMINGS],
        default='auto',
        help='how it named them. table: as in the Parquet tables of URLs and keys that img2dataset writes; crc32: '
        'ROW_CRC or CRC, the CRC-32 of the URL; basename: the last part of the URL; row: the number of the row, from 0 '
        '(default: the table if there is one, otherwise the naming that fits most rows)',
    )
    add_output_arguments(parser, 'F.json')


def run_cc3m(args: argparse.Namespace) -> Summary:
    """Conceptual Captions 3M: Train_GCC-training.tsv or the validation TSV, and the downloaded images

    Each row of the TSV whose image was downloaded becomes a row of the annotation file.
    """
    return match_and_write(Summary('Conceptual Captions'), read_tsv(args.files[0]), args)


def run_sbu(args: argparse.Namespace) -> Summary:
    """SBU captions: sbu-captions-all.json, or both TXT files of the release, and the downloaded images

    Each caption whose image was downloaded becomes a row of the annotation file.
    """
    return match_and_write(Summary('SBU captions'), read_sbu(args.files), args)


def read_tsv(path: str) -> list[tuple[str, str]]:
    """(URL, caption) of caption<TAB>URL lines, in either order; a heading is skipped."""
    pairs = []
    with open(path, encoding='utf-8', errors='replace', newline='\n') as lines:
        for number, line in enumerate(lines):
            caption, _, url = line.rstrip('\r\n').partition('\t')
            if caption.startswith(('http://', 'https://')):
                caption, url = url, caption
            if url.startswith(('http://', 'https://')):
                pairs.append((url, caption))
            elif number and line.strip():
                pairs.append(('', caption))  # dropped and counted later, because row numbers must not shift
    if not any(url for url, _ in pairs):
        raise InputError(f'{path} has no caption<TAB>URL lines: give Train_GCC-training.tsv or the validation TSV')
    return pairs


def read_sbu(paths: list[str]) -> list[tuple[str, str]]:
    """(URL, caption) of sbu-captions-all.json, or of the two TXT files in any order."""
    if len(paths) == 1 and paths[0].endswith('.json'):
        data = load_json(paths[0])
        urls, captions = (require_key(data, key, paths[0], 'its top level') for key in ('image_urls', 'captions'))
    elif len(paths) == 2:
        texts = []
        for path in paths:
            with open(path, encoding='utf-8', errors='replace', newline='\n') as file:
                texts.append(file.read().rstrip('\n').split('\n'))
        urls, captions = sorted(texts, key=lambda lines: not lines[0].startswith('http'))
    else:
        raise InputError('give sbu-captions-all.json, or SBU_captioned_photo_dataset_urls.txt and ..._captions.txt')
    if len(urls) != len(captions) or not urls or not urls[0].startswith('http'):
        raise InputError(
            f'{" and ".join(paths)} must contain as many URLs as captions, not {len(urls)} and {len(captions)}: '
            f'download again'
        )
    return list(zip((url.strip() for url in urls), captions, strict=True))


def match_and_write(summary: Summary, pairs: list[tuple[str, str]], args: argparse.Namespace) -> Summary:
    summary.read['captions and URLs'] = len(pairs)
    images = find_images(args.images, args.naming, pairs, summary)
    rows = matched_rows(pairs, images, Exclusions(args.exclude), args.image_prefix, summary)
    write_rows(args.out, rows, summary)
    return summary


def matched_rows(
    pairs: list[tuple[str, str]], images: dict[int, str], exclusions: Exclusions, prefix: str, summary: Summary
) -> Iterator[dict]:
    """Pre-training rows of the pairs whose image is there. images: {row: path}."""
    for row, (url, caption) in enumerate(progress_bar(pairs, 'rows')):
        if not url:
            summary.dropped['line without a URL'] += 1
        elif row not in images:
            summary.dropped['image not in the download folder'] += 1
        elif exclusions.contains(images[row], flickr_id=flickr_id(url)):
            summary.excluded.add(images[row])
        elif (clean := clean_caption(caption, summary)) is not None:
            yield {'image': add_prefix(prefix, images[row]), 'caption': clean}


def find_images(folder: str, naming: str, pairs: list[tuple[str, str]], summary: Summary) -> dict[int, str]:
    """{row: path of its image under `folder`} of the rows that have an image of their own."""
    files = unambiguous_files(folder, summary)
    tables = sorted(glob.glob(os.path.join(glob.escape(folder), '**', '*.parquet'), recursive=True))
    if naming == 'table' or naming == 'auto' and tables:
        keys = keys_by_url(tables)
        candidates = {'the table of the download': lambda row, url: [keys[url]] if url in keys else []}
    else:
        candidates = NAMINGS if naming == 'auto' else {naming: NAMINGS[naming]}
    matches = {name: match_rows(pairs, files, stems) for name, stems in candidates.items()}
    best = max(matches, key=lambda name: len(matches[name]))
    if not matches[best]:
        raise InputError(
            f'no image in {folder} is named after a row or a URL: give the folder of the images with --images, and '
            f'how they are named with --naming'
        )
    summary.title += f', images found by {best}'
    return matches[best]


def unambiguous_files(folder: str, summary: Summary) -> dict[str, str]:
    """{stem: path} of the images under `folder`, without stems that several files share."""
    files: dict[str, str] = {}
    shared = set()
    for path in progress_bar(image_files(folder), 'images'):
        summary.read['images in the download folder'] += 1
        if files.setdefault(stem_of(path), path) != path:
            shared.add(stem_of(path))
    summary.dropped['name that several images share'] = len(shared)
    return {stem: path for stem, path in files.items() if stem not in shared}


def match_rows(
    pairs: list[tuple[str, str]], files: dict[str, str], stems: Callable[[int, str], list[str]]
) -> dict[int, str]:
    """{row: path}, without files that match several URLs."""
    owner: dict[str, str] = {}
    found, contested = {}, set()
    for row, (url, _) in enumerate(pairs):
        stem = next((stem for stem in stems(row, url) if stem in files), None) if url else None
        if stem is not None:
            found[row] = stem
            if owner.setdefault(stem, url) != url:
                contested.add(stem)
    return {row: files[stem] for row, stem in found.items() if stem not in contested}


def keys_by_url(tables: list[str]) -> dict[str, str]:
    """{URL: stem of its file} of the tables of img2dataset."""
    keys = {}
    for path in tables:
        try:
            table = parquet.read_table(path, columns=['url', 'key'])
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split('\n')[0]
            raise InputError(f'{path} is not an img2dataset table with url and key ({reason}): use --naming') from None
        keys.update(zip(table['url'].to_pylist(), map(stem_of, table['key'].to_pylist()), strict=True))
    return keys


def image_files(folder: str) -> Iterator[str]:
    """Sorted paths under `folder` of files that have the extension of an image or, as with some downloaders, none."""
    if not os.path.isdir(folder):
        raise MissingFileError(f'the folder {folder} does not exist: give the folder of the images')
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()
            if (extension in EXTENSIONS or not extension) and not name.startswith('.'):
                yield os.path.relpath(os.path.join(here, name), folder).replace(os.sep, '/')
