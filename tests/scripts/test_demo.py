"""What `make demo` adds to the scripts it runs: chance, the table, and the picture of mini-batches."""

import json
import random

import pytest
import torch
from PIL import Image

import demo
from reports import batch_grid


def test_chance_is_what_random_rankings_reach():
    rows = [{'caption': ['a'] * count} for count in (1, 2, 3, 1, 5, 2, 3)]
    owners = [i for i, row in enumerate(rows) for _ in row['caption']]
    draw, found = random.Random(0), dict.fromkeys(demo.KEYS, 0)
    rounds = 4000
    for _ in range(rounds):
        texts, images = draw.sample(owners, len(owners)), draw.sample(range(len(rows)), len(rows))
        for k in (1, 5, 10):
            found[f'txt_r{k}'] += (3 in texts[:k]) * 100 / rounds  # image 3 has one caption ...
            found[f'img_r{k}'] += (3 in images[:k]) * 100 / rounds
    chance = demo.chance_of(rows)
    alone = demo.chance_of([{'caption': ['a']}] * len(owners))  # ... as if every image had one
    for k in (1, 5, 10):
        assert alone[f'txt_r{k}'] == pytest.approx(found[f'txt_r{k}'], abs=3)
        assert chance[f'img_r{k}'] == pytest.approx(found[f'img_r{k}'], abs=3)
        assert chance[f'txt_r{k}'] >= alone[f'txt_r{k}']


def test_the_table_shows_all_three_rankings():
    figures = {key: 12.34 for key in demo.KEYS}
    lines = list(demo.table({'itc': figures, 'reranked': figures, 'chance': figures}))
    assert len(lines) == 4 and all(line.count('12.3') == len(demo.KEYS) for line in lines[1:])
    assert len({len(line) for line in lines}) == 1


def test_the_picture_shows_neighbours_of_the_order_that_comes_next(pretrained, tmp_path, monkeypatch, capsys):
    drawn = {}
    original = batch_grid.draw_batches
    monkeypatch.setattr(
        batch_grid, 'draw_batches', lambda columns, *rest: (drawn.update(columns), original(columns, *rest))[1]
    )
    batch_grid.main([str(pretrained.parent), '--out', str(tmp_path / 'batches.png'), '--batches', '2', '--shown', '4'])
    grit, chance = drawn.values()
    order = torch.load(pretrained, weights_only=True)['ranks'][0]['plan']['order'].tolist()
    for batch in grit:
        start = order.index(batch[0])
        assert start % 4 == 0 and order[start : start + 4] == batch
    assert len(grit) == len(chance) == 2
    with Image.open(tmp_path / 'batches.png') as picture:
        assert picture.width > 600 and len(picture.getcolors(1 << 24)) > 50  # something is drawn
    assert 'checkpoint_01.pth' in capsys.readouterr().out


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint of Pretrain.py'):
        batch_grid.main([str(tmp_path)])


def test_a_finished_demo_is_reused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'OUTPUT', tmp_path)
    commands = []
    monkeypatch.setattr(demo, 'step', lambda title, command: commands.append(command) or 1.0)
    figures = {key: 50.0 for key in demo.KEYS}
    (tmp_path / 'report.json').write_text(
        json.dumps({'itc': figures, 'reranked': figures, 'chance': figures, 'loss_itm': 0.64, 'seconds': 100})
    )
    demo.main([])
    said = capsys.readouterr().out
    assert len(commands) == 1 and 'dataset.shapes' in commands[0]
    assert 'reused' in said and 'learned nothing beyond "no match"' in said
