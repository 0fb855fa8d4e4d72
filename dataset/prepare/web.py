"""CC3M and SBU: lists of captions and addresses, of which a downloader fetched the images that were still there.

Which file belongs to which row depends on the downloader, so the naming is a choice: `table` is what img2dataset
leaves (a Parquet table of addresses and keys beside each of its folders), `crc32` is ROW_CRC or CRC, the CRC-32 of the
address, `basename` the last part of the address, `row` the number of the row, counted from 0.
"""

import argparse
import glob
import os
import zlib
from collections.abc import Callable, Iterator

import pyarrow.parquet as parquet

from dataset.prepare.common import Summary, add_common, clean_caption, join, load_json, need, progress, write_rows
from dataset.prepare.exclude import Exclusions, flickr_id
from utils.errors import InputError, MissingFileError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff')


def stem_of(path: str) -> str:
    """The file's name without folder, extension and leading zeros."""
    return os.path.splitext(os.path.basename(path))[0].lstrip('0') or '0'


def _crc_stems(row: int, url: str) -> list[str]:
    crc = zlib.crc32(url.encode())
    return [stem_of(f'{row}_{crc}'), stem_of(str(crc))]


# What the file of a row may be called, as `stem_of` has it.
NAMINGS: dict[str, Callable[[int, str], list[str]]] = {
    'crc32': _crc_stems,
    'basename': lambda row, url: [stem_of(url.split('?')[0])],
    'row': lambda row, url: [stem_of(str(row))],
}


def add_web(commands) -> None:
    for name, title, files, run in (
        (
            'cc3m',
            'Conceptual Captions 3M: Train_GCC-training.tsv or the validation TSV, and the downloaded images',
            'TSV',
            run_cc3m,
        ),
        (
            'sbu',
            'SBU captions: sbu-captions-all.json, or both TXT files of the release, and the downloaded images',
            'FILE',
            run_sbu,
        ),
    ):
        parser = commands.add_parser(name, help=title, description=title + '. ' + __doc__.split('\n\n', 1)[1])
        parser.add_argument('files', nargs='+' if name == 'sbu' else 1, metavar=files)
        parser.add_argument('--images', required=True, metavar='FOLDER', help='where the downloader put the images')
        parser.add_argument(
            '--naming',
            choices=['auto', 'table', *NAMINGS],
            default='auto',
            help='how it named them (default: the table if there is one, else what fits most rows)',
        )
        add_common(parser, 'F.json to write')
        parser.set_defaults(run=run)


def run_cc3m(args: argparse.Namespace) -> Summary:
    return match_and_write(Summary('Conceptual Captions'), read_tsv(args.files[0]), args)


def run_sbu(args: argparse.Namespace) -> Summary:
    return match_and_write(Summary('SBU captions'), read_sbu(args.files), args)


def read_tsv(path: str) -> list[tuple[str, str]]:
    """(address, caption) of caption<TAB>address lines, in either order; a heading is passed over."""
    pairs = []
    with open(path, encoding='utf-8', errors='replace', newline='\n') as lines:
        for number, line in enumerate(lines):
            caption, _, url = line.rstrip('\r\n').partition('\t')
            if caption.startswith(('http://', 'https://')):
                caption, url = url, caption
            if url.startswith(('http://', 'https://')):
                pairs.append((url, caption))
            elif number and line.strip():
                pairs.append(('', caption))  # counted as dropped later: row numbers must not shift
    if not any(url for url, _ in pairs):
        raise InputError(f'{path} has no caption<TAB>address lines: name Train_GCC-training.tsv or its like')
    return pairs


def read_sbu(paths: list[str]) -> list[tuple[str, str]]:
    """(address, caption) of sbu-captions-all.json, or of the two TXT files in any order."""
    if len(paths) == 1 and paths[0].endswith('.json'):
        data = load_json(paths[0])
        urls, captions = (need(data, key, paths[0], 'sbu-captions-all.json') for key in ('image_urls', 'captions'))
    elif len(paths) == 2:
        texts = []
        for path in paths:
            with open(path, encoding='utf-8', errors='replace', newline='\n') as file:
                texts.append(file.read().rstrip('\n').split('\n'))
        urls, captions = sorted(texts, key=lambda lines: not lines[0].startswith('http'))
    else:
        raise InputError('give sbu-captions-all.json, or SBU_captioned_photo_dataset_urls.txt and ..._captions.txt')
    if len(urls) != len(captions) or not urls[0].startswith('http'):
        raise InputError(
            f'{" and ".join(paths)} must hold as many addresses as captions, not {len(urls)} and '
            f'{len(captions)}: download again'
        )
    return list(zip((url.strip() for url in urls), captions, strict=True))


def match_and_write(summary: Summary, pairs: list[tuple[str, str]], args: argparse.Namespace) -> Summary:
    summary.read['captions and addresses'] = len(pairs)
    images = find_images(args.images, args.naming, pairs, summary)
    rows = matched_rows(pairs, images, Exclusions(args.exclude), args.image_prefix, summary)
    write_rows(args.out, rows, summary)
    return summary


def matched_rows(
    pairs: list[tuple[str, str]], images: dict[int, str], exclusions: Exclusions, prefix: str, summary: Summary
) -> Iterator[dict]:
    for row, (url, caption) in enumerate(progress(pairs, 'rows')):
        if not url:
            summary.dropped['line without an address'] += 1
        elif row not in images:
            summary.dropped['image not in the download folder'] += 1
        elif exclusions.names(images[row], flickr_id=flickr_id(url)):
            summary.excluded.add(images[row])
        elif (clean := clean_caption(caption, summary)) is not None:
            yield {'image': join(prefix, images[row]), 'caption': clean}


def find_images(folder: str, naming: str, pairs: list[tuple[str, str]], summary: Summary) -> dict[int, str]:
    """{row: path of its image under `folder`} of the rows whose image is there, and is no other row's too."""
    files = unambiguous_files(folder, summary)
    tables = sorted(glob.glob(os.path.join(glob.escape(folder), '**', '*.parquet'), recursive=True))
    if naming == 'table' or naming == 'auto' and tables:
        keys = keys_by_address(tables)
        candidates = {'the table of the download': lambda row, url: [keys[url]] if url in keys else []}
    else:
        candidates = NAMINGS if naming == 'auto' else {naming: NAMINGS[naming]}
    matches = {name: match(pairs, files, stems) for name, stems in candidates.items()}
    best = max(matches, key=lambda name: len(matches[name]))
    if not matches[best]:
        raise InputError(
            f'no image in {folder} is named after a row or an address: name the folder of the images '
            f'with --images, and how they are named with --naming'
        )
    summary.title += f', images found by {best}'
    return matches[best]


def unambiguous_files(folder: str, summary: Summary) -> dict[str, str]:
    """{stem: path} of the images below `folder`, without stems that several files share."""
    files: dict[str, str] = {}
    shared = set()
    for path in progress(image_files(folder), 'images'):
        summary.read['images in the download folder'] += 1
        if files.setdefault(stem_of(path), path) != path:
            shared.add(stem_of(path))
    summary.dropped['name that several images share'] = len(shared)
    return {stem: path for stem, path in files.items() if stem not in shared}


def match(pairs: list[tuple[str, str]], files: dict[str, str], stems: Callable) -> dict[int, str]:
    """{row: path}; a file that the addresses of several rows lay claim to is given to none of them."""
    owner: dict[str, str] = {}
    found, contested = {}, set()
    for row, (url, _) in enumerate(pairs):
        stem = next((stem for stem in stems(row, url) if stem in files), None) if url else None
        if stem is not None:
            found[row] = stem
            if owner.setdefault(stem, url) != url:
                contested.add(stem)
    return {row: files[stem] for row, stem in found.items() if stem not in contested}


def keys_by_address(tables: list[str]) -> dict[str, str]:
    keys = {}
    for path in tables:
        try:
            table = parquet.read_table(path, columns=['url', 'key'])
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split('\n')[0]
            raise InputError(f'{path} is no table of img2dataset with url and key ({reason}): use --naming') from None
        keys.update(zip(table['url'].to_pylist(), map(stem_of, table['key'].to_pylist()), strict=True))
    return keys


def image_files(folder: str) -> Iterator[str]:
    """Paths below `folder`, in order, of files that are images by their extension or, as some downloads, have none."""
    if not os.path.isdir(folder):
        raise MissingFileError(f'the folder {folder} does not exist: name the one that holds the images')
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()
            if (extension in EXTENSIONS or not extension) and not name.startswith('.'):
                yield os.path.relpath(os.path.join(here, name), folder).replace(os.sep, '/')
