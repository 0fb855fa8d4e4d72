"""CC3M and SBU: lists of captions and URLs, and the images that a downloader could still get."""

import argparse
import csv
from collections.abc import Iterator
from typing import Any

from dataset.prepare.arguments import add_command, add_output_arguments, not_negative
from dataset.prepare.columns import CAPTION_COLUMNS
from dataset.prepare.common import Summary, add_prefix, clean_caption, load_json, progress_bar, write_rows
from dataset.prepare.entries import Entry
from dataset.prepare.exclude import Exclusions, flickr_id
from dataset.prepare.releases.downloads import NAMINGS, Pair, find_images
from dataset.prepare.texts import read_lines
from utils.arguments import Parser
from utils.errors import InputError

WEB = ('http://', 'https://')


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
    summary = Summary('Conceptual Captions')
    return match_and_write(read_tsv(args.files[0], args.encoding, summary), args, summary)


def run_sbu(args: argparse.Namespace) -> Summary:
    """SBU captions: sbu-captions-all.json, or both TXT files of the release, and the downloaded images

    Each caption whose image was downloaded becomes a row of the annotation file.
    """
    summary = Summary('SBU captions')
    return match_and_write(read_sbu(args.files, args.encoding, summary), args, summary)


def read_tsv(path: str, encoding: str | None, summary: Summary) -> list[Pair]:
    """(URL, caption) of caption<TAB>URL lines, in either order; '' for what is not a URL, because rows must not shift.

    A first line of the names of columns is skipped.
    """
    pairs = []
    for number, line in enumerate(read_lines(path, encoding, summary), 1):
        fields = line.rstrip('\r\n').split('\t')
        if not line.strip():
            continue
        if number == 1 and len(fields) == 2 and is_heading(fields):
            summary.note('line of column names, skipped', line.strip())
            continue
        if len(fields) > 2:
            raise InputError(
                f'{path}, line {number} has {len(fields)} columns, where there must be a caption and a URL: give a '
                'table of these two'
            )
        if any(field.startswith('"') and is_url(field[1:]) for field in fields):
            fields = next(csv.reader([line], delimiter='\t'))
        url, caption = fields[::-1] if len(fields) == 2 else ('', fields[0])
        if is_url(caption) and not is_url(url):
            url, caption = caption, url
        pairs.append((url.strip() if is_url(url) else '', caption))
    if not any(url for url, _ in pairs):
        raise InputError(f'{path} has no caption<TAB>URL lines: give Train_GCC-training.tsv or the validation TSV')
    return pairs


def is_heading(fields: list[str]) -> bool:
    """Whether two fields are the names of columns."""
    names = {field.strip(' "\ufeff').lower() for field in fields}
    return (
        len(names) == 2
        and len(names & {'url', 'urls', 'image_url', 'link'}) == 1
        and bool(names & set(CAPTION_COLUMNS))
    )


def is_url(text: Any) -> bool:
    return isinstance(text, str) and text.strip().lower().startswith(WEB)


def read_sbu(paths: list[str], encoding: str | None, summary: Summary) -> list[Pair]:
    """(URL, caption) of sbu-captions-all.json, or of the two TXT files in any order."""
    if len(paths) == 1 and paths[0].lower().endswith('.json'):
        data = Entry(load_json(paths[0]), paths[0])
        urls, captions = data.list('image_urls'), data.list('captions')
    elif len(paths) == 2:
        texts = [[line.rstrip('\r\n') for line in read_lines(path, encoding, summary)] for path in paths]
        urls, captions = sorted(texts, key=lambda lines: not is_url(''.join(lines[:1])))
    else:
        raise InputError('give sbu-captions-all.json, or SBU_captioned_photo_dataset_urls.txt and ..._captions.txt')
    urls = [url.strip() if is_url(url) else '' for url in urls]
    if not any(urls):
        raise InputError(f'{" and ".join(paths)}: there is no URL: give the files of the release')
    if len(urls) != len(captions):
        raise InputError(
            f'{" and ".join(paths)} must contain as many URLs as captions, not {len(urls)} and {len(captions)}: '
            f'download again'
        )
    return list(zip(urls, captions, strict=True))


def match_and_write(pairs: list[Pair], args: argparse.Namespace, summary: Summary) -> Summary:
    summary.read['captions and URLs'] = len(pairs)
    images = find_images(pairs, args, summary)
    exclusions = Exclusions.of(args, summary)
    rows = matched_rows(pairs, images, exclusions, args.image_prefix, summary)
    write_rows(args.out, exclusions.reported(rows, summary), summary)
    return summary


def matched_rows(
    pairs: list[Pair], images: dict[int, str], exclusions: Exclusions, prefix: str, summary: Summary
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
