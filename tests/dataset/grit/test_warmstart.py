"""The order that `--index_warmstart` starts with."""

import pytest
import torch
from scipy.io import savemat

from dataset.grit.warmstart import read_mat, saved_order
from tests.helpers import read_pth


def test_the_order_of_a_checkpoint_includes_the_dropped_remainder(pretrained):
    order = saved_order(str(pretrained.parent))
    plan = read_pth(pretrained)['ranks'][0]['plan']
    assert torch.equal(order[: len(plan['order'])], plan['order'])
    assert sorted(order.tolist()) == list(range(62))


@pytest.mark.parametrize('arrays', [{}, {'a': [1, 2], 'b': [3]}, {'a': ['word']}])
def test_other_mat_files_are_refused(tmp_path, arrays):
    path = str(tmp_path / 'total_indices.mat')
    savemat(path, arrays)
    with pytest.raises(ValueError, match='total_indices.mat: must contain exactly one array of numbers'):
        read_mat(path)


def test_a_mat_file_is_read_in_its_order(tmp_path):
    savemat(tmp_path / 'total_indices.mat', {'total_indices': [4.0, 1.0, 0.0]})
    assert saved_order(str(tmp_path)).tolist() == [4, 1, 0]
