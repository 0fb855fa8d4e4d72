"""Tables with a column of images and one of captions: CSV, TSV, JSON, JSON Lines and Parquet.

What a CSV or TSV file means must be certain. The delimiter is the one with which the heading has both columns. Quotes
are read by the rules of CSV; a file that breaks them is read line by line if each line then has as many fields as the
heading, and is otherwise refused with the number of the line. How a file was read is shown in the summary.
"""

import csv
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow
import pyarrow.parquet as parquet

from dataset.annotations.json_reader import LINES_ENDINGS
from dataset.prepare.common import Summary, stream_json
from dataset.prepare.entries import Entry
from dataset.prepare.images import image_extensions
from dataset.prepare.texts import read_lines
from utils.errors import InputError

IMAGE_COLUMNS = ('image', 'image_path', 'path', 'file', 'filename', 'file_name', 'filepath', 'image_name', 'img')
CAPTION_COLUMNS = ('caption', 'text', 'captions', 'sentence', 'description', 'title', 'comment')
DELIMITERS = {'\t': 'tabs', ',': 'commas', ';': 'semicolons', '|': 'bars'}
LONGEST_HEADING = 100  # lines
REMEDY = 'put quotes around the field and double those in it, or correct the line'
Pair = tuple[object, object]  # image and caption as the table has them


class BrokenTable(InputError):
    """A line that the rules of CSV do not explain."""


@dataclass
class Layout:
    """How the lines of a CSV or TSV file are read. image, caption: numbers of the columns; width: of the heading."""

    delimiter: str
    width: int
    image: int
    caption: int
    has_heading: bool


def table_pairs(path: str, columns: list[str] | None, encoding: str | None, summary: Summary) -> Iterator[Pair]:
    """(image, caption) of each row of a table. columns: names of the two columns, found by default.

    InputError names the line or row that cannot be read.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending in ('.csv', '.tsv'):
        yield from csv_pairs(path, columns, encoding, summary)
    elif ending in ('.json', *LINES_ENDINGS):
        for number, row in enumerate(stream_json(path)):
            entry = Entry(row, path, f'row {number}')
            if number == 0:
                columns = choose_columns(list(row), columns, path)
            yield entry.get(columns[0]), entry.get(columns[1])
    elif ending == '.parquet':
        yield from parquet_pairs(path, columns)
    else:
        raise InputError(f'{path} is not a folder or a .csv, .tsv, .parquet, .jsonl or .json file')


def parquet_pairs(path: str, columns: list[str] | None) -> Iterator[Pair]:
    try:
        with open(path, 'rb') as file, parquet.ParquetFile(file) as table:
            image, caption = choose_columns(table.schema_arrow.names, columns, path)
            for batch in table.iter_batches(columns=[image, caption]):
                yield from zip(batch[image].to_pylist(), batch[caption].to_pylist(), strict=True)
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: a caption or path is not UTF-8 text ({error}): correct it') from None
    except pyarrow.ArrowException as error:
        raise InputError(f'{path} is not a complete Parquet file: {str(error).splitlines()[0]}') from None


def csv_pairs(path: str, columns: list[str] | None, encoding: str | None, summary: Summary) -> Iterator[Pair]:
    """(image, caption) of each row of a CSV or TSV file."""
    csv.field_size_limit(sys.maxsize)

    def lines() -> Iterator[str]:  # the csv module of older Pythons refuses NUL
        return (line.replace('\0', ' ') for line in read_lines(path, encoding))

    layout = find_layout(path, list(islice(lines(), LONGEST_HEADING)), columns)
    usual = '\t' if path.lower().endswith('.tsv') else ','
    if layout.delimiter != usual:
        summary.note(f'table with {DELIMITERS[layout.delimiter]} between its columns')
    read = quoted_rows
    try:
        for _ in quoted_rows(lines(), layout, path):
            pass
    except BrokenTable as error:
        if any(row is None for _, row in single_rows(lines(), layout, path)):
            raise
        read = single_rows
        summary.note('table read line by line, because its quotes are not those of CSV', str(error).partition(':')[0])
    for number, row in read(lines(), layout, path):
        if number == 1 and layout.has_heading or not row:
            continue
        if max(layout.image, layout.caption) >= len(row):
            summary.drop('row with fewer fields than the heading', f'{path}, line {number}')
            continue
        if len(row) > layout.width:
            summary.note('caption with delimiters but without quotes, put together again', f'{path}, line {number}')
            between = ' ' if layout.delimiter == '\t' else f'{layout.delimiter} '
            row[layout.caption :] = [between.join(row[layout.caption :])]
        yield row[layout.image], row[layout.caption]


def find_layout(path: str, first: list[str], columns: list[str] | None) -> Layout:
    """The delimiter and the two columns, from the first lines."""
    if not first or not first[0].strip():
        raise InputError(f'{path} is empty: give a table with a column of images and one of captions')
    usual = '\t' if path.lower().endswith('.tsv') else ','
    delimiters = sorted(DELIMITERS, key=lambda delimiter: delimiter != usual)
    fields = {delimiter: _fields(first, delimiter) for delimiter in delimiters}
    for delimiter, names in fields.items():
        if found := find_columns(names, columns):
            image, caption = map(names.index, found)
            return Layout(delimiter, len(names), image, caption, has_heading=True)
    for delimiter, names in fields.items():
        if columns is None and len(names) == 2 and names[0].lower().endswith(image_extensions()):
            return Layout(delimiter, 2, 0, 1, has_heading=False)
    most = max(delimiters, key=lambda delimiter: len(fields[delimiter]))
    choose_columns(fields[most], columns, path)
    raise AssertionError('choose_columns raises for columns that find_columns does not find')


def _fields(lines: list[str], delimiter: str) -> list[str]:
    """The fields of the first row; of the first line, split at every delimiter, if its quotes do not fit."""
    try:
        row = next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True), [])
    except csv.Error:
        row = lines[0].split(delimiter)
    return [field.strip() for field in row]


def quoted_rows(lines: Iterable[str], layout: Layout, path: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row by the rules of CSV. BrokenTable if a line does not obey them."""
    raw: list[str] = []  # the lines of the row that is being read

    def remembered() -> Iterator[str]:
        for line in lines:
            raw.append(line)
            yield line

    reader = csv.reader(remembered(), delimiter=layout.delimiter, skipinitialspace=True, strict=True)
    while True:
        start = reader.line_num + 1
        raw.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BrokenTable(f'{path}, line {start}: its quotes do not fit ({error}): {REMEDY}') from None
        if any(_looks_like_a_row(line, layout, row) for line in raw[1:]):
            raise BrokenTable(
                f'{path}, line {start}: a quote that opens here is closed in line {reader.line_num}, and the lines '
                f'between look like rows of their own: {REMEDY}'
            )
        if len(row) > layout.width and layout.caption != layout.width - 1:
            raise BrokenTable(f'{path}, line {start} has {len(row)} fields, the heading has {layout.width}: {REMEDY}')
        yield start, row


def _looks_like_a_row(line: str, layout: Layout, row: list[str]) -> bool:
    """Whether a line inside a field of `row` has the form of a row: with tabs its fields, else also an image."""
    for fields in (_fields([line], layout.delimiter), line.rstrip('\r\n').split(layout.delimiter)):
        if len(fields) >= layout.width:
            image = fields[layout.image].strip(' "').lower()
            both_numbers = image.isdecimal() and layout.image < len(row) and row[layout.image].strip().isdecimal()
            if layout.delimiter == '\t' or image.endswith(image_extensions()) or both_numbers:
                return True
    return False


def single_rows(lines: Iterable[str], layout: Layout, path: str) -> Iterator[tuple[int, list[str] | None]]:
    """(number, fields) of each line as a row of its own; None if it has not as many fields as the heading."""
    for number, line in enumerate(lines, 1):
        line = line.rstrip('\r\n')
        row = _fields([line], layout.delimiter) if line.strip() else []
        if row and len(row) != layout.width:
            row = line.split(layout.delimiter)
        yield number, row if not row or len(row) == layout.width else None


def find_columns(names: list[str], wanted: list[str] | None) -> list[str] | None:
    """The names of the image and caption columns; None if they are not both there."""
    if wanted is None:
        lower = {name.lower(): name for name in reversed(names)}
        known = (IMAGE_COLUMNS, CAPTION_COLUMNS)
        wanted = [next((lower[name] for name in group if name in lower), None) for group in known]
    return wanted if all(name in names for name in wanted) else None


def choose_columns(names: list[str], wanted: list[str] | None, path: str) -> list[str]:
    """The names of the image and caption columns; InputError if they are not found."""
    found = find_columns(names, wanted)
    if found is None:
        raise InputError(
            f'{path} has the columns {", ".join(names)}: choose those of images and captions with --columns'
        )
    return found
