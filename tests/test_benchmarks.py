"""The comparison of pre-training arms: its settings are valid, and its table is what the runs gave."""

import pytest

from benchmarks import compare_pretraining as compare
from utils.config import apply_overrides, read_yaml, resolve


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
