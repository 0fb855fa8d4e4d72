"""The picture of mini-batches."""

import pytest
from PIL import Image

from reports import batch_grid
from tests.helpers import read_pth


def test_the_picture_shows_neighbours_of_the_next_order(pretrained, tmp_path, monkeypatch, capsys):
    drawn = {}
    original = batch_grid.draw_batches

    def draw_batches(columns, *rest):
        drawn.update(columns)
        original(columns, *rest)

    monkeypatch.setattr(batch_grid, 'draw_batches', draw_batches)
    batch_grid.main([str(pretrained.parent), '--out', str(tmp_path / 'batches.png'), '--batches', '2', '--shown', '4'])
    grit, random = drawn.values()
    order = read_pth(pretrained)['ranks'][0]['plan']['order'].tolist()
    for batch in grit:
        start = order.index(batch[0])
        assert start % 4 == 0 and order[start : start + 4] == batch
    assert len(grit) == len(random) == 2
    with Image.open(tmp_path / 'batches.png') as picture:
        assert picture.width > 600 and len(picture.getcolors(1 << 24)) > 50  # something is drawn
    assert 'checkpoint_01.pth' in capsys.readouterr().out


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint of Pretrain.py'):
        batch_grid.main([str(tmp_path)])
