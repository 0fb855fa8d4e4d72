"""Text files: UTF-8, UTF-16 and UTF-32 with a byte order mark, or the encoding that `--encoding` names.

`--encoding` is for the text that is not UTF-8: files of a collection, and lines of a file, are often of both kinds.
"""

import argparse
import codecs
import io
import unicodedata
from collections.abc import Iterator
from typing import BinaryIO

from dataset.annotations.json_reader import short
from dataset.files import open_regular, refuse_packed
from dataset.prepare.common import Summary
from utils.errors import InputError
from utils.files import marked_encoding

HEAD = 1 << 16  # bytes looked at to find the encoding and the ends of lines
NUL_SHARE = 0.2  # of the bytes of UTF-16 text in a Latin script it is a half; a damaged text has a few
PRINTABLE = bytes(range(32, 127))
ENCODING_REMEDY = (
    'give --encoding (such as cp1252 for Western European, gb18030 for Chinese, utf-16-le for UTF-16 without a byte '
    'order mark), or convert the file to UTF-8'
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


def read_lines(path: str, encoding: str | None, summary: Summary) -> Iterator[str]:
    """The lines of a text file, with their ends. encoding: of the lines that are not UTF-8, see `choose_encoding`.

    Lines end in LF or CR LF, or, if the file has no LF, in CR. Byte order marks are removed. Lines that are decoded by
    `encoding` are noted. InputError names the line that cannot be decoded, and refuses a compressed file. OSError if
    the file cannot be opened.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
        file.seek(0)
        chosen, is_marked = choose_encoding(head, path, encoding), marked_encoding(head) is not None
        if _is_wide(chosen) and not is_marked and _is_plain_utf8(file):
            chosen = 'utf-8'
        if _is_wide(chosen):
            for line in _wide_lines(file, path, chosen, _ends_in_cr(head.decode(chosen, 'replace'))):
                yield line if is_marked else _noted(line, chosen, summary)
            return
        lines = _lines_of_cr(file) if _ends_in_cr(head.decode('latin-1')) else file
        for number, line in enumerate(lines, 1):
            yield _decode(line, chosen, f'{path}, line {number}', summary)


def decode_text(data: bytes, name: str, encoding: str | None, summary: Summary) -> str:
    """The text of a short file or of a member of an archive, decoded as by `read_lines`. InputError names it."""
    chosen = choose_encoding(data[:HEAD], name, encoding)
    if not _is_wide(chosen):
        return _decode(data, chosen, name, summary)
    is_marked = marked_encoding(data) is not None
    if not is_marked and _is_plain_utf8(io.BytesIO(data)):
        return data.decode()
    try:
        text = data.decode(chosen).lstrip('\ufeff')
    except UnicodeError as error:
        raise _undecodable(name, error) from None
    return text if is_marked else _noted(text, chosen, summary)


def captions_in(text: str) -> list[str]:
    """The lines of a text, without blank ones. They end in LF or CR LF, or, if there is no LF, in CR."""
    return [line for line in text.split('\r' if _ends_in_cr(text) else '\n') if line.strip()]


def choose_encoding(head: bytes, name: str, encoding: str | None) -> str:
    """The encoding of a text that begins with the bytes `head`: a byte order mark decides, then `encoding`, then UTF-8.

    Text of one byte per letter that is valid UTF-8 is UTF-8 nevertheless, see `_decode`. InputError if `head` is not
    text, or is UTF-16 or UTF-32 text and nothing says so.
    """
    refuse_packed(head, name)
    if (marked := marked_encoding(head)) and _is_wide(marked):
        return marked
    chosen = codecs.lookup(encoding or 'utf-8').name.removesuffix('-sig')
    if marked:
        return 'utf-8' if _is_wide(chosen) else chosen
    if not _is_wide(chosen) and (wide := _unmarked_encoding(head)):
        remedy = 'convert the file to UTF-8' if encoding else f'give --encoding {wide}, or convert the file to UTF-8'
        raise InputError(f'{name} has NUL bytes like {wide.upper()} text without a byte order mark: {remedy}')
    return chosen


def _is_wide(encoding: str) -> bool:
    return encoding.startswith(('utf-16', 'utf-32'))


def _unmarked_encoding(head: bytes) -> str | None:
    """The encoding of UTF-16 or UTF-32 text without a byte order mark, which NUL bytes show; None for other text."""
    nuls = [head[start::4].count(0) for start in range(4)]
    for order, zeros in (('le', nuls[2:]), ('be', nuls[:2])):
        if head and min(zeros) >= max(len(head) // 4, 1):
            return f'utf-32-{order}'
    if sum(nuls) > NUL_SHARE * len(head):
        return 'utf-16-le' if nuls[1] + nuls[3] >= nuls[0] + nuls[2] else 'utf-16-be'
    is_ascii = len(head.translate(None, PRINTABLE)) < NUL_SHARE * len(head)
    if not sum(nuls) or is_ascii or _begins_as_utf8(head):
        return None
    fitting = [
        wide for wide in ('utf-16-le', 'utf-16-be') if _is_text(head[: len(head) // 2 * 2].decode(wide, 'replace'))
    ]
    return fitting[0] if len(fitting) == 1 else None


def _is_text(text: str) -> bool:
    """Whether a text has lines and no control characters, unknown characters or halves of pairs."""
    ends = [char for char in text if unicodedata.category(char).startswith('C')]
    return bool(ends) and set(ends) <= {'\n', '\r', '\t'} and '\ufffd' not in text.rstrip('\ufffd')


def _begins_as_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder('utf-8')().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _is_plain_utf8(file: BinaryIO) -> bool:
    """Whether a file is UTF-8 text without NUL."""
    decoder = codecs.getincrementaldecoder('utf-8')()
    try:
        while data := file.read(HEAD):
            decoder.decode(data)
            if 0 in data:
                return False
        decoder.decode(b'', final=True)
    except UnicodeDecodeError:
        return False
    finally:
        file.seek(0)
    return True


def _ends_in_cr(text: str) -> bool:
    return '\r' in text and '\n' not in text


def _lines_of_cr(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file that end in CR, with LF instead."""
    rest = b''
    while data := file.read(HEAD):
        *lines, rest = (rest + data).replace(b'\r\n', b'\n').replace(b'\r', b'\n').split(b'\n')
        yield from (line + b'\n' for line in lines)
    if rest:
        yield rest


def _wide_lines(file: BinaryIO, path: str, encoding: str, ends_in_cr: bool) -> Iterator[str]:
    try:
        for line in io.TextIOWrapper(file, encoding=encoding, newline=None if ends_in_cr else '\n'):
            yield line.lstrip('\ufeff')
    except UnicodeError as error:
        raise _undecodable(path, error) from None


def _decode(data: bytes, encoding: str, place: str, summary: Summary) -> str:
    """The text of bytes: UTF-8 if they are valid UTF-8 and not ASCII, otherwise text in `encoding`.

    A few short texts are valid in both, with as many letters: they are decoded by `encoding`, and noted.
    """
    while data.startswith(codecs.BOM_UTF8):  # at the start, and where files were put together
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if encoding == 'utf-8':
            raise _undecodable(place, error) from None
        text = None
    if encoding == 'utf-8':
        return text
    try:
        other = data.decode(encoding)
    except UnicodeError as error:
        if text is not None and not text.isascii():
            return text
        raise _undecodable(place, error) from None
    if text is not None and not text.isascii():
        if len(text) < len(other):  # the right one of two readings of several bytes per letter is the shorter one
            return text
        if text != other:
            example = f'{short(other.strip(), 40)}, not {short(text.strip(), 40)}'
            summary.note(f'text that is valid as {encoding} and as UTF-8, decoded as {encoding}', example)
    return _noted(other, encoding, summary)


def _noted(text: str, encoding: str, summary: Summary) -> str:
    """A text that was decoded by `--encoding`; it is noted if the encoding matters."""
    if not text.isascii():
        line = next(line for line in text.splitlines() if not line.isascii())
        summary.note(f'text decoded as {encoding}, not UTF-8', short(line.strip(), 60))
    return text


def _undecodable(place: str, error: UnicodeError) -> InputError:
    if not isinstance(error, UnicodeDecodeError):  # a byte order mark that is missing in the middle, for example
        return InputError(f'{place} cannot be decoded ({error}): {ENCODING_REMEDY}')
    name = error.encoding.upper()
    return InputError(f'{place}: byte 0x{error.object[error.start]:02x} is not {name} text: {ENCODING_REMEDY}')
