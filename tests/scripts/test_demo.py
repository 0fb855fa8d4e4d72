"""What `make demo` adds to the scripts that it runs: chance and the table."""

import json
import random
import re

import pytest

import demo
from utils.config import apply_overrides, read_yaml, resolve
from utils.errors import InputError


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


def report_of(itm_acc=0.9, itc=50.0, reranked=60.0):
    """A report as the demo writes it."""
    masked = {'color': {'accuracy': 98.0, 'count': 9, 'most_frequent': 20.0}}
    last = {'train_itm_acc': itm_acc, 'train_sim_neighbour': 0.8, 'train_sim_random': 0.1}
    recall = {'itc': itc, 'reranked': reranked, 'chance': 0.5}
    report = {name: dict.fromkeys((*demo.KEYS, 'r_mean'), value) for name, value in recall.items()}
    return report | {'masked_words': masked, 'last_epoch': last, 'seconds': 100}


def test_the_closing_words_follow_the_metrics():
    good, bad = (' '.join(demo.closing_words(report)) for report in (report_of(), report_of(0.6667, 50.0, 30.0)))
    assert 'similarity of 0.80, random pairs 0.10' in good
    assert 'raises the mean recall of ITC: 50.0 before, 60.0 after' in good and 'at least 100 times' in good
    assert 'learned nothing' not in good and 'ITM is right for 90%' in good and 'From epoch 4 on GRIT' in good
    assert 'does not raise the mean recall of ITC: 50.0 before, 30.0 after' in bad and 'learned nothing' in bad
    assert 'at least 60 times' in bad


def test_the_checkpoints_before_grit_and_at_the_end_are_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'OUTPUT', tmp_path)
    commands = []
    monkeypatch.setattr(demo, 'step', lambda title, *some: commands.extend(some) or 1.5)
    (tmp_path / 'pretrain').mkdir()
    for epoch in range(11):
        (tmp_path / 'pretrain' / f'checkpoint_{epoch:02d}.pth').touch()
    folders = [tmp_path / 'zero_shot' / name for name in ('checkpoint_03', 'checkpoint_10')]
    assert demo.evaluate_checkpoints(tmp_path / 'pretrain', []) == (folders, 1.5)
    assert [command[command.index('--checkpoint') + 1][-6:] for command in commands] == ['03.pth', '10.pth']
    assert ['--page' in command for command in commands] == [False, True]


def test_the_settings_of_the_demo_are_valid():
    config = apply_overrides(read_yaml('configs/shapes/Pretrain.yaml'), demo.SHORTER)
    resolved, unused = resolve('pretrain', config)
    assert not unused and resolved['train_epochs'] == resolved['schedular']['epochs'] > demo.GRIT_FROM


def test_the_folder_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'OUTPUT', tmp_path)
    for settings in (None, '{"dataset": 1, "pretrain": []}'):
        if settings:
            (tmp_path / 'settings.json').write_text(settings)
        with pytest.raises(InputError, match='of another version of the demo: remove it'):
            demo.main([])


def test_a_finished_demo_is_reused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'OUTPUT', tmp_path / 'demo')
    commands = []
    monkeypatch.setattr(demo, 'step', lambda title, command: commands.append(command) or 1.0)
    demo.refuse_other_version()
    (tmp_path / 'demo' / 'report.json').write_text(json.dumps(report_of()))
    demo.main([])
    printed = capsys.readouterr().out
    assert len(commands) == 1 and 'dataset.shapes' in commands[0]
    assert re.search(r'color +98.0 % +20.0 % +9\b', printed)
    assert 'reused' in printed and 'curves.png' in printed and 'set-up 0 s, run 100 s' in printed
