"""The comparison of pre-training arms: its settings are valid, and its table is what the runs gave."""

import pytest

from benchmarks import compare_pretraining as compare
from utils.config import apply_overrides, read_yaml, resolve
from utils.errors import InputError


@pytest.mark.parametrize('arm', compare.ARMS)
def test_the_settings_of_an_arm_are_valid(arm):
    config = apply_overrides(read_yaml('configs/shapes/Pretrain.yaml'), compare.ARMS[arm][1])
    resolved, unused = resolve('pretrain', config)
    assert not unused and resolved['train_epochs'] == resolved['schedular']['epochs']


def test_the_table_shows_mean_lowest_and_highest():
    names = [*compare.METRICS, 'ITM accuracy', 'minutes']
    results = {'grit': [dict.fromkeys(names, value) for value in (0.5, 0.9)], 'random': [dict.fromkeys(names, 0.25)]}
    grit, random = compare.table(results).splitlines()[2:]
    assert grit.count('| 0.7 (0.5 to 0.9)') == len(compare.METRICS) and '| 0.70 (0.50 to 0.90) | 0.7 |' in grit
    assert random.startswith(f'| {compare.ARMS["random"][0]} | 1 | 0.2 |') and '(' not in random.split('|', 2)[2]


def test_a_run_of_other_settings_is_refused(tmp_path):
    (tmp_path / 'world.json').write_text('{"version": 2, "seed": 0}')
    compare.refuse_other_settings(tmp_path / 'run', 'grit', str(tmp_path))
    compare.refuse_other_settings(tmp_path / 'run', 'grit', str(tmp_path))
    with pytest.raises(InputError, match='is of other settings: remove it'):
        compare.refuse_other_settings(tmp_path / 'run', 'random', str(tmp_path))


def test_after_a_failed_run_no_other_begins(tmp_path, monkeypatch):
    begun = []

    def run_arm(arm, seed, data, out):
        begun.append((arm, seed))
        raise InputError(f'{arm} failed')

    monkeypatch.setattr(compare, 'run_arm', run_arm)
    monkeypatch.setattr(compare, 'run_script', lambda command, log: None)
    with pytest.raises(InputError, match='grit failed'):
        compare.main(['--out', str(tmp_path), '--jobs', '1', '--arms', 'grit', 'random', '--seeds', '0', '0', '1', '2'])
    assert begun[0] == ('grit', 0) and len(begun) < 4
