"""Files that are complete or absent."""

import errno
import os
import zipfile

import pytest
import torch

from utils.files import archive_fault, atomic_write, remove_temporaries, temporary_name


def write(path, content, **options):
    with atomic_write(path, **options) as file:
        file.write(content)


@pytest.mark.parametrize('options', [{}, {'sync': True}])
def test_a_file_is_written_in_a_new_folder(tmp_path, options):
    path = tmp_path / 'new' / 'folder' / 'a.txt'
    write(path, 'caf\u00e9', **options)
    assert path.read_bytes() == 'caf\u00e9'.encode()
    write(str(path), b'\0\xff', mode='wb', **options)
    assert path.read_bytes() == b'\0\xff'
    assert os.listdir(path.parent) == ['a.txt']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_removes_the_temporary_one(tmp_path, error):
    path = tmp_path / 'a.txt'
    write(path, 'old')
    with pytest.raises(error), atomic_write(path) as file:
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


def test_several_writers_have_temporary_files_of_their_own(tmp_path):
    path = tmp_path / '.hidden'
    with atomic_write(path) as first, atomic_write(path) as second:
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


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / 'a.txt'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert caught.value.filename == str(tmp_path / 'a.txt') and os.listdir(tmp_path) == []


def test_only_temporary_files_of_runs_are_removed(tmp_path):
    kept = ['a.txt', '.hidden', '.a.tmp', '.x.pretrain.0123456789abcdef.arrow.12-01234567.tmp']
    for name in (*kept, temporary_name(tmp_path / 'checkpoint_00.pth').name, temporary_name(tmp_path / '.b').name):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_every_flipped_bit_of_an_archive_is_noticed(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'weight': torch.arange(500.0), 'name': 'x', 'epoch': 3}, path)
    assert archive_fault(path) is None
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.file_size > 1]
        original = {member.filename: archive.read(member) for member in members}
    for member in members:
        at = content.index(original[member.filename])
        for offset in (0, member.file_size // 2, member.file_size - 1):
            damaged = bytearray(content)
            damaged[at + offset] ^= 1 << offset % 8
            path.write_bytes(damaged)
            assert archive_fault(path) is not None, (member.filename, offset)
    for at in range(content.rindex(members[-1].filename.encode()) - 2000, len(content)):  # the directory of the archive
        for bit in (1, 8, 64):
            damaged = bytearray(content)
            damaged[at] ^= bit
            path.write_bytes(damaged)
            archive_fault(path)  # whatever it finds, it does not raise
    path.write_bytes(content[: len(content) // 2])
    assert archive_fault(path) is None  # no archive at all: torch.load refuses it
