"""Text files in every encoding that is unambiguous: UTF-8, or UTF-16 and UTF-32 with a byte order mark."""

import argparse
import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from dataset.files import open_regular, refuse_packed
from utils.errors import InputError
from utils.files import marked_encoding

HEAD = 1 << 16  # bytes looked at to find the encoding and the ends of lines
NUL_SHARE = 0.2  # of the bytes of UTF-16 text in a Latin script it is a half; a damaged text has a few
ENCODING_REMEDY = (
    'give --encoding (such as cp1252 for Western European, gb18030 for Chinese), or convert the file to UTF-8'
)


def encoding_name(word: str) -> str:
    """An argument that is the name of a text encoding that Python knows."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=word)
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(
            f'{word!r} is not the name of a text encoding, such as utf-8, cp1252, gb18030 or utf-16'
        ) from None
    return word


def read_lines(path: str, encoding: str | None = None) -> Iterator[str]:
    """The lines of a text file, with their ends. A byte order mark decides the encoding, then `encoding`, then UTF-8.

    Lines end in LF or CR LF, or, if the file has no LF, in CR. InputError names the line that cannot be decoded, and
    refuses a compressed file. OSError if the file cannot be opened.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
        file.seek(0)
        encoding = choose_encoding(head, path, encoding)
        wide = codecs.lookup(encoding).name.startswith(('utf-16', 'utf-32'))
        ends = codecs.lookup(encoding).name != 'utf-7' and not wide and b'\r' in head and b'\n' not in head
        if wide or ends:
            yield from _decoded_stream(file, path, encoding, '\n' if wide else None)
            return
        for number, line in enumerate(file, 1):
            try:
                yield line.decode(encoding if number == 1 else encoding.removesuffix('-sig'))
            except UnicodeDecodeError as error:
                raise _undecodable(f'{path}, line {number}', error) from None


def _decoded_stream(file: BinaryIO, path: str, encoding: str, newline: str | None) -> Iterator[str]:
    try:
        yield from io.TextIOWrapper(file, encoding=encoding, newline=newline)
    except UnicodeError as error:
        raise _undecodable(path, error) from None


def decode_text(data: bytes, name: str, encoding: str | None = None) -> str:
    """The text of a short file or of a member of an archive, decoded as by `read_lines`. InputError names it."""
    try:
        return data.decode(choose_encoding(data[:HEAD], name, encoding))
    except UnicodeError as error:
        raise _undecodable(name, error) from None


def captions_in(text: str) -> list[str]:
    """The lines of a text, without blank ones. They end in LF or CR LF, or, if there is no LF, in CR."""
    return [line for line in text.split('\n' if '\n' in text else '\r') if line.strip()]


def choose_encoding(head: bytes, name: str, encoding: str | None) -> str:
    """The encoding of a text that begins with the bytes `head`. InputError if it is not text."""
    refuse_packed(head, name)
    if marked := marked_encoding(head):
        return marked
    if encoding is None and head.count(0) > NUL_SHARE * len(head):
        raise InputError(
            f'{name} has NUL bytes like UTF-16 text without a byte order mark: give --encoding utf-16-le (or -be), or '
            'convert the file to UTF-8'
        )
    return encoding or 'utf-8'


def _undecodable(place: str, error: UnicodeError) -> InputError:
    if not isinstance(error, UnicodeDecodeError):  # a byte order mark that is missing in the middle, for example
        return InputError(f'{place} cannot be decoded ({error}): {ENCODING_REMEDY}')
    name = error.encoding.upper()
    return InputError(f'{place}: byte 0x{error.object[error.start]:02x} is not {name} text: {ENCODING_REMEDY}')
