"""Images to leave out, identified by name, COCO id or Flickr id in every dataset.

Half of Visual Genome is COCO, and COCO, SBU and Flickr30k all come from Flickr: a test image of one is often a training
image of another, under another name.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from dataset.annotations.json_reader import open_annotations
from dataset.prepare.common import load_json, require_key, stream_json
from utils.errors import InputError

COCO_NAME = re.compile(r'(?:COCO_[a-z]+\d{4}_)?(\d{12})')
FLICKR_URL = re.compile(r'flickr\.com/(?:\w+/)*(\d+)_[0-9a-f]+')
LONGEST_COCO_ID = 6  # digits; Flickr ids are longer


class Exclusions:
    """The images that the files of `--exclude` name."""

    def __init__(self, files: list[str]):
        self.keys: set[str] = set()
        for file in files:
            keys = {key for entry in _read_entries(file) for key in _keys_of_entry(str(entry))}
            if not keys:
                raise InputError(f'--exclude {file} names no image: give a list of images or an annotation file')
            self.keys |= keys

    def contains(self, path: str, coco_id: int | str | None = None, flickr_id: int | str | None = None) -> bool:
        if not self.keys:
            return False
        folder, stem = _folder_and_stem(path)
        keys = {stem, f'{folder}/{stem}', f'coco:{coco_id}', f'flickr:{flickr_id}'}
        if match := COCO_NAME.fullmatch(stem):
            keys.add(f'coco:{int(match[1])}')
        return not self.keys.isdisjoint(keys)


def flickr_id(url: str | None) -> str | None:
    """The id of a photo in the URL of an image on flickr.com; None for other URLs."""
    match = FLICKR_URL.search(url or '')
    return match[1] if match else None


def _folder_and_stem(path: str) -> tuple[str, str]:
    folder, name = os.path.split(path)
    return os.path.basename(folder), os.path.splitext(name)[0]


def _keys_of_entry(entry: str) -> set[str]:
    entry = entry.strip()
    folder, stem = _folder_and_stem(entry)
    if match := COCO_NAME.fullmatch(stem):
        return {f'coco:{int(match[1])}'}
    if entry.isdecimal() and len(entry) <= LONGEST_COCO_ID:
        return {f'coco:{int(entry)}'}
    keys = {f'{folder}/{stem}' if folder else stem}
    if stem.isdecimal() and not stem.startswith('0') and (not folder or 'flickr' in entry.lower()):
        keys.add(f'flickr:{stem}')
    return keys


def _read_entries(file: str) -> Iterator[Any]:
    """Each name or id of an image in a text file, a release's JSON, or an annotation file."""
    if not file.endswith(('.json', '.jsonl')):
        try:
            with open(file, encoding='utf-8') as lines:
                yield from (line for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise InputError(f'--exclude {file} is not UTF-8 text ({error.reason}): convert it') from None
        return
    with open_annotations(file) as handle:
        is_mapping = handle.read(64).lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'{')
    if is_mapping and file.endswith('.json'):
        for image in load_json(file).get('images', []):
            if not isinstance(image, dict):
                raise InputError(
                    f"--exclude {file}: an entry of 'images' is not an object: give the file of the release"
                )
            if image.get('split', 'test') in ('val', 'test'):
                name = image.get('cocoid') or image.get('file_name') or image.get('filename')
                yield name or require_key(image, 'id', file, "an entry of 'images'")
        return
    for row in stream_json(file):
        if not isinstance(row, dict):
            yield row
        elif 'image' in row or 'images' in row:
            yield from row.get('images') or [require_key(row, 'image', file, 'a row')]
