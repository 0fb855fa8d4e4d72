"""Shards of webdataset: tars in which the members with the same name up to the first dot are a sample.

Names of members are never used as paths, and only regular members are read.
"""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dataset.prepare.columns import CAPTION_COLUMNS, SPLIT_COLUMNS, captions_of, find_name
from dataset.prepare.common import Summary, progress_bar
from dataset.prepare.images import has_image_extension
from dataset.prepare.own.splits import Splits, split_of_path
from dataset.prepare.own.unpacked import ShardFiles, image_extension, open_shard
from dataset.prepare.texts import captions_in, decode_text
from utils.errors import InputError

TEXTS = ('txt', 'caption', 'captions', 'text', 'json')  # extensions of captions; the first that has some is used
LARGEST = 1 << 30  # bytes of a member, as of an image file in training
SNIFFED = 1 << 20  # bytes in which the header of an image is looked for


@dataclass
class Sample:
    """Members with the same name. images: {extension: number of the member}; texts: {extension: captions}.

    split: which a folder or a field of the `.json` names.
    """

    images: dict[str, int] = field(default_factory=dict)
    texts: dict[str, list] = field(default_factory=dict)
    split: str | None = None
    has_twice: bool = False

    def add(self, group: dict, extension: str, value: Any) -> None:
        self.has_twice |= extension in group
        group[extension] = value

    def image(self) -> int:
        """The number of the member that is the image. Unusable if that is not certain."""
        plain = [number for extension, number in self.images.items() if '.' not in extension]
        candidates = plain or list(self.images.values())
        if self.has_twice:
            raise Unusable('sample that has a member twice')
        if not candidates:
            raise Unusable('sample without an image')
        if len(candidates) > 1:
            raise Unusable('sample with several images (a name ends at the first dot)')
        return candidates[0]

    def captions(self) -> list:
        captions = next(filter(None, self.texts.values()), None)
        if captions is None:
            raise Unusable('sample without a caption')
        return captions


class Unusable(Exception):
    """Why a sample is dropped."""


def tar_samples(
    shard: str,
    columns: list[str] | None,
    encoding: str | None,
    files: ShardFiles,
    splits: Splits,
    summary: Summary,
) -> Iterator[tuple[str, list]]:
    """(path of the image, captions) of each sample of a shard.

    The shard is read twice: first its texts, which shows whether it is complete, then its images. columns: the
    extension of the image; and the extension of the captions, or their field in a `.json`.
    """
    samples, extensions = read_samples(shard, columns, encoding, summary)
    summary.read['samples'] += len(samples)
    wanted: dict[int, list] = {}  # {number of the member that is an image: captions}
    for key, sample in samples.items():
        if not splits.takes(sample.split, f'{shard}: {key!r}'):
            continue
        try:
            wanted[sample.image()] = sample.captions()
            if more := len(sample.images) - 1:
                summary.note('further image of a sample, such as a mask, not used', f'{shard}: {key!r}', more)
        except Unusable as error:
            summary.drop(str(error), f'{shard}: {key!r}')
    splits.refuse_mixture()
    if samples and not wanted and not splits.wanted and not files.count.total():
        raise InputError(
            f'{shard}: no sample has an image and a caption; the extensions are {", ".join(sorted(extensions))}: '
            'choose with --columns that of the image, and that of the caption or its field in the .json'
        )
    for number, member, tar in progress_bar(read_members(shard), f'unpacking {os.path.basename(shard)}'):
        if number in wanted:
            data = read_data(tar, member, shard)
            key, extension = split_name(member.name)
            extension = f'.{extension.rpartition(".")[2]}'
            if not has_image_extension(f'x{extension}'):
                extension = image_extension(data) or ''
            yield files.write(os.path.basename(key), extension, data), wanted[number]


def read_samples(
    shard: str, columns: list[str] | None, encoding: str | None, summary: Summary
) -> tuple[dict[str, Sample], set[str]]:
    """The samples by name, and the extensions of all members."""
    image, caption = (name.lower().lstrip('.') for name in columns) if columns else (None, None)
    samples: dict[str, Sample] = {}
    extensions = set()
    for number, member, tar in progress_bar(read_members(shard), f'reading {os.path.basename(shard)}'):
        place = f'{shard}: {member.name!r}'
        name = os.path.basename(member.name)
        if member.isdir():
            continue
        if name.startswith('.'):
            summary.note('hidden member, not read', place)
        elif not member.isreg():
            summary.drop('member that is a link or a device', place)
        elif member.size > LARGEST:
            summary.drop(f'member of more than {LARGEST >> 30} GiB', place)
        else:
            key, extension = split_name(member.name)
            extensions.add(f'.{extension}')
            sample = samples.setdefault(key, Sample(split=split_of_path(key)))
            if extension == caption or extension == 'json' or columns is None and extension in TEXTS:
                data = read_data(tar, member, shard)
                field = columns[1] if columns and extension != caption else None
                value = read_text(data, place, extension, encoding, summary)
                if isinstance(value, dict) and (split := find_name(value, SPLIT_COLUMNS)):
                    sample.split = value[split]
                captions = list(captions_of_json(value, field, summary))
                sample.add(sample.texts, extension, captions)
            elif extension == image if columns else is_image(tar, member, extension, shard):
                sample.add(sample.images, extension, number)
    order = [caption, 'json'] if columns else TEXTS
    for sample in samples.values():
        sample.texts = {name: sample.texts[name] for name in order if name in sample.texts}
    return samples, extensions


def split_name(name: str) -> tuple[str, str]:
    """The name of the sample, with folders, and the extension of a member in lower case, from the first dot on."""
    *folders, base = name.split('/')
    stem, _, extension = base.partition('.')
    return '/'.join([*(folder for folder in folders if folder not in ('', '.')), stem]), extension.lower()


def is_image(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, shard: str) -> bool:
    """By the extension, or by the content if it has none that training reads."""
    if has_image_extension(f'x.{extension}'):
        return True
    return image_extension(read_data(tar, member, shard, SNIFFED)) is not None


def read_text(data: bytes, place: str, extension: str, encoding: str | None, summary: Summary) -> Any:
    """The lines of a text member, or the value of a JSON member; an empty list if it cannot be read."""
    if extension.rpartition('.')[2] != 'json':
        return captions_in(decode_text(data, place, encoding, summary))
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        summary.drop('JSON that cannot be read', f'{place}: {error}')
        return []


def captions_of_json(value: Any, field: str | None, summary: Summary) -> Iterator[Any]:
    """The captions in a string, a list, or the field of an object: the first known one, if `field` is None."""
    if isinstance(value, list):
        for item in value:
            yield from captions_of_json(item, field, summary)
    elif isinstance(value, dict):
        names = [field] if field else [name for known in CAPTION_COLUMNS if (name := find_name(value, (known,)))]
        found = next((value[name] for name in names if value.get(name) not in (None, '', [])), None)
        if found is not None:
            yield from captions_of_json(found, field, summary)
    else:
        yield from captions_of(value, summary)


def read_members(shard: str) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
    """(number, member, tar) of each member. InputError at the end if the tar is not complete."""
    with open_shard(shard) as file:
        with _refuse_damage(shard, 0):
            tar = tarfile.open(fileobj=file, mode='r:*')
        with tar:
            number = 0
            while True:
                with _refuse_damage(shard, number):
                    member = tar.next()
                if member is None:
                    break
                tar.members.clear()  # of millions of members
                yield number, member, tar
                number += 1
            with _refuse_damage(shard, number):
                _check_end(tar, shard)


def read_data(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str, size: int = -1) -> bytes:
    """The contents of a member, at most `size` bytes if that is given."""
    with _refuse_damage(shard, f'member {member.name!r}'):
        return tar.extractfile(member).read(size)


def _check_end(tar: tarfile.TarFile, shard: str) -> None:
    """tarfile takes a damaged or missing header for the end: a complete tar ends with zeros, and with nothing else."""
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError('the mark of its end is missing' if not end else 'a header is damaged')
    while rest := tar.fileobj.read(io.DEFAULT_BUFFER_SIZE):
        if any(rest):
            raise InputError(
                f'{shard} has data after its end, such as a second tar: unpack it with tar -i, and pack again'
            )


@contextmanager
def _refuse_damage(shard: str, where: int | str) -> Iterator[None]:
    """InputError for what tarfile and the decompressors raise. where: the member, or how many were read."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk; those of gzip and bzip2 have none
            raise
        reason = str(error).split('\n')[0] or type(error).__name__
        place = where if isinstance(where, str) else f'after {where:,} members'
        raise InputError(f'{shard} is cut off or damaged, {place} ({reason}): download it again') from None
