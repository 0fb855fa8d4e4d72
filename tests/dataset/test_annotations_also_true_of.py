"""`also_true_of` of pre-training rows: kept by the cache, checked, and free for the files that do not have it."""

import json
import os
import pickle

import pyarrow as pa
import pytest

from dataset.annotations import cache, load_annotations, schema
from tests.dataset.annotation_files import GOOD, caches, write
from tests.dataset.prepare.tools import jpeg, read, run

PLAIN = [{'image': f'{i}.jpg', 'caption': ['x', '"also_true_of"']} for i in range(40)]
ROWS = [row | ({'also_true_of': [f'{i + 1}.jpg', 'ä/é.jpg']} if i % 7 == 6 else {}) for i, row in enumerate(PLAIN)]


def columns(path):
    return pa.ipc.open_file(pa.BufferReader(path.read_bytes()[: -cache.DIGEST])).schema.names


def test_rows_with_and_without_it_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, 'ROWS_PER_BATCH', 16)
    files = [write(tmp_path / 'plain.json', PLAIN), write(tmp_path / 'truth.json', ROWS)]
    for _ in range(2):  # the second time from the caches
        table = load_annotations(files, 'pretrain')
        assert list(table) == list(pickle.loads(pickle.dumps(table))) == PLAIN + ROWS
        wanted = [row.get('also_true_of') for row in PLAIN + ROWS]
        assert table.column('also_true_of') == wanted
        assert table.holding('also_true_of').tolist() == [value is not None for value in wanted]
        assert table.has('also_true_of')
    plain, truth = (tmp_path / name for name in caches(tmp_path))
    assert columns(plain) == ['image', 'caption'] and columns(truth) == ['image', 'caption', 'also_true_of']
    assert not load_annotations(files[0], 'pretrain').has('also_true_of')
    with pytest.raises(ValueError, match="no column 'also_true_of': they have image, caption"):
        load_annotations(files[0], 'pretrain').column('also_true_of')


@pytest.mark.parametrize('value, there', [(None, False), ([], True), (['b.jpg'], True)])
def test_null_is_absent_and_an_empty_list_is_not(tmp_path, value, there):
    table = load_annotations(write(tmp_path / 'a.json', [GOOD['pretrain'] | {'also_true_of': value}]), 'pretrain')
    assert table.has('also_true_of') == there and table[0].get('also_true_of') == value


def test_a_cache_of_before_is_kept_for_a_file_without_it_only(tmp_path, monkeypatch):
    files = [write(tmp_path / name, rows) for name, rows in (('plain.json', PLAIN), ('truth.json', ROWS))]
    with monkeypatch.context() as patch:  # as it was: the field was unknown, so ignored
        patch.setattr(cache, 'RARE', {})
        patch.delitem(schema.OPTIONAL, 'pretrain')
        assert list(load_annotations(files, 'pretrain')) == PLAIN + PLAIN
    before = {name: os.stat(tmp_path / name).st_ino for name in caches(tmp_path)}
    assert list(load_annotations(files, 'pretrain')) == PLAIN + ROWS
    after = {name: os.stat(tmp_path / name).st_ino for name in caches(tmp_path)}
    assert [name for name in before if after.get(name) == before[name]] == [caches(tmp_path)[0]]
    assert len(after) == 2  # that of the other file was replaced


@pytest.mark.parametrize('shift', [0, 1, 7, 13, 14, 15])
def test_it_is_found_across_the_blocks_that_are_read(tmp_path, shift):
    """The name of the field starts up to 15 bytes before the end of the first MiB."""
    head = '[{"image": "a.jpg", "caption": "'
    caption = 'x' * ((1 << 20) - shift - len(head) - len('", '))
    text = head + caption + '", "also_true_of": ["b.jpg"]}]'
    assert text.index('"also_true_of"') == (1 << 20) - shift
    assert load_annotations(write(tmp_path / 'a.json', text), 'pretrain')[0]['also_true_of'] == ['b.jpg']


def test_check_passes_it_on_and_moves_its_paths(tmp_path):
    for name in 'abc':
        jpeg(tmp_path / f'new/{name}.jpg')
    rows = [
        {'image': 'old/a.jpg', 'caption': 'x', 'also_true_of': ['old/b.jpg', 'elsewhere.jpg']},
        {'image': 'old/b.jpg', 'caption': ['y', 'z']},
        {'image': 'old/c.jpg', 'caption': 'x', 'also_true_of': 'old/a.jpg'},
    ]
    command = ['check', write(tmp_path / 'f.json', rows), '--image-root', tmp_path, '--workers', 1]
    run(*command, '--out', tmp_path / 'g.json', '--rebase', 'old=new', '--drop-duplicates')
    moved = json.loads(json.dumps(rows[:2]).replace('old/', 'new/'))
    assert read(tmp_path / 'g.json') == moved
    [dropped] = read(tmp_path / 'g.report.json')['dropped rows']
    assert dropped['row'] == 2 and dropped['reason'].startswith("'also_true_of' must be a list of the paths of images")
