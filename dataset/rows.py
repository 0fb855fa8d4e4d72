"""Rows of annotation files: read one by one, and checked.

A file is a JSON list of objects, or one object a line when its name ends in `.jsonl`. It is parsed as a stream: a
file of four million rows never lies in memory as a whole. Rows of each kind (any further field is allowed):

    pretrain         {image, caption: str or [str]}
    retrieval_train  {image, caption: str, image_id: int or str}
    retrieval_eval   {image, caption: str or [str]}
    nlvr             {images: [left, right], sentence, label: true, false, "True" or "False"}; optional identifier, kind
    vqa              {question, image, dataset: vqa or vg, question_id: int or str}; optional answer: str or [str],
                     answer_type, question_type, kind
"""
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

CHUNK = 1 << 20  # characters read at a time
_blank = re.compile(r'[ \t\n\r]*').match


class BadRow(ValueError):
    """What is wrong with one row; the caller knows the file and the number and says them."""


def _path(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRow(f"'{name}' must be the path of an image, a non-empty string")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"'{name}' must be one string; where there are several texts, give each a row of its own")
    return value


def _texts(value: object, name: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRow(f"'{name}' must be a string or a list of strings")
    if not value:
        raise BadRow(f"'{name}' is an empty list; give it at least one string or take the row out")
    return value


def _pair(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(path, str) and path for path in value):
        raise BadRow(f"'{name}' must be a list of two paths, the left image and the right one")
    return value


def _identity(value: object, name: str) -> int | str:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise BadRow(f"'{name}' must be an integer or a string")
    return value


def _label(value: object, name: str) -> bool:
    if value is True or value == 'True':
        return True
    if value is False or value == 'False':
        return False
    raise BadRow(f"""'{name}' must be "True", "False" or a JSON boolean""")


def _vqa_source(value: object, name: str) -> str:
    if value not in ('vqa', 'vg'):
        raise BadRow(f"""'{name}' must be "vqa" or "vg", which says under which root the image lies""")
    return value


def _answer(value: object, name: str) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else _texts(value, name)


def _as_given(value: object, name: str) -> object:
    return value


REQUIRED = {
    'pretrain': {'image': _path, 'caption': _texts},
    'retrieval_train': {'image': _path, 'caption': _text, 'image_id': _identity},
    'retrieval_eval': {'image': _path, 'caption': _texts},
    'nlvr': {'images': _pair, 'sentence': _text, 'label': _label},
    'vqa': {'question': _text, 'image': _path, 'dataset': _vqa_source, 'question_id': _identity},
}
OPTIONAL = {
    'nlvr': {'identifier': _as_given, 'kind': _as_given},
    'vqa': {'answer': _answer, 'answer_type': _as_given, 'question_type': _as_given, 'kind': _as_given},
}


def clean_row(row: object, kind: str) -> dict:
    """The fields of `row` that a `kind` of annotation knows, in one form; BadRow says what is wrong.

    Captions come as a list of strings (retrieval_train: one string), labels as booleans. An optional field that is
    absent or null stays out; fields that nobody reads are dropped.
    """
    if not isinstance(row, dict):
        raise BadRow(f'is a {type(row).__name__}, where every row must be a JSON object')
    clean = {}
    for name, check in REQUIRED[kind].items():
        if name not in row:
            raise BadRow(f"has no '{name}'; a row of kind {kind} needs {', '.join(REQUIRED[kind])}")
        clean[name] = check(row[name], name)
    for name, check in OPTIONAL.get(kind, {}).items():
        if row.get(name) is not None:
            clean[name] = check(row[name], name)
    return clean


def short(row: object, length: int = 100) -> str:
    """`row` in at most `length` characters, for messages."""
    text = repr(row)
    return text if len(text) <= length else text[: length - 3] + '...'


def checked_rows(rows: Iterator[object], file: str, kind: str) -> Iterator[dict]:
    """`clean_row` of each row; the ValueError of a bad one names file, row number and row."""
    for number, row in enumerate(rows):
        try:
            yield clean_row(row, kind)
        except BadRow as error:
            raise ValueError(f'{file}: row {number}, {short(row)}: {error}') from None


@contextmanager
def open_annotations(file: str) -> Iterator[BinaryIO]:
    """The file opened to read bytes; FileNotFoundError or ValueError in one sentence if that cannot be."""
    if os.path.isdir(file):
        raise ValueError(f'{file} is a folder, not an annotation file: name the JSON file in it')
    try:
        handle = open(file, 'rb', buffering=0)  # unbuffered: `read_rows` reads the same descriptor
    except FileNotFoundError:
        raise FileNotFoundError(
            f'the annotation file {file} does not exist: correct its path, or make it with python -m dataset.prepare'
        ) from None
    with handle:
        yield handle


def read_rows(handle: BinaryIO, file: str, lines: bool | None = None) -> Iterator[object]:
    """Each row of an opened annotation file as `json` decodes it; ValueError if it cannot be, or if there is none.

    lines: whether it is JSON Lines; by default its name tells.
    """
    lines = file.endswith('.jsonl') if lines is None else lines
    handle.seek(0)
    stream = open(handle.fileno(), encoding='utf-8-sig', newline='\n', closefd=False)
    rows = _json_lines(stream, file) if lines else _json_list(stream, file)
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{file} is not UTF-8 text ({error.reason} after row {count - 1}): convert or download it again'
        ) from None
    if not count:
        raise ValueError(f'{file} holds no rows: an annotation file needs at least one')


def _json_lines(stream: TextIO, file: str) -> Iterator[object]:
    for number, line in enumerate(stream, 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            cut = not line.endswith('\n')
            what = 'is cut off in its last line' if cut else 'is not valid JSON Lines'
            raise ValueError(
                f'{file} {what}: line {number}, column {error.colno}: {error.msg}; download or write the file again'
            ) from None
        yield row


def _json_list(stream: TextIO, file: str) -> Iterator[object]:
    decode = json.JSONDecoder().raw_decode
    text, passed, row = stream.read(CHUNK).lstrip(), 0, 0  # passed: characters of the file before `text`, for messages
    if not text:
        raise ValueError(f'{file} is empty: download or write the file again')
    if text[0] != '[':
        raise ValueError(
            f'{file} must be a JSON list of objects, but it starts with {short(text[:20])}: '
            f"convert a release's own files with python -m dataset.prepare"
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
            raise ValueError(f'{file} {what} at {where}: download or write the file again') from None
        yield value
        row, start = row + 1, end
    if text[at + 1 :].strip() or stream.read().strip():
        raise ValueError(f'{file} goes on after the end of its list, character {passed + at}: write the file again')


def _may_continue(error: Exception, text: str) -> bool:
    """Whether more text could have prevented `error`; the longest token that fails only at its end is 12 characters."""
    if isinstance(error, IndexError):
        return True
    return error.msg.startswith('Unterminated string') or error.pos > len(text) - 16
