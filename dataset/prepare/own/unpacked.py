"""Files that are unpacked from a shard: under safe names, created once and never overwritten."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from dataset.files import open_regular, refuse_pointer
from dataset.prepare.common import CONTROL
from utils.errors import InputError
from utils.files import atomic_write

LONGEST_NAME = 150  # bytes
FORMATS = {'JPEG': '.jpg', 'MPO': '.jpg', 'TIFF': '.tif'}  # Pillow's names; other formats are named like extensions


class ShardFiles:
    """Creates the files of one shard in a folder of their own.

    out: folder of all shards; folder: that of this one in it; count: of files 'created' and 'kept'.
    """

    def __init__(self, out: str, folder: str, shard: str, count: Counter):
        self.out, self.folder, self.shard, self.count = out, folder, shard, count
        self.used: set[str] = set()

    def write(self, stem: str, extension: str, data: bytes, fallback: str = '') -> str:
        """Write a file; returns its path relative to `out`. fallback: the stem if a file has that name already.

        A file that is there must have the same contents: an earlier run wrote it, which may have been interrupted.
        """
        if fallback and f'{stem}{extension}'.casefold() in self.used:
            stem = fallback
        name = f'{self.folder}/{safe_name(stem, extension, self.used)}'
        path = os.path.join(self.out, name)
        try:
            with open_regular(path) as file:
                is_same = file.read(len(data) + 1) == data
        except FileNotFoundError:
            with atomic_write(path, 'wb') as file:
                file.write(data)
            self.count['created'] += 1
            return name
        if not is_same:
            raise InputError(f'{path} exists and is not the image in {self.shard}: remove it, or give an empty folder')
        self.count['kept'] += 1
        return name


def safe_name(stem: str, extension: str, used: set[str]) -> str:
    """A name that no file system or path treats specially, different from those in `used`, to which it is added."""
    stem = re.sub(r'[/\\:*?"<>|]', '_', CONTROL.sub('_', stem)).strip('. ')
    stem = stem.encode()[:LONGEST_NAME].decode(errors='ignore') or 'image'
    name, count = f'{stem}{extension}', 1
    while name.casefold() in used:
        count += 1
        name = f'{stem}_{count}{extension}'
    used.add(name.casefold())
    return name


def image_extension(data: bytes) -> str | None:
    """The extension of an image's format, which its first bytes show; None if training does not read it."""
    from dataset.images import BadImage, EncodedImage  # here, because OpenCV is slow to import

    try:
        kind = EncodedImage('', data).header.format
    except BadImage:
        return None
    return FORMATS.get(kind, f'.{kind.lower()}')


@contextmanager
def open_shard(path: str) -> Iterator[BinaryIO]:
    """A shard opened to read its bytes. InputError if git-lfs has not fetched it, OSError as `open_regular`."""
    with open_regular(path) as file:
        refuse_pointer(file.read(64), path)
        file.seek(0)
        yield file
