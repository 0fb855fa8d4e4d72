"""A short soak: random kills of random scripts; `make soak` runs as many as one likes."""

import pytest

from tests import soak


@pytest.mark.slow
def test_killed_runs_end_as_uninterrupted_ones(capsys):
    soak.main(['--kills', '6', '--seed', '0'])
    assert 'equal uninterrupted ones to the bit' in capsys.readouterr().out


def test_a_difference_is_reported(shapes, tmp_path):
    import Pretrain
    from tests.tiny import arguments

    for seed in (1, 2):
        Pretrain.main(arguments('pretrain', shapes, tmp_path / str(seed), flags=['--seed', str(seed)]))
    (tmp_path / '1' / '.left.1-01234567.tmp').touch()
    files, log, tensors = soak.compare(tmp_path / '1', tmp_path / '2')
    assert files.startswith('files [') and log == 'log.txt differs' and 'tensors differ, such as' in tensors
