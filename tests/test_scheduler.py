"""Learning rates: the official rows, and what the rows do not reach."""

import math

import pytest

from scheduler import distillation_weight, learning_rate
from tests.reference import load_json

TASKS = ['Pretrain', 'NLVR_pretrain', 'NLVR', 'Retrieval_coco', 'Retrieval_flickr', 'VQA']
SCHEDULE = {'sched': 'cosine', 'lr': 1e-4, 'epochs': 10, 'min_lr': 1e-5, 'warmup_lr': 2e-5, 'warmup_epochs': 4}


@pytest.mark.parametrize('task', TASKS)
def test_every_official_row(task):
    schedular = load_json('official_configs')[task]['schedular']
    rows = load_json('learning_rates')[task]['rows']
    assert len(rows) >= 10
    for epoch, iteration, expected in rows:
        actual = learning_rate(schedular, epoch, iteration)
        assert math.isclose(actual, expected, rel_tol=1e-12, abs_tol=0.0), (epoch, iteration, actual, expected)


def test_no_warmup_starts_at_the_peak():
    schedular = {**SCHEDULE, 'warmup_epochs': 0}
    del schedular['warmup_lr']
    assert [learning_rate(schedular, 0, i) for i in (0, 1, 100, 5000)] == [1e-4] * 4


def test_warmup_is_a_rising_stair_of_hundreds():
    rates = [learning_rate(SCHEDULE, 0, i) for i in range(600)]
    assert sorted(set(rates)) == [rates[0], rates[101], rates[201], rates[301], rates[401]]
    assert rates == sorted(rates)
    assert rates[0] == rates[100] == 2e-5 and rates[401] == rates[599] == 1e-4


def test_the_cosine_ends_and_stays_at_the_minimum():
    rates = [learning_rate(SCHEDULE, epoch, 0) for epoch in range(1, 13)]
    assert all(a > b for a, b in zip(rates[:9], rates[1:10], strict=True))
    assert rates[9:] == [1e-5] * 3


def test_decay_and_cooldown_change_nothing():
    changed = {**SCHEDULE, 'decay_rate': 0.1, 'cooldown_epochs': 3}
    for epoch, iteration in [(0, 0), (0, 250), (3, 0), (9, 7), (10, 0), (25, 0)]:
        assert learning_rate(changed, epoch, iteration) == learning_rate(SCHEDULE, epoch, iteration)


MISSING = [('lr', 0), ('warmup_epochs', 0), ('warmup_lr', 0), ('min_lr', 1), ('epochs', 1)]


@pytest.mark.parametrize('key, epoch', MISSING)
def test_a_missing_key_is_named(key, epoch):
    schedular = {k: v for k, v in SCHEDULE.items() if k != key}
    with pytest.raises(ValueError, match=rf'schedular\.{key} is missing'):
        learning_rate(schedular, epoch, 0)


def test_other_schedules_and_words_are_refused():
    with pytest.raises(ValueError, match="schedular.sched is 'step'"):
        learning_rate({**SCHEDULE, 'sched': 'step'}, 0, 0)
    with pytest.raises(ValueError, match='schedular.lr must be a number'):
        learning_rate({**SCHEDULE, 'lr': 'fast'}, 0, 0)


def test_distillation_warms_up_in_epoch_0_only():
    config = {'alpha': 0.4, 'warm_up': True}
    assert [distillation_weight(config, 0, i, 4) for i in range(5)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert distillation_weight(config, 1, 0, 4) == 0.4
    assert distillation_weight(config | {'warm_up': False}, 0, 0, 4) == 0.4
