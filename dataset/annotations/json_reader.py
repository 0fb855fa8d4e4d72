"""JSON lists and JSON Lines, read row by row as a stream, so that a large file is never in memory at once.

The content says which of the two a file is, whatever its name. A streaming library would be less code, but yajl refuses
integers of more than 64 bits and gives no positions of errors.
"""

import codecs
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal, TextIO

from dataset.files import open_regular, refuse_packed
from utils.errors import InputError, MissingFileError
from utils.files import marked_encoding

CHUNK = 1 << 20  # characters read at a time
LINES_ENDINGS = ('.jsonl', '.ndjson')
REMEDY = 'remove it, or write the file again'
_blank = re.compile(r'[ \t\n\r]*').match


def short(row: object, length: int = 100) -> str:
    """`row` in at most `length` characters, for messages."""
    text = repr(row)
    return text if len(text) <= length else text[: length - 3] + '...'


@contextmanager
def open_annotations(file: str) -> Iterator[BinaryIO]:
    """The file opened to read bytes. InputError if that is not possible, or if it is compressed or not UTF-8."""
    if os.path.isdir(file):
        raise InputError(f'{file} is a folder, not an annotation file: give the JSON file in it')
    try:
        handle = open_regular(file, buffering=0)  # unbuffered: `read_rows` reads the same descriptor
    except FileNotFoundError:
        raise MissingFileError(
            f'the annotation file {file} does not exist: correct its path, or make it with python -m dataset.prepare'
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, 'strerror', None) or error
        raise InputError(
            f'the annotation file {file!r} cannot be read ({reason}): give a JSON file that you may read'
        ) from None
    with handle:
        head = handle.read(64)
        refuse_packed(head, file)
        if marked_encoding(head) not in (None, 'utf-8-sig'):
            raise InputError(f'{file} is UTF-16 or UTF-32 text: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)')
        handle.seek(0)
        yield handle


def layout(handle: BinaryIO, file: str) -> Literal['list', 'lines', 'object']:
    """How an opened file is written: a JSON list, JSON Lines, or one JSON object.

    A list starts with `[`. JSON Lines have an object on each of several lines, or are named so (`.jsonl`, `.ndjson`).
    """
    handle.seek(0)
    start = handle.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b'['):
        return 'list'
    if file.lower().endswith(LINES_ENDINGS):
        return 'lines'
    first, _, rest = start.partition(b'\n')
    try:
        is_lines = rest.lstrip().startswith(b'{') and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_lines = False
    return 'lines' if is_lines else 'object'


def read_rows(handle: BinaryIO, file: str, lines: bool = False) -> Iterator[object]:
    """Each row of an opened annotation file as `json` decodes it. InputError if it cannot be decoded or there is none.

    lines: read one object as the only row of JSON Lines.
    """
    form = layout(handle, file)
    handle.seek(0)
    stream = open(handle.fileno(), encoding='utf-8-sig', newline='\n', closefd=False)
    rows = _json_lines(stream, file) if form == 'lines' or lines and form == 'object' else _json_list(stream, file)
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except UnicodeDecodeError as error:
        place = f'after row {count - 1}' if count else 'before the end of the first row'
        raise InputError(f'{file} is not UTF-8 text ({error.reason}, {place}): convert or download it again') from None
    if not count:
        raise InputError(f'{file} contains no rows: an annotation file needs at least one')


def _json_lines(stream: TextIO, file: str) -> Iterator[object]:
    for number, line in enumerate(stream, 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            cut = not line.endswith('\n')
            what = 'is cut off in its last line' if cut else 'is not valid JSON Lines'
            raise InputError(
                f'{file} {what}: line {number}, column {error.colno}: {error.msg}; download or write the file again'
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f'{file}: line {number}: {_fault(error)}; {REMEDY}') from None
        yield row


def _json_list(stream: TextIO, file: str) -> Iterator[object]:
    decode = json.JSONDecoder().raw_decode
    text, passed, row = stream.read(CHUNK).lstrip(), 0, 0  # passed: characters of the file before `text`
    if not text:
        raise InputError(f'{file} is empty: download or write the file again')
    if text[0] != '[':
        raise InputError(
            f'{file} must be a JSON list of objects, but it starts with {short(text[:20])}: '
            "convert a release's own files with python -m dataset.prepare, and give JSON Lines a name that ends in "
            '.jsonl'
        )
    start = 1  # where the next row, or the comma before it, is looked for
    while True:
        try:
            at = _blank(text, start).end()
            if text[at] == ']':
                break
            if row:
                if text[at] != ',':
                    raise json.JSONDecodeError("expecting ',' or ']'", text, at)
                at = _blank(text, at + 1).end()
            value, end = decode(text, at)
        except (IndexError, json.JSONDecodeError) as error:
            unfinished = _may_continue(error, text)
            more = stream.read(max(CHUNK, len(text) - start)) if unfinished else ''
            if more:
                text, passed, start = text[start:] + more, passed + start, 0
                continue
            where = f'row {row}, character {passed + getattr(error, "pos", len(text))}'
            what = 'is cut off' if unfinished else f'is not valid JSON ({getattr(error, "msg", error)})'
            raise InputError(f'{file} {what} at {where}: download or write the file again') from None
        except (ValueError, RecursionError) as error:
            raise InputError(f'{file}: row {row}: {_fault(error)}; {REMEDY}') from None
        yield value
        row, start = row + 1, end
    if text[at + 1 :].strip() or stream.read().strip():
        raise InputError(f'{file} continues after the end of its list, character {passed + at}: write the file again')


def _fault(error: Exception) -> str:
    """What is wrong with JSON that Python cannot represent."""
    if isinstance(error, RecursionError):
        return 'its lists or objects are nested too deeply'
    return 'it has an integer of thousands of digits'  # the only ValueError of `json` besides JSONDecodeError


def _may_continue(error: Exception, text: str) -> bool:
    """Whether more text could have prevented `error`; the longest token that fails only at its end is 12 characters."""
    if isinstance(error, IndexError):
        return True
    return error.msg.startswith('Unterminated string') or error.pos > len(text) - 16
