"""The order that `--index_warmstart` starts with."""

import sys

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.sparse import csc_matrix

from dataset.grit.warmstart import read_mat, saved_order
from tests.helpers import read_pth
from utils.errors import InputError


def test_the_order_of_a_checkpoint_includes_the_dropped_remainder(pretrained):
    order = saved_order(str(pretrained.parent))
    plan = read_pth(pretrained)['ranks'][0]['plan']
    assert torch.equal(order[: len(plan['order'])], plan['order'])
    assert sorted(order.tolist()) == list(range(62))


@pytest.mark.parametrize(
    'arrays, reason',
    [
        ({}, 'one array of numbers'),
        ({'a': [1, 2], 'b': [3]}, 'one array of numbers'),
        ({'a': ['word']}, 'one array of numbers'),
        ({'a': {'b': [1]}}, 'one array of numbers'),
        ({'a': csc_matrix([[1.0, 2.0]])}, 'one array of numbers'),
        ({'a': [1.0, np.nan]}, 'integers'),
        ({'a': [1.5, 2.0]}, 'integers'),
        ({'a': np.array([2**63], np.uint64)}, 'integers'),
        ({'a': []}, 'integers'),
    ],
)
def test_other_mat_files_are_refused(tmp_path, arrays, reason):
    path = str(tmp_path / 'total_indices.mat')
    savemat(path, arrays)
    with pytest.raises(
        InputError, match=rf'total_indices.mat: not a readable order .*{reason}.*drop --index_warmstart'
    ):
        read_mat(path)


def cut(content):
    return content[: len(content) // 2]


def of_no_type(content):
    """The type of the numbers is none that exists: SciPy crashes."""
    return content[:192] + b'\xff' + content[193:]


@pytest.mark.parametrize(
    'damage', [cut, of_no_type, lambda content: b'', lambda content: bytes(200), lambda content: b'<html>' * 50]
)
def test_a_damaged_mat_file_is_one_line(tmp_path, damage):
    path = tmp_path / 'total_indices.mat'
    savemat(path, {'total_indices': np.arange(100.0)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match='total_indices.mat: not a readable order of examples') as error:
        read_mat(str(path))
    assert '\n' not in str(error.value)


def test_without_scipy_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'scipy', None)
    with pytest.raises(InputError, match='a.mat: reading it needs SciPy; pip install scipy'):
        read_mat(str(tmp_path / 'a.mat'))


def test_a_mat_file_is_read_in_its_order(tmp_path):
    savemat(tmp_path / 'total_indices.mat', {'total_indices': [4.0, 1.0, 0.0]})
    assert saved_order(str(tmp_path)).tolist() == [4, 1, 0]
