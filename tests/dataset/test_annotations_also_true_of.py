"""`also_true_of` of pre-training rows: kept by the cache, and by `dataset.prepare check`."""

import json
import pickle

import pytest

from dataset.annotations import cache, load_annotations
from tests.dataset.annotation_files import GOOD, write
from tests.dataset.prepare.tools import jpeg, read, run

PLAIN = [{'image': f'{i}.jpg', 'caption': ['x', '"also_true_of"']} for i in range(40)]
ROWS = [row | ({'also_true_of': [f'{i + 1}.jpg', 'ä/é.jpg']} if i % 7 == 6 else {}) for i, row in enumerate(PLAIN)]


def test_rows_with_and_without_it_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, 'ROWS_PER_BATCH', 16)
    files = [write(tmp_path / 'plain.json', PLAIN), write(tmp_path / 'truth.json', ROWS)]
    for _ in range(2):  # the second time from the caches
        table = load_annotations(files, 'pretrain')
        assert list(table) == list(pickle.loads(pickle.dumps(table))) == PLAIN + ROWS
        assert table.has('also_true_of')
    assert not load_annotations(files[0], 'pretrain').has('also_true_of')


@pytest.mark.parametrize('value, there', [(None, False), ([], True), (['b.jpg'], True)])
def test_null_is_absent_and_an_empty_list_is_not(tmp_path, value, there):
    table = load_annotations(write(tmp_path / 'a.json', [GOOD['pretrain'] | {'also_true_of': value}]), 'pretrain')
    assert table.has('also_true_of') == there and table[0].get('also_true_of') == value


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
