"""Images to leave out, identified by name, COCO id or Flickr id in every dataset.

Half of Visual Genome is COCO, and COCO, SBU and Flickr30k all come from Flickr: a test image of one is often a training
image of another, under another name.
"""

import argparse
import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from dataset.annotations.json_reader import LINES_ENDINGS, layout, open_annotations
from dataset.prepare.columns import DELIMITERS, IMAGE_COLUMNS, SPLIT_COLUMNS
from dataset.prepare.common import Summary, load_json, stream_json
from dataset.prepare.entries import Entry
from dataset.prepare.images import image_extensions, without_extension
from dataset.prepare.texts import read_lines
from utils.errors import InputError

COCO_NAME = re.compile(r'(?:COCO_[a-z]+\d{4}_)?(\d{12})')
FLICKR_NAME = re.compile(r'([1-9]\d{4,})(?:_[0-9a-f]{6,})?(?:_[a-z])?')  # ID.jpg, or the end of a URL: ID_SECRET_z.jpg
FLICKR_URL = re.compile(r'flickr\.com/(?:\w+/)*(\d+)_[0-9a-f]+')
ID_COLUMNS = ('image_id', 'img_id', 'cocoid', 'coco_id', 'flickr_id', 'photo_id')
VISUAL_GENOME = 'VG_100K'  # in folders of this name numbers are those of Visual Genome
LONGEST_COCO_ID = 6  # digits
SHORTEST_FLICKR_ID = 8  # digits, for images that may have any names
FROM_NAME = object()
# How the names of the splits begin that an option means; --exclude: all but those of training.
SPLITS = {'--val': ('val', 'dev'), '--test': ('test',)}
TRAINING = ('train', 'restval')


class Exclusions:
    """The images that the files of `--exclude` (or `--val`, `--test`) name.

    allow_unmatched: accept that no entry names an image of the dataset. encoding: of text files, see `read_lines`.
    """

    def __init__(
        self,
        files: list[str],
        summary: Summary,
        encoding: str | None = None,
        option: str = '--exclude',
        allow_unmatched: bool = False,
    ):
        self.option, self.allow_unmatched = option, allow_unmatched
        self.entries: dict[str, dict[frozenset[str], str]] = {}  # file: {keys of an entry: the entry}
        self.seen: set[str] = set()  # keys that an image of the dataset has
        self.example: str | None = None  # the path of an image of the dataset
        for file in files:
            named = {}
            for names in _read_entries(file, option, encoding, summary):
                keys = frozenset(key for name in names for key in _keys_of_entry(name))
                named.setdefault(keys, names[0])
            if not named:
                raise InputError(f'{option} {file} names no image: give a list of images or an annotation file')
            self.entries[file] = named
        self.keys = {key for named in self.entries.values() for keys in named for key in keys}

    @classmethod
    def of(cls, args: argparse.Namespace, summary: Summary) -> 'Exclusions':
        """Those of the arguments that `add_output_arguments` adds."""
        return cls(args.exclude, summary, args.encoding, allow_unmatched=args.allow_unmatched)

    def contains(self, path: str, coco_id: int | str | None = None, flickr_id: Any = FROM_NAME) -> bool:
        """Whether an image of the dataset is named. The ids are those that its dataset knows; by default the Flickr id
        is that in its name, if it is long enough to be none of another numbering."""
        if not self.keys:
            return False
        self.example = self.example or path
        folder, stem = _folder_and_stem(path)
        keys = {stem, f'{folder}/{stem}' if folder else f'*/{stem}', f'coco:{coco_id}'}
        if flickr_id is FROM_NAME:
            flickr_id = flickr_id_in_name(path)
            flickr_id = flickr_id if flickr_id and len(flickr_id) >= SHORTEST_FLICKR_ID else None
        keys.add(f'flickr:{flickr_id}')
        if match := COCO_NAME.fullmatch(stem):
            keys.add(f'coco:{int(match[1])}')
        found = self.keys & keys
        self.seen |= found
        return bool(found)

    def report(self, summary: Summary) -> None:
        """After all images: count the entries that match none. InputError if none of them matches."""
        matched = 0
        for file, named in self.entries.items():
            unmatched = [entry for keys, entry in named.items() if self.seen.isdisjoint(keys)]
            matched += len(named) - len(unmatched)
            summary.note(
                f'entry of {self.option} {file}, of {len(named):,}, that matches no image',
                unmatched[0].strip() if unmatched else None,
                len(unmatched),
            )
        if self.entries and not matched and not self.allow_unmatched:
            file, named = next(iter(self.entries.items()))
            raise InputError(
                f'{self.option} {" ".join(self.entries)}: no entry matches an image: an entry is '
                f'{next(iter(named.values())).strip()!r}, an image {self.example!r}; give a list for this dataset, or '
                'accept it with --allow-unmatched'
            )

    def reported(self, rows: Iterable, summary: Summary) -> Iterator:
        """The rows, and after the last one `report`, so that a file is not written if nothing was left out of it."""
        yield from rows
        self.report(summary)


def flickr_id(url: Any) -> str | None:
    """The id of a photo in the URL of an image on flickr.com; None for anything else."""
    match = FLICKR_URL.search(url) if isinstance(url, str) else None
    return match[1] if match else None


def flickr_id_in_name(path: str) -> str | None:
    """The id of a photo in the name of its file, ID.jpg or ID_SECRET_z.jpg."""
    match = FLICKR_NAME.fullmatch(_folder_and_stem(path)[1])
    return match[1] if match else None


def _folder_and_stem(path: str) -> tuple[str, str]:
    folder, name = os.path.split(unicodedata.normalize('NFC', path.strip()).replace('\\', '/'))
    folder = os.path.basename(folder)
    return '' if folder == '.' else folder, without_extension(name)


def _keys_of_entry(entry: str) -> set[str]:
    entry = entry.strip()
    folder, stem = _folder_and_stem(entry)
    if match := COCO_NAME.fullmatch(stem):
        return {f'coco:{int(match[1])}'}
    if entry.isdecimal() and len(entry) <= LONGEST_COCO_ID:  # not a name: Visual Genome has files of such numbers
        return {f'coco:{int(entry)}', f'flickr:{entry}'}
    keys = {f'{folder}/{stem}', f'*/{stem}'} if folder else {stem}
    if not folder.startswith(VISUAL_GENOME) and (number := flickr_id_in_name(entry)):
        keys.add(f'flickr:{number}')
    return keys


def _is_wanted(split: Any, option: str) -> bool:
    """Whether an option means the images of a split; those without a split in any case."""
    if not isinstance(split, str) or not split.strip():
        return True
    split = split.strip().lower()
    return split.startswith(SPLITS[option]) if option in SPLITS else not split.startswith(TRAINING)


def _read_entries(file: str, option: str, encoding: str | None, summary: Summary) -> Iterator[list[str]]:
    """The names and ids of each image in a text file, a release's JSON, or an annotation file."""
    if not file.lower().endswith(('.json', *LINES_ENDINGS)):
        yield from _text_entries(file, option, encoding, summary)
        return
    with open_annotations(file) as handle:
        is_release = layout(handle, file) == 'object'
    if is_release:
        for image in Entry(load_json(file), file).entries('images', 'image'):
            if _is_wanted(image.get('split'), option):
                name, url = image.identity('cocoid', 'file_name', 'filename', 'id'), image.get('flickr_url')
                yield [str(name), *([url] if flickr_id(url) else [])]
        return
    for number, row in enumerate(stream_json(file)):
        if isinstance(row, str | int):
            yield [str(row)]
            continue
        row = Entry(row, file, f'row {number}')
        if _is_wanted(row.get('split'), option):
            for path in row.list('images') if 'images' in row else [row.text('image')]:
                yield [str(path)]


class _Columns(NamedTuple):
    """The columns of a table of images. split: None if there is none."""

    delimiter: str
    image: int
    split: int | None


def _text_entries(file: str, option: str, encoding: str | None, summary: Summary) -> Iterator[list[str]]:
    """The image of each line: the line itself, its part up to the extension of an image, or a column of a table."""
    extensions = '|'.join(re.escape(extension) for extension in image_extensions())
    name = re.compile(rf'"?(.+?(?:{extensions}))"?(?:$|[#,;|\t ])', re.IGNORECASE)
    columns = None
    for number, line in enumerate(read_lines(file, encoding, summary), 1):
        line = line.strip()
        if number == 1 and (columns := _find_columns(line, f'{option} {file}')):
            continue
        if columns:
            fields = next(csv.reader([line], delimiter=columns.delimiter, skipinitialspace=True), [])
            fields += [''] * (1 + max(columns.image, columns.split or 0) - len(fields))
            if columns.split is not None and not _is_wanted(fields[columns.split], option):
                continue
            line = fields[columns.image].strip()
        if line:
            match = name.match(line)
            rest = line[match.end() :] if match else ''
            numbers = re.split(r'[,;|\s]+', line)
            if name.search(rest) or len(numbers) > 1 and all(map(str.isdecimal, numbers)):
                raise InputError(
                    f'{option} {file}, line {number} names several images: write each on a line of its own'
                )
            yield [match[1] if match else re.split('[#,;|\t]', line)[0]]


def _find_columns(heading: str, place: str) -> _Columns | None:
    """The columns of a table, if a line is its heading. InputError if it is one without a known column."""
    for delimiter in DELIMITERS:
        names = [name.strip(' "').lower() for name in heading.split(delimiter)]
        for known in (*IMAGE_COLUMNS, *ID_COLUMNS):
            if known in names:
                split = next((names.index(name) for name in SPLIT_COLUMNS if name in names), None)
                return _Columns(delimiter, names.index(known), split)
        if len(names) > 1 and any(names) and all(re.fullmatch('[a-z_ ]*', name) for name in names):
            raise InputError(
                f'{place}: the columns {", ".join(names)} do not say which names the image: call it image or image_id'
            )
    return None
