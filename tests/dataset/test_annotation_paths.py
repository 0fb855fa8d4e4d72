"""Image paths that lead out of the folder they should start from."""

import pyarrow as pa
import pytest

from dataset.annotations import paths


@pytest.mark.parametrize(
    'path, is_outside',
    [
        ('a/b.jpg', False),
        ('a..b/..c/d...jpg', False),
        ('a/../b.jpg', False),
        ('../images/b.jpg', False),
        ('/data/images/b.jpg', False),
        ('/data/images/../b.jpg', True),
        ('/data/images2/b.jpg', True),
        ('../b.jpg', True),
        ('a/../../b.jpg', True),
        ('a/..', False),
        ('..', True),
        ('/etc/passwd', True),
    ],
)
@pytest.mark.parametrize('root', ['/data/images', '/data/images/', '/data/./images', '/data/x/../images'])
def test_paths_that_leave_their_root(path, is_outside, root):
    assert paths.leaves(path, root) == is_outside
    texts = pa.array(['x/y.jpg', path, 'x'], pa.large_string())
    pairs = pa.array([['x', 'y'], ['x', path], ['x', 'z']], pa.large_list(pa.large_string()))
    for array in (texts, pairs, pairs.slice(0, 2)):
        found = paths.may_leave(array, root).tolist()
        assert found[1] >= is_outside and found == [False, found[1], False][: len(array)]
    assert not paths.leaves(path, '')


def test_a_relative_root_is_that_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not paths.leaves(f'{tmp_path}/images/a.jpg', 'images') and paths.leaves('../../a.jpg', 'images')
