"""A pre-training run that is killed and resumed ends as if nothing had happened: weights to the bit, log to the
letter."""

import json
import os
import random

import pytest
import torch

import dataset.grit
import models
import Pretrain
import utils.checkpoint
from tests.processes import KILLED, DieAt, run, tail
from tests.tiny import arguments

SETTINGS = ('train_epochs=3', 'save_every=4')
STEPS = {1: 15, 2: 7}  # an epoch of 62 pairs in batches of 4

# Where a run may die, and how often a function is called at most before it is over.
POINTS = {
    'at start-up': lambda n, steps: DieAt(models, 'model_settings', 1),
    'while stepping': lambda n, steps: DieAt(torch.optim.AdamW, 'step', 1 + n % (3 * steps)),
    'while grouping': lambda n, steps: DieAt(dataset.grit, 'group_together', 1 + n % 4),
    'while writing a checkpoint': lambda n, steps: DieAt(os, 'fsync', 1 + n % 4),
    'between checkpoint and log': lambda n, steps: DieAt(utils.checkpoint, 'write_log', 1 + n % 2),
    'after dropping what is superfluous': lambda n, steps: DieAt(utils.checkpoint, 'prune_checkpoints', 1, after=True),
}


def outcome(folder):
    """What a run leaves: (weights, optimizer state, next order of every rank), the log, the names of the files."""
    content = torch.load(folder / 'checkpoint_02.pth', weights_only=True)
    tensors = dict(content['model'])
    for number, state in content['optimizer']['state'].items():
        tensors |= {f'optimizer.{number}.{name}': value for name, value in state.items()}
    for rank, state in enumerate(content['ranks']):
        tensors |= {f'rank {rank} order': state['plan']['order'], f'rank {rank} rng': state['rng']['torch']}
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith('.'))
    return tensors, (folder / 'log.txt').read_text(), files


@pytest.fixture(scope='module')
def uninterrupted(shapes, tmp_path_factory):
    """{processes: outcome} of runs that nothing disturbed."""
    outcomes = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp('uninterrupted')
        log = folder.parent / f'{folder.name}.log'
        codes = run(Pretrain.main, arguments('pretrain', shapes, folder, *SETTINGS), log, processes)
        assert codes == [0] * processes, tail(log)
        outcomes[processes] = outcome(folder)
    return outcomes


@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_killed_and_resumed_equals_uninterrupted(shapes, tmp_path, uninterrupted, processes, seed):
    """Two deaths at places drawn from the seed, then a run to the end; always the same command, with --resume."""
    draw = random.Random(seed * 2 + processes)
    places = draw.sample(sorted(POINTS), 2) if seed else ['while stepping', 'while writing a checkpoint']
    argv = arguments('pretrain', shapes, tmp_path / 'run', *SETTINGS, flags=['--resume'])
    log = tmp_path / 'log'
    for place in places:
        codes = run(Pretrain.main, argv, log, processes, POINTS[place](draw.randrange(1000), STEPS[processes]))
        assert codes[0] in (KILLED, 0), (place, tail(log))  # 0: the place was not reached any more
    assert run(Pretrain.main, argv, log, processes) == [0] * processes, tail(log)

    tensors, text, files = outcome(tmp_path / 'run')
    expected_tensors, expected_text, expected_files = uninterrupted[processes]
    assert tensors.keys() == expected_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected_tensors[name])] == []
    assert text == expected_text
    assert files == expected_files


def test_the_runs_are_real(uninterrupted):
    """Training moved, the order of the last epoch is GRIT's, and the log has its figures."""
    for _, text, files in uninterrupted.values():
        records = [json.loads(line) for line in text.splitlines()]
        assert [record['epoch'] for record in records] == [0, 1, 2]
        assert records[2]['train_loss_mlm'] < records[0]['train_loss_mlm']
        assert {
            'train_lr',
            'train_loss_itc',
            'train_loss_itm',
            'train_itm_acc',
            'train_temp',
            'train_sim_neighbour',
            'train_sim_random',
        } <= records[0].keys()
        assert 'checkpoint_02.pth' in files and 'checkpoint_step.pth' not in files
    one, two = (uninterrupted[processes][0] for processes in (1, 2))
    assert not torch.equal(one['vision_proj.weight'], two['vision_proj.weight'])


def test_damaged_checkpoints_are_passed_over(shapes, tmp_path):
    """A checkpoint that was cut short is not resumed from; the one before it is."""
    import Pretrain

    argv = arguments('pretrain', shapes, tmp_path / 'run', 'train_epochs=2')
    Pretrain.main(argv)
    expected = torch.load(tmp_path / 'run' / 'checkpoint_01.pth', weights_only=True)['model']
    whole = (tmp_path / 'run' / 'checkpoint_01.pth').read_bytes()
    (tmp_path / 'run' / 'checkpoint_01.pth').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'run' / 'checkpoint_best.pth').write_bytes(whole)  # never resumed from
    Pretrain.main([*argv, '--resume'])
    resumed = torch.load(tmp_path / 'run' / 'checkpoint_01.pth', weights_only=True)
    assert all(torch.equal(resumed['model'][key], expected[key]) for key in expected)
    assert [record['epoch'] for record in resumed['records']] == [0, 1]


def test_another_number_of_processes_is_refused(shapes, tmp_path, pretrained):
    argv = arguments('pretrain', shapes, pretrained.parent, 'train_epochs=3', flags=['--resume'])
    codes = run(Pretrain.main, argv, tmp_path / 'log', 2)
    assert 0 not in codes[:1]
    assert 'was written by 1 process(es)' in tail(tmp_path / 'log', lines=60)
