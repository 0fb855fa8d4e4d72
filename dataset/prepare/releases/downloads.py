"""Which of the images that a downloader wrote belongs to which row of its list of captions and URLs."""

import argparse
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow.parquet as parquet

from dataset.annotations.json_reader import short
from dataset.prepare.common import Summary, progress_bar
from dataset.prepare.images import files_under, image_files, is_utf8, without_extension
from dataset.prepare.releases.numbering import match_numbers
from utils.errors import InputError

Pair = tuple[str, Any]  # URL, '' if there is none, and caption
SAMPLED_SIDECARS = 1000  # images whose .json or .txt is compared with the row


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


def find_images(pairs: list[Pair], args: argparse.Namespace, summary: Summary) -> dict[int, str]:
    """{row: path of its image under --images} of the rows that have an image of their own."""
    files = []
    for path in progress_bar(files_under(args.images, summary), 'files'):
        if is_utf8(path):
            files.append(path)
        else:
            summary.drop('file whose name is not UTF-8', repr(path))
    paths = list(image_files(files, summary))
    summary.read['images in the download folder'] = len(paths)
    tables = [path for path in files if path.endswith('.parquet')]
    naming = 'table' if args.naming == 'auto' and tables else args.naming
    if naming not in ('auto', 'row') and (args.per_folder is not None or args.first_row is not None):
        raise InputError('--per-folder and --first-row are for --naming row: leave them out, or give --naming row')
    if naming == 'table':
        found, how = match_tables(pairs, tables, paths, args.images), naming
        counted = 0
    else:
        found, how, counted = match_names(pairs, paths, naming, args, summary)
    if not found:
        raise InputError(
            f'no image in {args.images} is named after a row or a URL: give the folder of the images with --images, '
            f'and how they are named with --naming'
        )
    refuse_contradiction(found, pairs, set(files), args.images)
    unused = set(paths).difference(found.values())
    summary.drop('image that no row names', min(unused, default=None), len(unused) - counted)
    row = min(found)
    summary.title += f', images found by {how}; check a pair: {found[row]} is row {row}, {short(pairs[row][1])}'
    return found


def match_names(
    pairs: list[Pair], paths: list[str], naming: str, args: argparse.Namespace, summary: Summary
) -> tuple[dict[int, str], str, int]:
    """({row: path} by the naming that fits most rows, its name, how many unused images are counted already)."""
    named, shared = unambiguous_files(paths)
    stems = {name: stems for name, stems in NAMINGS.items() if naming in ('auto', name)}
    matches = {name: match_rows(pairs, named, possible) for name, possible in stems.items()}
    weights = {name: len(rows) for name, rows in matches.items()}
    numbers = None
    if naming in ('auto', 'row'):
        numbers = match_numbers(paths, len(pairs), args.per_folder, args.first_row)
        matches['row'], weights['row'] = numbers.rows, numbers.files if numbers.fault else len(numbers.rows)
    best = max(weights, key=weights.get)
    if best != 'row':
        for same in shared.values():
            summary.drop('image whose name another image has, too', ' and '.join(same[:2]), len(same))
        return matches[best], best, sum(map(len, shared.values()))
    if numbers.fault:
        raise InputError(f'the images in {args.images}: {numbers.fault}')
    summary.drop('image whose row another image has, too', count=numbers.conflicts)
    summary.drop('image whose number is beyond the last row', count=numbers.beyond)
    how = f'row, {numbers.size} rows per folder' if numbers.size else 'row'
    return numbers.rows, how, numbers.conflicts + numbers.beyond


def unambiguous_files(paths: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """({stem: path} of the images with a name of their own, {stem: paths} of the others)."""
    named = defaultdict(list)
    for path in paths:
        named[stem_of(path)].append(path)
    alone = {stem: same[0] for stem, same in named.items() if len(same) == 1}
    return alone, {stem: same for stem, same in named.items() if len(same) > 1}


def match_rows(pairs: list[Pair], files: dict[str, str], stems: Callable[[int, str], list[str]]) -> dict[int, str]:
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


def match_tables(pairs: list[Pair], tables: list[str], paths: list[str], folder: str) -> dict[int, str]:
    """{row: path} by the tables of img2dataset, which name the URL and the key of each image of a shard.

    A key names a file of its own shard: `00000.parquet` is beside the folder `00000`. If there is no such folder, it
    names the only file under the table's folder that has its name.
    """
    by_folder = defaultdict(list)
    for path in paths:
        by_folder[os.path.dirname(path)].append(path)
    path_of: dict[str, str] = {}
    for table in tables:
        shard, beside = os.path.splitext(table)[0], os.path.dirname(table)
        if shard in by_folder:
            files, _ = unambiguous_files(by_folder[shard])
        else:
            files, _ = unambiguous_files([path for path in paths if not beside or path.startswith(f'{beside}/')])
        for url, key in read_keys(os.path.join(folder, table)):
            if key in files:
                path_of.setdefault(url, files[key])
    return {row: path_of[url] for row, (url, _) in enumerate(pairs) if url in path_of}


def read_keys(path: str) -> Iterable[tuple[str, str]]:
    """(URL, stem of its file) of the images that a table of img2dataset says were downloaded."""
    try:
        with open(path, 'rb') as file:
            columns = [name for name in ('url', 'key', 'status') if name in parquet.read_schema(file).names]
            table = parquet.read_table(file, columns=columns)
        urls, keys = table['url'].to_pylist(), table['key'].to_pylist()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split('\n')[0]
        raise InputError(f'{path} is not an img2dataset table with url and key ({reason}): use --naming') from None
    states = table['status'].to_pylist() if 'status' in columns else ['success'] * len(urls)
    for url, key, status in zip(urls, keys, states, strict=True):
        if url is not None and key is not None and status == 'success':
            yield url, stem_of(str(key))


def refuse_contradiction(found: dict[int, str], pairs: list[Pair], files: set[str], folder: str) -> None:
    """InputError if the .json or .txt that a downloader wrote beside a sample of the images is about another row.

    The .json has the URL of the image. The .txt is compared only if it is the caption of a row.
    """
    rows = sorted(found)
    rows = rows[:: max(1, len(rows) // SAMPLED_SIDECARS)]
    if not any(f'{without_extension(found[row])}{ending}' in files for row in rows for ending in ('.json', '.txt')):
        return
    captions = {_words(caption) for _, caption in pairs}
    for row in rows:
        stem = without_extension(found[row])
        url, text = (_url_beside(os.path.join(folder, f'{stem}.json')) if f'{stem}.json' in files else None), None
        if url is None and f'{stem}.txt' in files:
            with open(os.path.join(folder, f'{stem}.txt'), encoding='utf-8', errors='replace') as file:
                text = _words(file.read(1 << 16))
        wrong_url = url is not None and url.strip() != pairs[row][0]
        if wrong_url or text is not None and text != _words(pairs[row][1]) and text in captions:
            beside, has = (f'{stem}.json', url) if wrong_url else (f'{stem}.txt', text)
            raise InputError(
                f'{os.path.join(folder, beside)} is of {short(has)}, and row {row}, which the name of the image means, '
                f'of {short(pairs[row][0 if wrong_url else 1])}: give the list with which these images were '
                'downloaded, or say with --per-folder and --first-row how they are numbered'
            )


def _url_beside(path: str) -> str | None:
    """The URL in the .json of an image; None if there is none."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    url = content.get('url') if isinstance(content, dict) else None
    return url if isinstance(url, str) else None


def _words(text: object) -> str:
    return ' '.join(text.split()) if isinstance(text, str) else ''
