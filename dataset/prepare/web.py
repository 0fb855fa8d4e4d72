"""CC3M and SBU: lists of captions and URLs, and the images that a downloader could still get."""

import argparse
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as parquet

from dataset.annotations.json_reader import short
from dataset.prepare.arguments import add_command, add_output_arguments, not_negative
from dataset.prepare.common import Summary, add_prefix, clean_caption, load_json, progress_bar, write_rows
from dataset.prepare.entries import Entry
from dataset.prepare.exclude import Exclusions, flickr_id
from dataset.prepare.images import files_under, image_files, is_utf8, without_extension
from dataset.prepare.numbering import match_numbers
from dataset.prepare.texts import read_lines
from utils.arguments import Parser
from utils.errors import InputError

WEB = ('http://', 'https://')


def stem_of(path: str) -> str:
    """The name of a file without folder, extension and leading zeros."""
    return without_extension(os.path.basename(path)).lstrip('0') or '0'


def _crc_stems(row: int, url: str) -> list[str]:
    crc = zlib.crc32(url.encode())
    return [stem_of(f'{row}_{crc}'), stem_of(str(crc))]


# {naming: function from row number and URL to the possible stems of the file}
NAMINGS: dict[str, Callable[[int, str], list[str]]] = {
    'crc32': _crc_stems,
    'basename': lambda row, url: [stem_of(url.split('?')[0])],
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
        choices=['auto', 'table', 'row', *NAMINGS],
        default='auto',
        help='how it named them. table: as in the Parquet tables of URLs and keys that img2dataset writes; crc32: '
        'ROW_CRC or CRC, the CRC-32 of the URL; basename: the last part of the URL; row: the number of the row '
        '(default: the table if there is one, otherwise the naming that fits most rows)',
    )
    parser.add_argument(
        '--first-row',
        type=not_negative,
        metavar='N',
        help='the number that names the image of the first row (default 0)',
    )
    parser.add_argument(
        '--per-folder',
        type=not_negative,
        metavar='N',
        help='file numbers start anew in each folder, and a folder has N rows: row = N x folder + file; 0 if they '
        'continue over the folders (default: what the names show)',
    )
    add_output_arguments(parser, 'F.json')


def run_cc3m(args: argparse.Namespace) -> Summary:
    """Conceptual Captions 3M: Train_GCC-training.tsv or the validation TSV, and the downloaded images

    Each row of the TSV whose image was downloaded becomes a row of the annotation file.
    """
    pairs = read_tsv(args.files[0], args.encoding)
    return match_and_write(Summary('Conceptual Captions'), pairs, args)


def run_sbu(args: argparse.Namespace) -> Summary:
    """SBU captions: sbu-captions-all.json, or both TXT files of the release, and the downloaded images

    Each caption whose image was downloaded becomes a row of the annotation file.
    """
    return match_and_write(Summary('SBU captions'), read_sbu(args.files, args.encoding), args)


def read_tsv(path: str, encoding: str | None = None) -> list[tuple[str, str]]:
    """(URL, caption) of caption<TAB>URL lines, in either order; a heading is skipped."""
    pairs = []
    for number, line in enumerate(read_lines(path, encoding)):
        caption, _, url = line.rstrip('\r\n').partition('\t')
        if caption.startswith(WEB):
            caption, url = url, caption
        if url.startswith(WEB):
            pairs.append((url, caption))
        elif number and line.strip():
            pairs.append(('', caption))  # dropped and counted later, because row numbers must not shift
    if not any(url for url, _ in pairs):
        raise InputError(f'{path} has no caption<TAB>URL lines: give Train_GCC-training.tsv or the validation TSV')
    return pairs


def read_sbu(paths: list[str], encoding: str | None = None) -> list[tuple[str, Any]]:
    """(URL, caption) of sbu-captions-all.json, or of the two TXT files in any order."""
    if len(paths) == 1 and paths[0].endswith('.json'):
        data = Entry(load_json(paths[0]), paths[0])
        urls, captions = data.list('image_urls'), data.list('captions')
    elif len(paths) == 2:
        texts = [[line.rstrip('\r\n') for line in read_lines(path, encoding)] for path in paths]
        urls, captions = sorted(texts, key=lambda lines: not ''.join(lines[:1]).startswith(WEB))
    else:
        raise InputError('give sbu-captions-all.json, or SBU_captioned_photo_dataset_urls.txt and ..._captions.txt')
    urls = [url.strip() if isinstance(url, str) and url.strip().startswith(WEB) else '' for url in urls]
    if not any(urls):
        raise InputError(f'{" and ".join(paths)}: there is no URL: give the files of the release')
    if len(urls) != len(captions):
        raise InputError(
            f'{" and ".join(paths)} must contain as many URLs as captions, not {len(urls)} and {len(captions)}: '
            f'download again'
        )
    return list(zip(urls, captions, strict=True))


def match_and_write(summary: Summary, pairs: list[tuple[str, Any]], args: argparse.Namespace) -> Summary:
    summary.read['captions and URLs'] = len(pairs)
    images = find_images(pairs, args, summary)
    exclusions = Exclusions(args.exclude, args.encoding, allow_unmatched=args.allow_unmatched)
    rows = matched_rows(pairs, images, exclusions, args.image_prefix, summary)
    write_rows(args.out, exclusions.reported(rows, summary), summary)
    return summary


def matched_rows(
    pairs: list[tuple[str, Any]], images: dict[int, str], exclusions: Exclusions, prefix: str, summary: Summary
) -> Iterator[dict]:
    """Pre-training rows of the pairs whose image is there. images: {row: path}."""
    for row, (url, caption) in enumerate(progress_bar(pairs, 'rows')):
        if not url:
            summary.drop('line without a URL', f'row {row}')
        elif row not in images:
            summary.drop('image not in the download folder', f'row {row}, {url}')
        elif exclusions.contains(images[row], flickr_id=flickr_id(url)):
            summary.excluded.add(images[row])
        elif (clean := clean_caption(caption, summary)) is not None:
            yield {'image': add_prefix(prefix, images[row]), 'caption': clean}


def find_images(pairs: list[tuple[str, Any]], args: argparse.Namespace, summary: Summary) -> dict[int, str]:
    """{row: path of its image under --images} of the rows that have an image of their own."""
    files = []
    for path in progress_bar(files_under(args.images, summary), 'files'):
        if is_utf8(path):
            files.append(path)
        else:
            summary.drop('file whose name is not UTF-8', repr(path))
    paths = list(image_files(files, summary))
    summary.read['images in the download folder'] = len(paths)
    tables = [os.path.join(args.images, path) for path in files if path.endswith('.parquet')]
    stems, numbers = candidates(args, tables), None
    named, shared = unambiguous_files(paths)
    matches = {name: match_rows(pairs, named, possible) for name, possible in stems.items()}
    weights = {name: len(rows) for name, rows in matches.items()}
    if args.naming == 'row' or 'basename' in stems and args.naming == 'auto':
        numbers = match_numbers(paths, len(pairs), args.per_folder, args.first_row)
        matches['row'], weights['row'] = numbers.rows, numbers.files if numbers.fault else len(numbers.rows)
    elif args.per_folder is not None or args.first_row is not None:
        raise InputError('--per-folder and --first-row are for --naming row: leave them out, or give --naming row')
    best = max(weights, key=weights.get)
    if best == 'row' and numbers.fault:
        raise InputError(f'the images in {args.images}: {numbers.fault}')
    found, how = matches[best], best
    if not found:
        raise InputError(
            f'no image in {args.images} is named after a row or a URL: give the folder of the images with --images, '
            f'and how they are named with --naming'
        )
    if best == 'row':
        how += f', {numbers.size} rows per folder' if numbers.size else ''
        shared = {}
        summary.drop('image whose row another image has, too', count=numbers.conflicts)
        summary.drop('image whose number is beyond the last row', count=numbers.beyond)
    for same in shared.values():
        summary.drop('image whose name another image has, too', ' and '.join(same[:2]), len(same))
    unused = set(paths).difference(found.values(), *shared.values())
    counted = numbers.conflicts + numbers.beyond if best == 'row' else 0
    summary.drop('image that no row names', min(unused, default=None), len(unused) - counted)
    row = min(found)
    summary.title += f', images found by {how}; check a pair: {found[row]} is row {row}, {short(pairs[row][1])}'
    return found


def candidates(args: argparse.Namespace, tables: list[str]) -> dict[str, Callable[[int, str], list[str]]]:
    """{naming: function from row number and URL to the possible stems} of the namings to try, without row numbers."""
    if args.naming == 'table' or args.naming == 'auto' and tables:
        keys = keys_by_url(tables)
        return {'table': lambda row, url: [keys[url]] if url in keys else []}
    return {name: stems for name, stems in NAMINGS.items() if args.naming in ('auto', name)}


def unambiguous_files(paths: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """({stem: path} of the images with a name of their own, {stem: paths} of the others)."""
    named = defaultdict(list)
    for path in paths:
        named[stem_of(path)].append(path)
    alone = {stem: same[0] for stem, same in named.items() if len(same) == 1}
    return alone, {stem: same for stem, same in named.items() if len(same) > 1}


def match_rows(
    pairs: list[tuple[str, Any]], files: dict[str, str], stems: Callable[[int, str], list[str]]
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
        pairs = zip(table['url'].to_pylist(), table['key'].to_pylist(), strict=True)
        keys.update((url, stem_of(str(key))) for url, key in pairs if url is not None and key is not None)
    return keys
