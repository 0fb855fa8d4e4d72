"""Encodings of text files: what is unambiguous is read, the rest is refused with the line."""

import argparse

import pytest

from dataset.prepare.common import Summary
from dataset.prepare.texts import captions_in, choose_encoding, decode_text, encoding_name, read_lines
from tests.dataset.prepare.tools import read, refuse, run, write
from utils.errors import InputError

TEXT = 'a café\nzwei Sätze, 日本\n'


def lines_of(path: str, encoding: str | None = None) -> list[str]:
    return list(read_lines(path, encoding, Summary('')))


def text_of(data: bytes, name: str = 'a.txt', encoding: str | None = None) -> str:
    return decode_text(data, name, encoding, Summary(''))


def write_bytes(path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
def test_a_byte_order_mark_decides(tmp_path, encoding):
    path = write_bytes(tmp_path / 'a.txt', TEXT.encode(encoding))
    assert lines_of(path) == TEXT.splitlines(keepends=True)
    assert text_of(TEXT.encode(encoding), 'a.txt') == TEXT
    if encoding != 'utf-8':
        assert lines_of(path, 'cp1252') == TEXT.splitlines(keepends=True)


@pytest.mark.parametrize(
    ('encoding', 'text'), [('cp1252', 'it’s\nça\n'), ('gb18030', '一\n颗\n'), ('utf-16-le', 'a\nb\n')]
)
def test_an_encoding_is_taken_from_the_command_line(tmp_path, encoding, text):
    path = write_bytes(tmp_path / 'a.txt', text.encode(encoding))
    assert lines_of(path, encoding) == text.splitlines(keepends=True)
    with pytest.raises(InputError, match='--encoding'):
        lines_of(path)


@pytest.mark.parametrize(
    ('encoding', 'text'), [('cp1252', 'à côté'), ('gb18030', '一颗红色的星星'), ('shift_jis', 'ソファ、表示')]
)
def test_lines_that_are_utf8_stay_so(tmp_path, encoding, text):
    """Of one file, and of several: --encoding is for the text that is not UTF-8."""
    lines = [f'{text}\n'.encode(), f'{text}!\n'.encode(encoding), b'plain\n', '\U0001f600\n'.encode()]
    path, summary = write_bytes(tmp_path / 'a.txt', b''.join(lines)), Summary('')
    assert list(read_lines(path, encoding, summary)) == [f'{text}\n', f'{text}!\n', 'plain\n', '\U0001f600\n']
    assert summary.noted == {f'text decoded as {encoding}, not UTF-8': 1}
    assert summary.first.popitem()[1] == repr(f'{text}!')
    texts = [decode_text(line, 'a.txt', encoding, summary) for line in lines]
    assert texts == [f'{text}\n', f'{text}!\n', 'plain\n', '\U0001f600\n']


@pytest.mark.parametrize(
    ('encoding', 'text'), [('iso2022_jp', '星が赤い\n犬\n'), ('utf-7', 'café\n'), ('utf-16-le', '一颗红色\na\n')]
)
def test_ascii_bytes_may_be_other_letters(tmp_path, encoding, text):
    data, summary = text.encode(encoding), Summary('')
    assert list(read_lines(write_bytes(tmp_path / 'a.txt', data), encoding, summary)) == text.splitlines(True)
    assert text_of(data, 'a.txt', encoding) == text
    assert summary.noted.total() == sum(not line.isascii() for line in text.splitlines())


def test_a_text_that_both_encodings_explain_is_noted(tmp_path):
    path, summary = write_bytes(tmp_path / 'a.txt', '一\n'.encode('gb18030')), Summary('')
    assert list(read_lines(path, 'gb18030', summary)) == ['一\n']
    assert summary.first['text that is valid as gb18030 and as UTF-8, decoded as gb18030'] == "'一', not 'һ'"


@pytest.mark.parametrize('ends', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'utf-16-be', 'cp1252'])
def test_every_end_of_lines_in_every_encoding(tmp_path, encoding, ends):
    text = ends.join(['été', 'b', 'c', ''])
    lines = lines_of(write_bytes(tmp_path / 'a.txt', text.encode(encoding)), encoding)
    assert [line.rstrip('\r\n') for line in lines] == ['été', 'b', 'c']
    assert all(line.endswith('\n') for line in lines)


@pytest.mark.parametrize('mark', ['utf-8', 'utf-16-le', 'utf-32-be'])
def test_byte_order_marks_are_removed(tmp_path, mark):
    """Two at the start, and one where two files were put together."""
    data = '\ufeff\ufeffimage\n'.encode(mark) + ('\ufeffnext\n'.encode(mark) if mark == 'utf-8' else b'')
    for encoding in (None, 'cp1252', 'gb18030'):
        lines = lines_of(write_bytes(tmp_path / 'a.txt', data), encoding)
        assert lines == ['image\n', 'next\n'][: len(lines)] and text_of(data, 'a', encoding)[:6] == 'image\n'


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be', 'utf-32-le', 'utf-32-be'])
@pytest.mark.parametrize('text', ['image,caption\na.jpg,a red star\n', 'a.jpg,' + '一颗红色的星星在天上' * 90 + '\r\n'])
def test_utf16_without_a_mark_is_recognized(encoding, text):
    data = text.encode(encoding)
    with pytest.raises(InputError, match=f'give --encoding {encoding}, or convert'):
        text_of(data, 'a.csv')
    with pytest.raises(InputError, match=f'like {encoding.upper()} text without a byte order mark: convert the file'):
        text_of(data, 'a.csv', 'gb18030')
    assert text_of(data, 'a.csv', encoding) == text
    for other in ('a\0 red star\n', 'caption number 0\n', 'café'):  # the other files of the folder
        assert text_of(other.encode(), 'b.txt') == other
    for other in ('caption number 0\n', 'café', ''):
        assert text_of(other.encode(), 'b.txt', encoding) == other
    with pytest.raises(InputError, match='byte 0xe9 is not UTF-8'):
        text_of(b'a caf\xe9 with a red star\0\n' * 2, 'c.txt')


def test_the_line_that_cannot_be_decoded_is_named(tmp_path):
    lines = [b'plain\n'] * 5000 + [b'it\x92s\n'] + [b'plain\n'] * 5000
    with pytest.raises(InputError, match=r'a\.txt, line 5001: byte 0x92 is not UTF-8'):
        lines_of(write_bytes(tmp_path / 'a.txt', b''.join(lines)))


def test_lines_may_end_in_cr(tmp_path):
    assert [line.strip() for line in lines_of(write_bytes(tmp_path / 'mac.txt', b'one\rtwo\rthree'))] == [
        'one',
        'two',
        'three',
    ]
    assert captions_in('one\rtwo\r') == ['one', 'two'] and captions_in('a\r\n\r\nb') == ['a\r', 'b']
    assert lines_of(write_bytes(tmp_path / 'dos.txt', b'one\r\ntwo\r\n')) == ['one\r\n', 'two\r\n']
    cut = write_bytes(tmp_path / 'cut.txt', 'ab'.encode('utf-16')[:-1])
    with pytest.raises(InputError, match='cut.txt'):
        lines_of(cut)


@pytest.mark.parametrize(
    ('head', 'what'),
    [(b'\x1f\x8b\x08', 'gzip'), (b'PK\x03\x04', 'Excel'), (b'version https://git-lfs.github.com/spec/v1\n', 'git-lfs')],
)
def test_what_is_not_text_is_refused(head, what):
    with pytest.raises(InputError, match=what):
        choose_encoding(head, 'a.csv', None)


def test_names_of_encodings_are_checked(tmp_path, capsys):
    for name in ('nonsense', 'base64', ''):
        with pytest.raises(argparse.ArgumentTypeError, match='is not the name of a text encoding'):
            encoding_name(name)
    with pytest.raises(SystemExit):
        run('folder', tmp_path, '--out', tmp_path / 'o.json', '--encoding', 'rot13')
    assert "--encoding: 'rot13' is not the name" in capsys.readouterr().err


def test_every_text_that_a_command_reads_is_decoded(tmp_path):
    """One byte that is not UTF-8, in each place where text is read."""
    token = write(tmp_path / 'r.token', ''.join(f'{name}.jpg#0\tdog\n' for name in ('10001', '10002', '10003')))
    bad = write_bytes(tmp_path / 'bad.txt', b'10001.jpg\ncaf\xe9.jpg\n')
    marked = write_bytes(tmp_path / 'marked.txt', '10001.jpg\n'.encode('utf-16'))
    for option in ('--val', '--test', '--exclude'):
        assert 'bad.txt, line 2: byte 0xe9' in refuse('flickr30k', token, option, bad, '--out', tmp_path / 'a')
        run('flickr30k', token, option, marked, '--out', tmp_path / 'a')
        assert [row['image'] for row in read(tmp_path / 'a/flickr30k_train.json')] == ['10002.jpg', '10003.jpg']
    latin = 'caf\xe9\thttp://a.org/a.jpg\n'.encode('latin-1')
    sbu = [write(tmp_path / 'u.txt', 'http://a.org/a.jpg\n'), write_bytes(tmp_path / 'c.txt', b'caf\xe9\n')]
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.jpg').touch()
    out = ['--images', tmp_path / 'images', '--out', tmp_path / 'o.json']
    for command in (
        ['flickr30k', write_bytes(tmp_path / 'b.token', b'1.jpg#0\tcaf\xe9\n'), '--out', tmp_path / 'o'],
        ['cc3m', write_bytes(tmp_path / 't.tsv', latin), *out],
        ['sbu', *sbu, *out],
    ):
        assert 'line 1: byte 0xe9 is not UTF-8' in refuse(*command)
        run(*command, '--encoding', 'latin-1')
    assert read(tmp_path / 'o.json')[0]['caption'] == 'café'
    assert read(tmp_path / 'o/flickr30k_train.json')[0]['caption'] == 'café'
