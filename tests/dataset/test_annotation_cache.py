"""The cache of annotation files: rebuilt when it must be, shared by processes, never in the way."""

import multiprocessing
import os
import pickle
import warnings

import pytest

from dataset.annotations import cache, load_annotations
from tests.dataset.annotation_files import GOOD, caches, write


def test_a_changed_file_is_read_again_and_its_old_cache_removed(tmp_path):
    file = write(tmp_path / 'a.json', [{'image': 'a.jpg', 'caption': 'old'}])
    other = write(tmp_path / 'a.json.pretrain.json', [{'image': 'a.jpg', 'caption': 'other'}])  # must stay
    table = load_annotations([file, other], 'pretrain')
    before = caches(tmp_path)
    stat = os.stat(file)
    write(tmp_path / 'a.json', [{'image': 'a.jpg', 'caption': 'new'}])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time: only the contents tell
    assert load_annotations(file, 'pretrain')[0]['caption'] == ['new']
    assert table[0]['caption'] == ['old']  # who has the old one open continues with it
    after = caches(tmp_path)
    assert len(before) == len(after) == 2 and len(set(before) & set(after)) == 1


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: b'',
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[8:],
        lambda data: b'\0' * len(data),
        lambda data: data + b'garbage',
        lambda data: data[:2000] + b'?' + data[2001:],
        lambda data: data[:1000] + bytes(500) + data[1500:],
    ],
)
def test_a_damaged_cache_is_rebuilt(tmp_path, damage):
    file = write(tmp_path / 'a.json', [{'image': f'{i}.jpg', 'caption': 'x'} for i in range(100)])
    load_annotations(file, 'pretrain')
    [cache] = caches(tmp_path)
    complete = (tmp_path / cache).read_bytes()
    (tmp_path / cache).write_bytes(damage(complete))
    table = load_annotations(file, 'pretrain')
    assert len(table) == 100 and table[99]['image'] == '99.jpg'
    assert (tmp_path / cache).read_bytes() == complete


def test_a_cache_of_another_kind_or_folder_is_not_used(tmp_path):
    file = write(tmp_path / 'a.json', [GOOD['retrieval_train']])
    assert load_annotations(file, 'retrieval_train')[0] == GOOD['retrieval_train']
    assert load_annotations(file, 'pretrain')[0]['caption'] == ['x']
    folder = tmp_path / 'caches'
    (tmp_path / 'b').mkdir()
    same_name = write(tmp_path / 'b' / 'a.json', [{'image': 'b.jpg', 'caption': 'y'}])
    for _ in range(2):  # two files of one name share the folder and keep each other's cache
        assert load_annotations([file, same_name], 'pretrain', str(folder))[1]['image'] == 'b.jpg'
        assert len(caches(folder)) == 2
    assert len(caches(tmp_path)) == 2 and caches(tmp_path / 'b') == []


def test_if_the_folder_is_not_writable_the_temporary_folder_is_used(tmp_path, monkeypatch):
    data, temporary = tmp_path / 'data', tmp_path / 'temporary'
    data.mkdir()
    temporary.mkdir()
    file = write(data / 'a.json', [GOOD['pretrain']])
    monkeypatch.setattr(cache.tempfile, 'gettempdir', lambda: str(temporary))

    def refuse(path, mode='r', **kwargs):
        if str(path).startswith(str(data)) and 'w' in mode:
            raise PermissionError(13, 'Permission denied')
        return open(path, mode, **kwargs)

    monkeypatch.setattr('utils.files.open', refuse, raising=False)  # not chmod, which root would not notice
    with pytest.warns(UserWarning, match='no annotation cache can be written in .*data .Permission denied.'):
        assert len(load_annotations(file, 'pretrain')) == 1
    [folder] = temporary.iterdir()
    assert len(caches(folder)) == 1 and caches(data) == []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(load_annotations(file, 'pretrain')) == 1  # found there again
    monkeypatch.setattr(cache.tempfile, 'gettempdir', lambda: file)  # not writable either: not a folder
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='give a cache folder with room'):
        load_annotations(file, 'pretrain')


def test_temporary_files_of_a_killed_build_are_removed(tmp_path):
    file = write(tmp_path / 'a.json', [GOOD['pretrain']])
    for name, age in (('old', 7200), ('young', 0)):
        path = tmp_path / f'.a.json.pretrain.0123456789abcdef.arrow.{name}.tmp'
        path.write_bytes(b'half')
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    load_annotations(file, 'pretrain')
    assert [name.split('.')[-2] for name in caches(tmp_path) if name.endswith('.tmp')] == ['young']


def _load_and_sum(file: str) -> int:
    return sum(len(row['caption'][0]) for row in load_annotations(file, 'pretrain'))


def _sum(table) -> int:
    return sum(len(row['caption'][0]) for row in table)


def test_many_processes_build_at_once(tmp_path):
    file = write(tmp_path / 'a.json', [{'image': 'a.jpg', 'caption': 'x' * (i % 7)} for i in range(2000)])
    expected = sum(i % 7 for i in range(2000))
    with multiprocessing.get_context('fork').Pool(6) as pool:
        assert pool.map(_load_and_sum, [file] * 6, chunksize=1) == [expected] * 6
    assert len(caches(tmp_path)) == 1


@pytest.mark.slow
def test_only_paths_are_pickled_and_workers_read_the_same_rows(tmp_path):
    file = write(tmp_path / 'a.json', [{'image': 'a.jpg', 'caption': 'x' * (i % 7)} for i in range(2000)])
    table = load_annotations(file, 'pretrain')
    pickled = pickle.dumps(table)
    assert len(pickled) < 1000 and list(pickle.loads(pickled)) == list(table)
    for method in ('fork', 'spawn'):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(_sum, (table,)) == _sum(table)
    os.remove(tmp_path / caches(tmp_path)[0])
    with pytest.raises(ValueError, match='was removed or damaged while in use'):
        pickle.loads(pickled)
