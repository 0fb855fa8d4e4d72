"""CSV and TSV files. What a file means must be certain.

The delimiter is the one with which the heading has both columns. The rows are read in the first of three ways that fits
every line: by the rules of CSV, with backslashes before quotes, or each line as a row. A file that none of them fits is
refused with the number of the line that breaks the rules of CSV. How a file was read is shown in the summary.
"""

import csv
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from dataset.annotations.json_reader import short
from dataset.prepare.columns import DELIMITERS, SPLIT_COLUMNS, choose_columns, find_columns, find_name
from dataset.prepare.common import Summary
from dataset.prepare.images import has_image_extension
from dataset.prepare.texts import read_lines
from utils.errors import InputError

LONGEST_HEADING = 100  # lines
REMEDY = (
    'put quotes around the field and double those in it, or correct the line; a caption of several lines may have to '
    'be written in one'
)


class BrokenTable(InputError):
    """A line that the rules of CSV do not explain."""


@dataclass
class Layout:
    """How the lines of a CSV or TSV file are read.

    root: folder of the images. image, caption, split: numbers of the columns (split: None if there is none); width: of
    the heading; skipped: how many lines are before it.
    """

    path: str
    root: str
    delimiter: str
    width: int
    image: int
    caption: int
    split: int | None = None
    has_heading: bool = True
    skipped: int = 0

    def names_image(self, fields: list[str], like: str) -> bool:
        """Whether the image field of a line names an image, judged by `like`, which the same field of a row has."""
        name = fields[self.image].strip(' "\r\n') if self.image < len(fields) else ''
        if not name:
            return False
        if is_image_name(name, self.root):
            return True
        if has_image_extension(like.strip(' "\r\n')):
            return False
        return self.delimiter == '\t' or ' ' not in name and bool(re.search('[0-9]', name) and re.search('[0-9]', like))

    def split_line(self, line: str) -> list[str]:
        """The fields of a line by itself: with quotes, or split at every delimiter if that does not fit."""
        fields = _fields([line], self.delimiter)
        return fields if len(fields) == self.width else line.rstrip('\r\n').split(self.delimiter)


Reader = Callable[[Iterable[str], Layout], Iterator[tuple[int, list[str]]]]


def is_image_name(name: str, root: str) -> bool:
    """Whether a string is a name with the extension of an image, or that of a file under `root`."""
    return has_image_extension(name) or '\0' not in name and os.path.isfile(os.path.join(root, name))


def csv_rows(
    path: str, columns: list[str] | None, root: str, encoding: str | None, summary: Summary
) -> Iterator[tuple[str, str, str | None, str]]:
    """(image, caption, split, place) of each row of a CSV or TSV file."""
    csv.field_size_limit(sys.maxsize)

    def lines(noted: Summary | None = None) -> Iterator[str]:  # the csv module of older Pythons refuses NUL
        numbered = enumerate(read_lines(path, encoding, noted or Summary('')))
        return (line.replace('\0', ' ') for number, line in numbered if number >= skipped)

    skipped = 0
    first = list(islice(lines(), LONGEST_HEADING))
    skipped, delimiter = _skip_to_heading(first)
    layout = find_layout(path, first[skipped:], columns, root, delimiter)
    layout.skipped = skipped
    if layout.delimiter != _usual_delimiter(path):
        summary.note(f'table with {DELIMITERS.get(layout.delimiter, repr(layout.delimiter))} between its columns')
    read = choose_reader(lines, layout, summary)
    for number, row in read(lines(summary), layout):
        place = f'{path}, line {number}'
        if number == skipped + 1 and layout.has_heading or not any(field.strip() for field in row):
            continue
        if max(layout.image, layout.caption) >= len(row):
            summary.drop('row with fewer fields than the heading', place)
            continue
        if len(row) > layout.width:
            row = _without_extra_fields(row, layout, place, summary)
        split = row[layout.split] if layout.split is not None and layout.split < len(row) else None
        yield row[layout.image], row[layout.caption], split, place


def _usual_delimiter(path: str) -> str:
    return '\t' if path.lower().endswith('.tsv') else ','


def _skip_to_heading(lines: list[str]) -> tuple[int, str | None]:
    """(number of lines before the first row, the delimiter of a line such as `sep=;`, as Excel writes it)."""
    delimiter = None
    for number, line in enumerate(lines):
        if match := re.fullmatch(r'"?sep=(.)"?\s*', line):
            delimiter = match[1]
        elif line.strip(' \t\r\n,;|"'):
            return number, delimiter
    return len(lines), delimiter


def _without_extra_fields(row: list[str], layout: Layout, place: str, summary: Summary) -> list[str]:
    """A row that has more fields than the heading: empty ones are left out, others belong to the caption."""
    row, extra = row[: layout.width], row[layout.width :]
    while extra and not extra[-1].strip():
        extra.pop()
    if not extra:
        summary.note('row with empty fields after its last column, left out', place)
        return row
    summary.note('caption with delimiters but without quotes, put together again', place)
    between = ' ' if layout.delimiter == '\t' else f'{layout.delimiter} '
    return [*row[: layout.caption], between.join([row[layout.caption], *extra])]


def find_layout(path: str, first: list[str], columns: list[str] | None, root: str, delimiter: str | None) -> Layout:
    """The delimiter and the two columns, from the first lines. delimiter: if it is known."""
    if not first:
        raise InputError(f'{path} is empty: give a table with a column of images and one of captions')
    usual = _usual_delimiter(path)
    delimiters = [delimiter] if delimiter else sorted(DELIMITERS, key=lambda known: known != usual)
    fields = {delimiter: _fields(first, delimiter) for delimiter in delimiters}
    most = max(delimiters, key=lambda delimiter: len(fields[delimiter]))
    for delimiter, names in fields.items():
        if find_columns(names, columns):
            image, caption = map(names.index, choose_columns(names, columns, path))
            split = find_name(names, SPLIT_COLUMNS)
            layout = Layout(path, root, delimiter, len(names), image, caption, split and names.index(split))
            following = layout.split_line(first[1]) if len(first) > 1 else []
            if is_image_name(names[image], root) or _continues(names[image], following[image : image + 1]):
                raise _no_heading(path, first[0])
            return layout
    for delimiter, names in fields.items():
        if columns is None and len(names) == 2 and is_image_name(names[0], root):
            return Layout(path, root, delimiter, 2, 0, 1, has_heading=False)
    if any(is_image_name(name, root) for name in fields[most] if name):
        raise _no_heading(path, first[0])
    choose_columns(fields[most], columns, path)
    raise AssertionError('choose_columns raises for columns that find_columns does not find')


def _continues(name: str, following: list[str]) -> bool:
    """Whether the field under the name of a column is the same name with another number, as of a further row."""
    digits = re.compile('[0-9]+')
    return any(
        digits.search(name) and digits.sub('0', name) == digits.sub('0', field.strip(' "\r\n')) for field in following
    )


def _no_heading(path: str, line: str) -> InputError:
    return InputError(
        f'{path} has no heading: its first line is {short(line.strip(), 60)}: add a first line that names the columns, '
        'such as image,caption'
    )


def _fields(lines: list[str], delimiter: str) -> list[str]:
    """The fields of the first row; of the first line, split at every delimiter, if its quotes do not fit."""
    try:
        row = next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True), [])
    except csv.Error:
        row = lines[0].split(delimiter)
    return [field.strip() for field in row]


def choose_reader(lines: Callable[[], Iterable[str]], layout: Layout, summary: Summary) -> Reader:
    """The first of the three ways to read rows that fits every line. BrokenTable if there is none."""
    try:
        _read_through(quoted_rows(lines(), layout))
        return quoted_rows
    except BrokenTable as error:
        broken = error
    place = str(broken).partition(':')[0]
    try:
        _read_through(escaped_rows(lines(), layout))
        summary.note('table read with backslashes before quotes instead of doubled quotes', place)
        return escaped_rows
    except BrokenTable:
        pass
    if not lines_are_rows(lines(), layout):
        raise broken
    summary.note('table read line by line, because its quotes are not those of CSV', place)
    return single_rows


def _read_through(rows: Iterable) -> None:
    for _ in rows:
        pass


def quoted_rows(lines: Iterable[str], layout: Layout, **dialect: object) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row by the rules of CSV. BrokenTable if a line does not obey them."""
    raw: list[str] = []  # the lines of the row that is being read

    def remembered() -> Iterator[str]:
        for line in lines:
            raw.append(line)
            yield line

    reader = csv.reader(remembered(), delimiter=layout.delimiter, skipinitialspace=True, strict=True, **dialect)
    while True:
        start = layout.skipped + reader.line_num + 1
        place = f'{layout.path}, line {start}'
        raw.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BrokenTable(f'{place}: its quotes do not fit ({error}): {REMEDY}') from None
        if any(_looks_like_a_row(line, layout, row) for line in raw[1:]):
            raise BrokenTable(
                f'{place}: a quote that opens here is closed in line {layout.skipped + reader.line_num}, and the lines '
                f'between look like rows of their own: {REMEDY}'
            )
        if layout.caption != layout.width - 1 and any(field.strip() for field in row[layout.width :]):
            raise BrokenTable(f'{place} has {len(row)} fields, the heading has {layout.width}: {REMEDY}')
        yield start, row


def escaped_rows(lines: Iterable[str], layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The rows if a backslash, and not a second quote, marks a quote in a field. Other backslashes stay."""
    special = f'"\\\n\r{layout.delimiter}'
    found = set()  # what follows backslashes

    def kept(match: re.Match) -> str:
        found.add(match[1])
        return match[0] if match[1] in special else f'\\{match[0]}'

    escaped = (re.sub(r'\\(.)', kept, line, flags=re.DOTALL) for line in lines)
    for number, row in quoted_rows(escaped, layout, escapechar='\\', doublequote=False):
        if row and len(row) != layout.width:
            raise BrokenTable(f'{layout.path}, line {number} has {len(row)} fields: {REMEDY}')
        yield number, row
    if '"' not in found:
        raise BrokenTable(f'{layout.path} has no backslash before a quote: {REMEDY}')


def _looks_like_a_row(line: str, layout: Layout, row: list[str]) -> bool:
    """Whether a line inside a field of `row` has the form of a row: its fields, and the name of an image."""
    like = row[layout.image] if layout.image < len(row) else ''
    ways = (_fields([line], layout.delimiter), line.split(layout.delimiter))
    return any(len(fields) >= layout.width and layout.names_image(fields, like) for fields in ways)


def lines_are_rows(lines: Iterable[str], layout: Layout) -> bool:
    """Whether each line is certainly a row: it has the fields of one, names an image, and continues no other line.

    A line that opens a quote may be the start of a caption of several lines if a later line closes one. In captions of
    several lines tabs are too rare for that.
    """
    like = None  # the name of an image in the first row
    is_open = False
    for number, line in enumerate(lines):
        if not line.strip() or number == 0 and layout.has_heading:
            continue
        fields = layout.split_line(line)
        if len(fields) != layout.width:
            return False
        like = like or fields[layout.image]
        opens, closes = _open_quotes(line, layout.delimiter)
        if not layout.names_image(fields, like) or is_open and closes and layout.delimiter != '\t':
            return False
        is_open = is_open or opens
    return True


def _open_quotes(line: str, delimiter: str) -> tuple[bool, bool]:
    """(whether the line opens a quote that it does not close, whether it closes one that it did not open)."""
    between = re.escape(delimiter)
    rest = re.sub(rf'(?:^|(?<={between})) *"(?:[^"]|"")*" *(?={between}|$)', '', line.rstrip('\r\n'))
    opens = re.search(rf'(?:^|{between}) *"', rest) is not None
    closes = rest.count('"') % 2 == 1 and re.search(rf'"\s*(?:{between}|$)', rest) is not None
    return opens, closes


def single_rows(lines: Iterable[str], layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of each line as a row of its own."""
    for number, line in enumerate(lines, layout.skipped + 1):
        yield number, layout.split_line(line) if line.strip() else []
