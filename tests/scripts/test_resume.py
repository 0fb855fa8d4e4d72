"""A pre-training run that is killed and resumed ends as an uninterrupted one: weights to the bit, log to the letter."""

import os
import random

import pytest
import torch

import dataset.grit.collector
import models
import Pretrain
import utils.checkpoint
from tests.helpers import differing, read_log, read_pth, state_of_run, weights
from tests.processes import KILLED, DieAt, check_run, run, tail
from tests.tiny import arguments
from utils.checkpoint_shards import shard_files

SETTINGS = ('train_epochs=3', 'save_every=4', 'itm_negatives=auto', 'itm_target_accuracy=0.67')
STEPS = {1: 15, 2: 7}  # an epoch of 62 pairs in batches of 4
SEEDS = (0, 1, 2)

# Where a run may die: (owner, name) of a function, how often it is called at least in an epoch, before or after the
# call. Start-up is once per run.
POINTS = {
    'at start-up': (models, 'model_settings', lambda steps: 0, False),
    'while stepping': (torch.optim.AdamW, 'step', lambda steps: steps, False),
    'while grouping': (dataset.grit.collector, 'group_queue', lambda steps: -(-steps // 4), False),  # queues of 16
    'while writing a checkpoint': (os, 'fsync', lambda steps: steps // 4 + 1, False),
    'between checkpoint and log': (utils.checkpoint, 'write_log', lambda steps: 1, False),
    'after pruning checkpoints': (utils.checkpoint, 'prune_checkpoints', lambda steps: 1, True),
}


def places_of(seed, processes):
    """Two places to die at, different ones for each seed."""
    places = random.Random(processes).sample(sorted(POINTS), len(POINTS))
    return places[2 * seed : 2 * seed + 2]


@pytest.mark.parametrize('processes', STEPS)
def test_every_point_is_tried(processes):
    assert {place for seed in SEEDS for place in places_of(seed, processes)} == set(POINTS)


def deaths_of(seed, processes):
    """[(place, DieAt)]: the first in the first epoch, the second in the two epochs that remain; both are reached."""
    draw = random.Random(seed * 2 + processes)
    for epochs, place in enumerate(places_of(seed, processes), start=1):
        owner, name, calls, after = POINTS[place]
        yield place, DieAt(owner, name, draw.randint(1, max(1, epochs * calls(STEPS[processes]))), after)


def results_of(folder):
    """The log, and the names of the files that a run wrote."""
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith('.'))
    return (folder / 'log.txt').read_text(), files


@pytest.fixture(scope='module')
def uninterrupted(shapes, tmp_path_factory):
    """{processes: the folder of a run without interruption}."""
    folders = {}
    for processes in STEPS:
        folders[processes] = folder = tmp_path_factory.mktemp('uninterrupted')
        log = folder.parent / f'{folder.name}.log'
        check_run(Pretrain.main, arguments('pretrain', shapes, folder, *SETTINGS), log, processes)
    return folders


def test_all_ranks_adapt_to_the_mean_accuracy_of_all(uninterrupted):
    """The running accuracy would differ between ranks if each followed its own batches."""
    ranks = read_pth(uninterrupted[2] / 'checkpoint_02.pth')['ranks']
    first, second = (rank['itm_negatives'] for rank in ranks)
    assert first['accuracy'] == second['accuracy'] > 0 and first['beta'] == second['beta']


@pytest.mark.slow
@pytest.mark.parametrize('processes', STEPS)
@pytest.mark.parametrize('seed', SEEDS)
def test_killed_and_resumed_equals_uninterrupted(shapes, tmp_path, uninterrupted, processes, seed):
    """Two deaths, then a run to the end; always the same command, with --resume."""
    folder, log = tmp_path / 'run', tmp_path / 'log'
    argv = arguments('pretrain', shapes, folder, *SETTINGS, flags=['--resume'])
    for place, death in deaths_of(seed, processes):
        assert run(Pretrain.main, argv, log, processes, death)[0] == KILLED, (place, death.n, tail(log))
    check_run(Pretrain.main, argv, log, processes)
    states = (state_of_run(some / 'checkpoint_02.pth') for some in (folder, uninterrupted[processes]))
    assert differing(*states) == []
    assert results_of(folder) == results_of(uninterrupted[processes])


@pytest.mark.slow
def test_three_processes_killed_in_the_middle_of_a_save_and_resumed(shapes, tmp_path):
    """More than two numbers are added in an order that must not depend on when a run began. The first process dies
    between the shards of its second save and the main file, which then has the shards of the first.
    """
    settings = ('train_epochs=1', 'save_every=2', 'itm_negatives=auto')
    whole, folder, log = tmp_path / 'whole', tmp_path / 'run', tmp_path / 'log'
    check_run(Pretrain.main, arguments('pretrain', shapes, whole, *settings), log, 3)
    argv = arguments('pretrain', shapes, folder, *settings, flags=['--resume'])
    assert run(Pretrain.main, argv, log, 3, DieAt(utils.checkpoint, 'write_checkpoint', 2))[0] == KILLED
    assert read_pth(folder / 'checkpoint_step.pth')['position'] == [0, 2] and len(shard_files(folder)) == 4
    check_run(Pretrain.main, argv, log, 3)
    assert 'checkpoint_step.pth at epoch 0, step 2' in (tmp_path / 'log.0').read_text()
    assert differing(*(state_of_run(some / 'checkpoint_00.pth') for some in (folder, whole))) == []
    assert results_of(folder) == results_of(whole)


@pytest.mark.slow
def test_the_runs_are_real(uninterrupted):
    """Training moved, the order of the last epoch is GRIT's, and the log has its metrics."""
    metrics = ('loss_itc', 'loss_itm', 'itm_acc', 'temp', 'sim_neighbour', 'sim_random')
    for folder in uninterrupted.values():
        records = read_log(folder)
        assert [record['epoch'] for record in records] == [0, 1, 2]
        assert records[2]['train_loss_mlm'] < records[0]['train_loss_mlm']
        assert {'train_lr', *(f'train_{name}' for name in metrics)} <= records[0].keys()
        files = results_of(folder)[1]
        assert 'checkpoint_02.pth' in files and 'checkpoint_step.pth' not in files
    one, two = (weights(folder / 'checkpoint_02.pth') for folder in uninterrupted.values())
    assert not torch.equal(one['vision_proj.weight'], two['vision_proj.weight'])


def test_damaged_checkpoints_are_skipped(shapes, tmp_path):
    """A checkpoint that was cut short is not resumed from; the one before it is."""
    argv = arguments('pretrain', shapes, tmp_path / 'run', 'train_epochs=2')
    Pretrain.main(argv)
    path = tmp_path / 'run' / 'checkpoint_01.pth'
    expected, complete = weights(path), path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2])
    (tmp_path / 'run' / 'checkpoint_best.pth').write_bytes(complete)  # never resumed from
    Pretrain.main([*argv, '--resume'])
    assert differing(weights(path), expected) == []
    assert [record['epoch'] for record in read_pth(path)['records']] == [0, 1]


@pytest.mark.slow
def test_another_model_is_refused(shapes, pretrained):
    argv = arguments('pretrain', shapes, pretrained.parent, 'train_epochs=3', 'embed_dim=8', flags=['--resume'])
    with pytest.raises(
        ValueError, match='checkpoint_01.pth does not fit this model .*embed|proj.*resume with the settings'
    ):
        Pretrain.main(argv)


def test_another_number_of_processes_is_refused(shapes, tmp_path, pretrained):
    argv = arguments('pretrain', shapes, pretrained.parent, 'train_epochs=3', flags=['--resume'])
    codes = run(Pretrain.main, argv, tmp_path / 'log', 2)
    assert any(code not in (0, KILLED) for code in codes)  # the other may have been killed by `run`
    printed = [tail(tmp_path / 'log', rank, lines=60) for rank in range(2)]
    assert any('was written by 1 process(es)' in text for text in printed)
