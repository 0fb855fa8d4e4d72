"""Files that are complete or absent."""

import os

import pytest

from utils.files import atomic_write


def write(path, content, **options):
    with atomic_write(path, **options) as file:
        file.write(content)


@pytest.mark.parametrize('options', [{}, {'sync': True}, {'unique': True}])
def test_a_file_is_written_in_a_new_folder(tmp_path, options):
    path = tmp_path / 'new' / 'folder' / 'a.txt'
    write(path, 'caf\u00e9', **options)
    assert path.read_bytes() == 'caf\u00e9'.encode()
    write(str(path), b'\0\xff', mode='wb', **options)
    assert path.read_bytes() == b'\0\xff'
    assert os.listdir(path.parent) == ['a.txt']


@pytest.mark.parametrize('unique', [False, True])
@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_removes_the_temporary_one(tmp_path, error, unique):
    path = tmp_path / 'a.txt'
    write(path, 'old')
    with pytest.raises(error), atomic_write(path, unique=unique) as file:
        file.write('new')
        file.flush()
        assert path.read_text() == 'old' and len(os.listdir(tmp_path)) == 2
        raise error
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_a_failure_to_rename_keeps_the_old_file(tmp_path, monkeypatch):
    write(tmp_path / 'a.txt', 'old')

    def fail(*_):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='no space left'):
        write(tmp_path / 'a.txt', 'new')
    assert (tmp_path / 'a.txt').read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_several_writers_need_unique_temporary_files(tmp_path):
    path = tmp_path / '.hidden'
    with atomic_write(path, unique=True) as first, atomic_write(path, unique=True) as second:
        assert first.name != second.name and len(os.listdir(tmp_path)) == 2
        first.write('first')
        second.write('second')
    assert path.read_text() == 'first' and os.listdir(tmp_path) == ['.hidden']  # the inner block ended before


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, original=original: (calls.append(name), original(*args)))
    write(tmp_path / 'a.txt', 'x', sync=True)
    assert calls == ['fsync', 'replace']
    write(tmp_path / 'a.txt', 'y')
    assert calls == ['fsync', 'replace', 'replace']
