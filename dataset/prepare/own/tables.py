"""Tables with a column of images and one of captions: CSV, TSV, JSON, JSON Lines and Parquet."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from dataset.annotations.json_reader import LINES_ENDINGS
from dataset.prepare.columns import SPLIT_COLUMNS, choose_columns, find_name
from dataset.prepare.common import Summary, stream_json
from dataset.prepare.entries import Entry
from dataset.prepare.images import files_under, has_image_extension
from dataset.prepare.own.csv_tables import csv_rows
from dataset.prepare.own.splits import Splits
from dataset.prepare.texts import decode_text
from utils.errors import InputError

Pair = tuple[object, object]  # image and caption as the table has them
ENDINGS = ('.csv', '.tsv', '.parquet', *LINES_ENDINGS)  # of tables in a folder, in which a .json may be anything


def find_tables(source: str) -> list[str]:
    """The tables that `source` names: a file, those that fit a pattern, or those in a folder without images.

    There is none if `source` is another folder.
    """
    if os.path.isdir(source):
        tables = [os.path.join(source, name) for name in sorted(os.listdir(source)) if _has_ending(name)]
        is_of_images = not tables or any(map(has_image_extension, files_under(source, Summary(''))))
        return [] if is_of_images else tables
    if not glob.has_magic(source) or os.path.exists(source):
        return [source]
    tables = sorted(path for path in glob.glob(source) if os.path.isfile(path))
    if not tables:
        raise InputError(f'no file fits the pattern {source}: correct it')
    return tables


def _has_ending(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith('.')


def table_pairs(
    path: str, columns: list[str] | None, encoding: str | None, root: str, splits: Splits, summary: Summary
) -> Iterator[Pair]:
    """(image, caption) of each row of a table. columns: names of the two columns, found by default.

    root: folder that paths are relative to. InputError names the line or row that cannot be read.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending in ('.csv', '.tsv'):
        rows = csv_rows(path, columns, root, encoding, summary)
    elif ending in ('.json', *LINES_ENDINGS):
        rows = json_rows(path, columns)
    elif ending == '.parquet':
        rows = parquet_rows(path, columns, encoding, summary)
    else:
        raise InputError(f'{path} is not a folder or a .csv, .tsv, .parquet, .jsonl or .json file')
    for image, caption, split, place in rows:
        if splits.takes(split, place):
            yield image, caption


def json_rows(path: str, columns: list[str] | None) -> Iterator[tuple[Any, Any, Any, str]]:
    """(image, caption, split, place) of each object of a JSON list or of JSON Lines."""
    split = None
    for number, row in enumerate(stream_json(path)):
        place = f'row {number}'
        entry = Entry(row, path, place)
        if number == 0:
            columns, split = choose_columns(list(row), columns, path), find_name(row, SPLIT_COLUMNS)
        yield entry.get(columns[0]), entry.get(columns[1]), split and entry.get(split), f'{path}, {place}'


def parquet_rows(
    path: str, columns: list[str] | None, encoding: str | None, summary: Summary
) -> Iterator[tuple[Any, Any, Any, str]]:
    """(image, caption, split, place) of each row of a Parquet file whose images are paths."""
    number = 0
    with refuse_damage(path), open(path, 'rb') as file, parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        chosen, split = choose_columns(names, columns, path), find_name(names, SPLIT_COLUMNS)
        for batch in table.iter_batches(columns=[*dict.fromkeys([*chosen, split or chosen[0]])]):
            values = [batch[name].to_pylist() for name in (*chosen, split or chosen[0])]
            for image, caption, value in zip(*values, strict=True):
                place = f'{path}, row {number}'
                try:
                    image = _text(image, place, encoding, summary)
                except InputError:
                    raise InputError(
                        f'{place}: the column {chosen[0]} has bytes that are neither an image that training reads nor '
                        'a path: choose another with --columns'
                    ) from None
                yield image, _text(caption, place, encoding, summary), value if split else None, place
                number += 1


@contextmanager
def refuse_damage(path: str) -> Iterator[None]:
    """InputError for what pyarrow raises for a damaged Parquet file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: a caption or path is not UTF-8 text ({error}): correct it') from None
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise InputError(f'{path} is not a complete Parquet file: {str(error).splitlines()[0]}') from None


def _text(value: Any, place: str, encoding: str | None, summary: Summary) -> Any:
    """Bytes as the text that they are: some programs write strings as a column of bytes."""
    return decode_text(value, place, encoding, summary) if isinstance(value, bytes) else value
