"""Images to leave out, identified by name, COCO id or Flickr id in every dataset.

Half of Visual Genome is COCO, and COCO, SBU and Flickr30k all come from Flickr: a test image of one is often a training
image of another, under another name.
"""

import csv
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from dataset.annotations.json_reader import LINES_ENDINGS, layout, open_annotations
from dataset.prepare.common import Summary, load_json, stream_json
from dataset.prepare.entries import Entry
from dataset.prepare.images import image_extensions, without_extension
from dataset.prepare.tables import DELIMITERS, IMAGE_COLUMNS
from dataset.prepare.texts import read_lines
from utils.errors import InputError

COCO_NAME = re.compile(r'(?:COCO_[a-z]+\d{4}_)?(\d{12})')
FLICKR_NAME = re.compile(r'([1-9]\d{4,})(?:_[0-9a-f]{6,})?(?:_[a-z])?')  # ID.jpg, or the end of a URL: ID_SECRET_z.jpg
FLICKR_URL = re.compile(r'flickr\.com/(?:\w+/)*(\d+)_[0-9a-f]+')
VISUAL_GENOME = 'VG_100K'  # in folders of this name numbers are those of Visual Genome
LONGEST_COCO_ID = 6  # digits
FROM_NAME = object()


class Exclusions:
    """The images that the files of `--exclude` (or `--val`, `--test`) name.

    allow_unmatched: accept that no entry names an image of the dataset. encoding: of text files, see `read_lines`.
    """

    def __init__(
        self,
        files: list[str],
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
            for entry in map(str, _read_entries(file, option, encoding)):
                named.setdefault(frozenset(_keys_of_entry(entry)), entry)
            if not named:
                raise InputError(f'{option} {file} names no image: give a list of images or an annotation file')
            self.entries[file] = named
        self.keys = {key for named in self.entries.values() for keys in named for key in keys}

    def contains(self, path: str, coco_id: int | str | None = None, flickr_id: Any = FROM_NAME) -> bool:
        """Whether an image of the dataset is named. The ids are those that its dataset knows; by default the Flickr id
        is taken from its name."""
        if not self.keys:
            return False
        self.example = self.example or path
        folder, stem = _folder_and_stem(path)
        keys = {stem, f'{folder}/{stem}', f'coco:{coco_id}'}
        if flickr_id is not FROM_NAME:
            keys.add(f'flickr:{flickr_id}')
        elif match := FLICKR_NAME.fullmatch(stem):
            keys.add(f'flickr:{match[1]}')
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


def flickr_id(url: str | None) -> str | None:
    """The id of a photo in the URL of an image on flickr.com; None for other URLs."""
    match = FLICKR_URL.search(url or '')
    return match[1] if match else None


def _folder_and_stem(path: str) -> tuple[str, str]:
    folder, name = os.path.split(path.replace('\\', '/'))
    return os.path.basename(folder), without_extension(name)


def _keys_of_entry(entry: str) -> set[str]:
    entry = entry.strip()
    folder, stem = _folder_and_stem(entry)
    if match := COCO_NAME.fullmatch(stem):
        return {f'coco:{int(match[1])}'}
    if entry.isdecimal() and len(entry) <= LONGEST_COCO_ID:  # not a name: Visual Genome has files of such numbers
        return {f'coco:{int(entry)}', f'flickr:{entry}'}
    keys = {f'{folder}/{stem}' if folder else stem}
    if (match := FLICKR_NAME.fullmatch(stem)) and not folder.startswith(VISUAL_GENOME):
        keys.add(f'flickr:{match[1]}')
    return keys


def _read_entries(file: str, option: str, encoding: str | None) -> Iterator[Any]:
    """Each name or id of an image in a text file, a release's JSON, or an annotation file."""
    if not file.lower().endswith(('.json', *LINES_ENDINGS)):
        yield from _text_entries(file, encoding)
        return
    with open_annotations(file) as handle:
        is_release = layout(handle, file) == 'object'
    if is_release:
        for image in Entry(load_json(file), file).entries('images', 'image'):
            if image.get('split') in (None, 'val', 'test'):
                yield image.identity('cocoid', 'file_name', 'filename', 'id')
        return
    for number, row in enumerate(stream_json(file)):
        if isinstance(row, str | int):
            yield row
        else:
            row = Entry(row, file, f'row {number}')
            yield from row.list('images') if 'images' in row else [row.text('image')]


def _text_entries(file: str, encoding: str | None) -> Iterator[str]:
    """The image of each line: the line itself, its part up to the extension of an image, or a column of a table."""
    extensions = '|'.join(re.escape(extension) for extension in image_extensions())
    name = re.compile(rf'"?(.+?(?:{extensions}))"?(?:$|[#,;|\t ])', re.IGNORECASE)
    column = None
    for number, line in enumerate(read_lines(file, encoding)):
        line = line.strip()
        if number == 0 and (column := _image_column(line)):
            continue
        if column:
            fields = next(csv.reader([line], delimiter=column[0], skipinitialspace=True), [])
            line = fields[column[1]].strip() if column[1] < len(fields) else ''
        if line:
            match = name.match(line)
            yield match[1] if match else re.split('[#,;|\t]', line)[0]


def _image_column(heading: str) -> tuple[str, int] | None:
    """The delimiter and the number of the column of images, if a line is the heading of a table."""
    for delimiter in DELIMITERS:
        names = [name.strip(' "').lower() for name in heading.split(delimiter)]
        for known in IMAGE_COLUMNS:
            if known in names:
                return delimiter, names.index(known)
    return None
