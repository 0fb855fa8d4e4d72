"""Images packed in webdataset tars or in Parquet files, unpacked to files once: GRIT reads images in random order.

A Parquet file has a column of images, bytes or a struct with `bytes` (the Image feature of Hugging Face), and one of
captions. `webdataset.py` reads tars.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet as parquet

from dataset.prepare.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SPLIT_COLUMNS,
    captions_of,
    choose_columns,
    find_name,
)
from dataset.prepare.common import Summary, progress_bar
from dataset.prepare.images import has_image_extension, without_extension
from dataset.prepare.own.splits import Splits
from dataset.prepare.own.tables import refuse_damage
from dataset.prepare.own.unpacked import ShardFiles, image_extension, open_shard, safe_name
from dataset.prepare.own.webdataset import tar_samples
from utils.errors import InputError

TARS = ('.tar', '.tar.gz', '.tgz')
PER_BATCH = 64  # rows of a Parquet file
EXAMINED = 32  # values of a column that may have images


def is_packed(source: str, columns: list[str] | None = None) -> bool:
    """Whether `unpack` reads `source`: a shard, a folder that holds shards, or a pattern such as 'shards/*.tar'."""
    tars, tables = find_shards(source)
    return bool(tars) or any(image_column(path, columns) for path in tables)


def unpack(
    source: str, out: str, columns: list[str] | None, encoding: str | None, splits: Splits, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(path relative to `out`, captions) of each sample, whose image is written to a file in the folder `out`.

    columns: names of image and caption: the columns of Parquet files; in a tar the extension of the image, and the
    extension of the captions or their field in a `.json`. encoding: of captions in text members, by default UTF-8.
    """
    tars, tables = find_shards(source)
    tables = [path for path in tables if image_column(path, columns)] or ([] if tars else tables)
    if tars and tables:
        raise InputError(f"{source} has tars and Parquet files with images: give one kind, such as '{source}/*.tar'")
    shards = splits.choose_files({path: shard_stem(path) for path in tars or tables})
    if not tars:
        for path in shards:
            find_splits(path, splits)
        splits.refuse_mixture()
    if os.path.isdir(source):
        beside = sorted(filter(has_image_extension, os.listdir(source)))
        if beside:
            summary.note('image beside the shards, not read', beside[0], len(beside))
    folders: set[str] = set()
    count: Counter = Counter()
    for shard in progress_bar(shards, 'shards'):
        summary.read['shards'] += 1
        files = ShardFiles(out, safe_name(shard_stem(shard), '', folders), shard, count)
        if tars:
            yield from tar_samples(shard, columns, encoding, files, splits, summary)
        else:
            yield from table_samples(shard, columns, files, splits, summary)
    summary.written.append(f'{out}: {count["created"]:,} images unpacked, {count["kept"]:,} were there already')


def find_shards(source: str) -> tuple[list[str], list[str]]:
    """The tars and the Parquet files that `source` names."""
    if os.path.isdir(source):
        paths = glob.glob(os.path.join(glob.escape(source), '*'))
    else:
        paths = glob.glob(source) if glob.has_magic(source) and not os.path.exists(source) else [source]
    files = sorted(path for path in paths if not os.path.isdir(path))
    return (
        [path for path in files if path.lower().endswith(TARS)],
        [path for path in files if path.lower().endswith('.parquet')],
    )


def shard_stem(path: str) -> str:
    """The name of a shard without its extension."""
    return re.sub(r'\.(tar(\.gz)?|tgz|parquet)$', '', os.path.basename(path), flags=re.IGNORECASE)


def image_column(path: str, columns: list[str] | None) -> str | None:
    """The column of a Parquet file that contains images; None if there is none, or it is no Parquet file."""
    try:
        with open_shard(path) as file, parquet.ParquetFile(file, buffer_size=1 << 20) as table:
            schema = table.schema_arrow
            known = [name for name in schema.names if name.lower() in IMAGE_COLUMNS]
            names = columns[:1] if columns else dict.fromkeys([*known, *schema.names])
            return next((name for name in names if name in schema.names and _has_images(table, name)), None)
    except (OSError, pyarrow.ArrowException):
        return None


def _has_images(table: parquet.ParquetFile, name: str) -> bool:
    """Whether a column of bytes has images: one of its first values is one, or names the image that it lacks."""
    if not _has_bytes(table.schema_arrow.field(name).type):
        return False
    try:
        batch = next(table.iter_batches(EXAMINED, columns=[name]), None)
    except (OSError, pyarrow.ArrowException):
        return True  # it is damaged, which is said when it is unpacked
    for value in batch[name].to_pylist() if batch else ():
        data, path = _data_and_path(value)
        if data and image_extension(data) or not data and path and has_image_extension(path):
            return True
    return False


def _data_and_path(value: bytes | dict | None) -> tuple[bytes | None, str | None]:
    """The contents of an image and the path that it had."""
    return (value.get('bytes'), value.get('path')) if isinstance(value, dict) else (value, None)


def _has_bytes(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_struct(kind):
        return kind.get_field_index('bytes') >= 0 and _has_bytes(kind.field('bytes').type)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def find_splits(path: str, splits: Splits) -> None:
    """Show `splits` those that a Parquet file has, before its images are unpacked."""
    with refuse_damage(path), open_shard(path) as file, parquet.ParquetFile(file, buffer_size=1 << 20) as table:
        if split := find_name(table.schema_arrow.names, SPLIT_COLUMNS):
            for batch in table.iter_batches(columns=[split]):
                for value in batch[split].to_pylist():
                    splits.see(value)


def table_samples(
    path: str, columns: list[str] | None, files: ShardFiles, splits: Splits, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(path of the image, captions) of each row of a Parquet file that has both."""
    for number, (image, caption, *split) in enumerate(table_rows(path, columns)):
        summary.read['rows'] += 1
        place = f'{path}, row {number}'
        if split and not splits.takes(split[0], place):
            continue
        data, source = _data_and_path(image)
        captions = [text for text in captions_of(caption, summary) if text not in (None, '')]
        if not data:
            summary.drop('image that is not in the file, only its path' if source else 'row without an image', place)
        elif not captions:
            summary.drop('row without a caption', place)
        elif (extension := image_extension(data)) is None:
            summary.drop('image that is of no known format', place)
        else:
            row = f'{number:06d}'
            stem = without_extension(re.split(r'[/\\]', source)[-1]) if source else row
            yield files.write(stem, extension, data, fallback=row), captions


def table_rows(path: str, columns: list[str] | None) -> Iterator[tuple]:
    """(image, caption) of each row of a Parquet file, and its split if there is such a column.

    Only a few rows are in memory.
    """
    image = image_column(path, columns)
    with refuse_damage(path), open_shard(path) as file, parquet.ParquetFile(file, buffer_size=1 << 20) as table:
        names = table.schema_arrow.names
        caption, split = find_name(names, CAPTION_COLUMNS), find_name(names, SPLIT_COLUMNS)
        chosen = choose_columns(names, columns or ([image, caption] if image and caption else None), path)
        if chosen[0] != image:
            raise InputError(f'{path}: the column {chosen[0]} has no images: choose another with --columns')
        if split and split not in chosen:
            chosen.append(split)
        for batch in progress_bar(
            table.iter_batches(PER_BATCH, columns=chosen),
            f'unpacking {os.path.basename(path)}',
            -(-table.metadata.num_rows // PER_BATCH),
        ):
            yield from zip(*(batch[name].to_pylist() for name in chosen), strict=True)
