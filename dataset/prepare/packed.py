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

from dataset.files import open_regular
from dataset.prepare.common import Summary, progress_bar
from dataset.prepare.images import has_image_extension, without_extension
from dataset.prepare.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, choose_columns
from dataset.prepare.unpacked import ShardFiles, image_extension, refuse_pointer, safe_name
from dataset.prepare.webdataset import tar_samples
from utils.errors import InputError

TARS = ('.tar', '.tar.gz', '.tgz')
PER_BATCH = 64  # rows of a Parquet file
SPLIT = re.compile(r'(?<![a-z])(train|val|dev|test)(?:id|idation|ing)?(?![a-z])')


def is_packed(source: str, columns: list[str] | None = None) -> bool:
    """Whether `unpack` reads `source`: a shard, a folder that holds shards, or a pattern such as 'shards/*.tar'."""
    tars, tables = find_shards(source)
    return bool(tars) or any(image_column(path, columns) for path in tables)


def unpack(
    source: str, out: str, columns: list[str] | None, encoding: str | None, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(path relative to `out`, captions) of each sample, whose image is written to a file in the folder `out`.

    columns: names of image and caption: the columns of Parquet files; in a tar the extension of the image, and the
    extension of the captions or their field in a `.json`. encoding: of captions in text members, by default UTF-8.
    """
    tars, tables = find_shards(source)
    if tars and any(image_column(path, columns) for path in tables):
        raise InputError(f"{source} has tars and Parquet files with images: give one kind, such as '{source}/*.tar'")
    shards = tars or tables
    refuse_several_splits(source, shards)
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
            yield from tar_samples(shard, columns, encoding, files, summary)
        else:
            yield from table_samples(shard, columns, files, summary)
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


def refuse_several_splits(source: str, shards: list[str]) -> None:
    """InputError if the names of shards say that they are of several splits: training would read test images."""
    splits = {' and '.join(sorted(set(SPLIT.findall(shard_stem(shard).lower())))) for shard in shards} - {''}
    if len(splits) > 1:
        raise InputError(
            f'{source} has shards of the splits {", ".join(sorted(splits))}: give those of one as a pattern in quotes, '
            "such as 'FOLDER/train-*.parquet'"
        )


def image_column(path: str, columns: list[str] | None) -> str | None:
    """The column of a Parquet file that contains images; None if there is none, or it is no Parquet file."""
    try:
        with open_regular(path) as file:
            refuse_pointer(file, path)
            schema = parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException):
        return None
    known = [name for name in schema.names if name.lower() in IMAGE_COLUMNS]
    names = columns[:1] if columns else [*known, *schema.names]
    return next((name for name in names if name in schema.names and _has_bytes(schema.field(name).type)), None)


def _has_bytes(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_struct(kind):
        return kind.get_field_index('bytes') >= 0 and _has_bytes(kind.field('bytes').type)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def table_samples(
    path: str, columns: list[str] | None, files: ShardFiles, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(path of the image, captions) of each row of a Parquet file that has both."""
    for number, (image, caption) in enumerate(table_rows(path, columns)):
        summary.read['rows'] += 1
        place = f'{path}, row {number}'
        data, source = (image.get('bytes'), image.get('path')) if isinstance(image, dict) else (image, None)
        captions = [text for text in (caption if isinstance(caption, list) else [caption]) if text not in (None, '')]
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


def table_rows(path: str, columns: list[str] | None) -> Iterator[tuple[bytes | dict | None, object]]:
    """(image, caption) of each row of a Parquet file, of which only a few rows are in memory."""
    image = image_column(path, columns)
    with open_regular(path) as file:
        refuse_pointer(file, path)
        try:
            with parquet.ParquetFile(file, buffer_size=1 << 20) as table:
                names = table.schema_arrow.names
                lower = {name.lower(): name for name in reversed(names)}
                caption = next((lower[name] for name in CAPTION_COLUMNS if name in lower), None)
                chosen = choose_columns(names, columns or ([image, caption] if image and caption else None), path)
                if chosen[0] != image:
                    raise InputError(f'{path}: the column {chosen[0]} has no images: choose another with --columns')
                for batch in progress_bar(
                    table.iter_batches(PER_BATCH, columns=chosen),
                    f'unpacking {os.path.basename(path)}',
                    -(-table.metadata.num_rows // PER_BATCH),
                ):
                    yield from zip(*(batch[name].to_pylist() for name in chosen), strict=True)
        except UnicodeDecodeError as error:
            raise InputError(f'{path}: a caption or path is not UTF-8 text ({error}): correct it') from None
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f'{path} is not a complete Parquet file: {str(error).splitlines()[0]}') from None
