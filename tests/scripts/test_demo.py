"""What `make demo` adds to the scripts that it runs: chance and the table."""

import json
import random

import pytest

import demo


def test_chance_is_the_recall_of_random_rankings():
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
    single = demo.chance_of([{'caption': ['a']}] * len(owners))  # ... as if every image had one
    for k in (1, 5, 10):
        assert single[f'txt_r{k}'] == pytest.approx(found[f'txt_r{k}'], abs=3)
        assert chance[f'img_r{k}'] == pytest.approx(found[f'img_r{k}'], abs=3)
        assert chance[f'txt_r{k}'] >= single[f'txt_r{k}']


def test_the_table_shows_all_three_rankings():
    metrics = {key: 12.34 for key in demo.KEYS}
    lines = list(demo.table({'itc': metrics, 'reranked': metrics, 'chance': metrics}))
    assert len(lines) == 4 and all(line.count('12.3') == len(demo.KEYS) for line in lines[1:])
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize('loss, learned', [(0.64, False), (0.5, True)])
def test_a_finished_demo_is_reused(tmp_path, monkeypatch, capsys, loss, learned):
    monkeypatch.setattr(demo, 'OUTPUT', tmp_path)
    commands = []
    monkeypatch.setattr(demo, 'step', lambda title, command: commands.append(command) or 1.0)
    metrics = {key: 50.0 for key in demo.KEYS}
    report = {'itc': metrics, 'reranked': metrics, 'chance': metrics, 'loss_itm': loss, 'seconds': 100}
    (tmp_path / 'report.json').write_text(json.dumps(report))
    demo.main([])
    printed = capsys.readouterr().out
    assert len(commands) == 1 and 'dataset.shapes' in commands[0]
    assert 'reused' in printed and ('has learned nothing yet' in printed) != learned
