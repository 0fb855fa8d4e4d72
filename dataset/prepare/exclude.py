"""Images to keep out, known by name, by COCO id or by Flickr id, whichever data set they appear in.

Half of Visual Genome is COCO, and COCO, SBU and Flickr30k all come from Flickr: a test image of one is often a
training image of another, under another name.
"""

import os
import re
from collections.abc import Iterator

from dataset.prepare.common import load_json, stream_json
from utils.errors import InputError

COCO_NAME = re.compile(r'(?:COCO_[a-z]+\d{4}_)?(\d{12})')
FLICKR_URL = re.compile(r'flickr\.com/(?:\w+/)*(\d+)_[0-9a-f]+')
LONGEST_COCO_ID = 6  # digits; Flickr's are longer


class Exclusions:
    """What `--exclude` names. `names(path, ...)` says whether an image is among it."""

    def __init__(self, files: list[str]):
        self.keys: set[str] = set()
        for file in files:
            entries = {key for entry in _entries(file) for key in _keys_of_entry(str(entry))}
            if not entries:
                raise InputError(f'--exclude {file} names no image: give a list of images or an annotation file')
            self.keys |= entries

    def names(self, path: str, coco_id: int | str | None = None, flickr_id: int | str | None = None) -> bool:
        if not self.keys:
            return False
        folder, stem = _folder_and_stem(path)
        keys = {stem, f'{folder}/{stem}', f'coco:{coco_id}', f'flickr:{flickr_id}'}
        if match := COCO_NAME.fullmatch(stem):
            keys.add(f'coco:{int(match[1])}')
        return not self.keys.isdisjoint(keys)


def flickr_id(url: str | None) -> str | None:
    """The photo's id in a flickr.com image address."""
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


def _entries(file: str) -> Iterator[str | int]:
    if not file.endswith(('.json', '.jsonl')):
        with open(file, encoding='utf-8') as lines:
            yield from (line for line in lines if line.strip())
        return
    with open(file, 'rb') as handle:
        is_mapping = handle.read(64).lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'{')
    if is_mapping and file.endswith('.json'):
        data = load_json(file)
        for image in data.get('images', []):
            if image.get('split', 'test') in ('val', 'test'):
                yield image.get('cocoid') or image.get('file_name') or image.get('filename') or image['id']
        return
    for row in stream_json(file):
        if not isinstance(row, dict):
            yield row
        elif 'image' in row or 'images' in row:
            yield from row.get('images') or [row['image']]
