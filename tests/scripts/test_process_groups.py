"""Several processes: another number of them, restarts by the launcher, one that stops to answer, one that dies."""

import importlib
import logging
import re
import signal
import textwrap

import pytest
import torch

from dataset.grit.warmstart import saved_order
from tests.helpers import differing, examples_of, read_log, read_pth, state_of_run
from tests.processes import DieAt, SignalAfter, SignalAt, SmallFiles, check_run, free_port, run_python, run_script
from tests.tiny import SCRIPTS, arguments
from utils import launch
from utils.checkpoint_shards import shard_files
from utils.errors import InputError

MAINS = {task: importlib.import_module(name).main for task, name in SCRIPTS.items()}
SHORTER = {'nlvr': ('batch_size=24',), 'vqa': ('batch_size_train=24',)}


def epochs(task, number):
    return f'train_epochs={number}' if task == 'pretrain' else f'schedular.epochs={number}'


# ---- another number of processes ----


@pytest.mark.parametrize('before, now', [(2, 1), (1, 2)])
@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'vqa'])
def test_a_run_continues_with_another_number_of_processes(shapes, tmp_path, task, before, now):
    """From the end of an epoch: the schedule, the optimizer and the log go on, every example is used."""
    folder, log = tmp_path / 'run', tmp_path / 'log'
    more = SHORTER.get(task, ())
    check_run(MAINS[task], arguments(task, shapes, folder, *more, epochs(task, 1)), log, before)
    first = read_pth(folder / 'checkpoint_00.pth')
    argv = arguments(task, shapes, folder, *more, epochs(task, 2), 'save_every=3', flags=['--resume', '--elastic'])
    check_run(MAINS[task], argv, log, now)
    text = (tmp_path / 'log.0').read_text()
    assert f'--elastic: {before} processes before, {now} now. The order of epoch 1 is dealt anew' in text
    content = read_pth(folder / 'checkpoint_01.pth')
    assert [record['epoch'] for record in read_log(folder)] == [0, 1] and read_log(folder)[0] == first['records'][0]
    plans = [rank['plan'] for rank in content['ranks']]
    assert len(plans) == now and examples_of(plans) == list(range(plans[0]['dataset_size']))
    taken = [next(iter(some['optimizer']['state'].values()))['step'].item() for some in (first, content)]
    size = plans[0]['dataset_size'] // plans[0]['batch_size']
    assert taken == [size // before, size // before + size // now]


def test_the_mini_batches_of_grit_stay_whole(shapes, tmp_path):
    """What two processes grouped for epoch 1 is what one process trains on in epoch 1."""
    folder, log = tmp_path / 'run', tmp_path / 'log'
    check_run(MAINS['pretrain'], arguments('pretrain', shapes, folder, 'train_epochs=1'), log, 2)
    plans = [rank['plan'] for rank in read_pth(folder / 'checkpoint_00.pth')['ranks']]
    expected = torch.cat([plan['order'] for plan in plans]).tolist()
    fault = SignalAt(torch.optim.AdamW, 'step', 1, signal.SIGTERM)
    argv = arguments('pretrain', shapes, folder, flags=['--resume', '--elastic'])
    run_script('Pretrain.py', argv, tmp_path, faults={0: fault})
    order = read_pth(folder / 'checkpoint_step.pth')['ranks'][0]['plan']['order'].tolist()
    assert order[: len(expected)] == expected


def test_a_checkpoint_inside_an_epoch_needs_its_number_of_processes(shapes, tmp_path):
    folder, log = tmp_path / 'run', tmp_path / 'log'
    check_run(MAINS['pretrain'], arguments('pretrain', shapes, folder, 'train_epochs=1'), log, 2)
    fault = SignalAt(torch.optim.AdamW, 'step', 3, signal.SIGTERM)
    argv = arguments('pretrain', shapes, folder, flags=['--resume'])
    run_script('Pretrain.py', argv, tmp_path, 2, faults={0: fault})
    assert (folder / 'checkpoint_step.pth').exists()
    assert sorted(saved_order(folder).tolist()) == list(range(62))  # of both processes, in the file and in its shard
    with pytest.raises(InputError, match='written by 2 process.*there are 1 now.*--elastic'):
        MAINS['pretrain'](argv)
    MAINS['pretrain']([*argv, '--elastic'])
    assert [record['epoch'] for record in read_log(folder)] == [0, 1]
    assert not (folder / 'checkpoint_step.pth').exists() and shard_files(folder) == []


def test_elastic_does_not_start_anew_without_a_complete_epoch(shapes, tmp_path):
    folder = tmp_path / 'run'
    fault = SignalAt(torch.optim.AdamW, 'step', 3, signal.SIGTERM)
    argv = arguments('pretrain', shapes, folder, flags=['--resume', '--elastic'])
    run_script('Pretrain.py', argv, tmp_path, 2, faults={0: fault})
    with pytest.raises(InputError, match='inside an epoch, of 2 process.*--elastic continues from the end of one'):
        MAINS['pretrain'](argv)


# ---- a full disk ----


@pytest.mark.parametrize(
    'rank, bytes_left, name', [(0, 100_000, r'step\.pth'), (1, 10_000, r'step\.e0s4\..*\.rank1\.pth')]
)
def test_a_full_disk_of_one_process_ends_all_with_one_line(shapes, tmp_path, rank, bytes_left, name):
    folder = tmp_path / 'run'
    argv = arguments('pretrain', shapes, folder, 'save_every=4')
    outcomes = run_script('Pretrain.py', argv, tmp_path, 2, faults={rank: SmallFiles(bytes_left)})
    assert [code for code, _, _ in outcomes] == [2, 2]
    printed = ''.join(err for _, _, err in outcomes)
    assert re.fullmatch(
        rf'error: {folder}/checkpoint_{name}: File too large: make room and start .*--resume\n', printed
    )
    assert not list(folder.glob('*.pth')) and not list(folder.glob('.*.tmp'))


# ---- restarts, stopped and dead processes ----

DRIVER = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    import torch
    import Pretrain
    from utils.entry import run_main

    if os.environ['TORCHELASTIC_RESTART_COUNT'] in '01' and os.environ['RANK'] == {rank!r}:
        step, calls = torch.optim.AdamW.step, [0]

        def dying(*args):
            calls[0] += 1
            if calls[0] == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args)

        torch.optim.AdamW.step = dying
    run_main(Pretrain.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize('rank', ['0', '1'])
def test_the_launcher_restarts_a_run_that_resumes_by_itself(shapes, tmp_path, rank):
    """One of two processes is killed in the first two attempts; the third ends as an uninterrupted run."""
    from tests.processes import ROOT

    driver = tmp_path / 'driver.py'
    driver.write_text(textwrap.dedent(DRIVER.format(root=str(ROOT), rank=rank)))
    launcher = ['-m', 'utils.launch', '--nproc_per_node=2', f'--master_port={free_port()}', '--max-restarts=2']
    argv = arguments('pretrain', shapes, tmp_path / 'run', 'save_every=2', flags=['--resume'])
    code, out, err = run_python([*launcher, str(driver), *argv])
    assert code == 0, err
    check_run(MAINS['pretrain'], arguments('pretrain', shapes, tmp_path / 'whole'), tmp_path / 'log', 2)
    assert read_log(tmp_path / 'run') == read_log(tmp_path / 'whole')
    states = (state_of_run(tmp_path / name / 'checkpoint_01.pth') for name in ('run', 'whole'))
    assert differing(*states) == []


@pytest.mark.parametrize('rank', [0, 1])
def test_a_process_that_does_not_answer_is_named(shapes, tmp_path, rank):
    """It is stopped, not dead; the other waits no longer than `collective_timeout`."""
    argv = arguments('pretrain', shapes, tmp_path / 'out', 'collective_timeout=0.07')
    fault = SignalAt(torch.optim.AdamW, 'step', 3, signal.SIGSTOP)
    outcomes = run_script('Pretrain.py', argv, tmp_path, 2, faults={rank: fault}, stopped=rank)
    code, _, err = outcomes[1 - rank]
    assert code == 2 and err.count('\n') == 1, err
    assert f'longer than collective_timeout: rank {rank} does not answer' in err and '--resume' in err


def test_a_process_that_dies_without_a_word_is_reported(shapes, tmp_path):
    argv = arguments('pretrain', shapes, tmp_path / 'out')
    fault = DieAt(torch.optim.AdamW, 'step', 3)
    outcomes = run_script('Pretrain.py', argv, tmp_path, 2, faults={1: fault})
    assert outcomes[1][0] == -signal.SIGKILL
    code, _, err = outcomes[0]
    assert code == 2 and err.count('\n') == 1 and 'another process ended without a message' in err


def test_a_signal_ends_a_process_that_waits_for_the_others(shapes, tmp_path):
    """The other process ended before they met."""
    faults = {0: SignalAfter(3, signal.SIGTERM), 1: SignalAfter(0, signal.SIGKILL)}
    outcomes = run_script('NLVR.py', arguments('nlvr', shapes, tmp_path / 'out'), tmp_path, 2, faults=faults)
    assert [code for code, _, _ in outcomes] == [-signal.SIGTERM, -signal.SIGKILL]


@pytest.mark.parametrize(
    'environment, message',
    [
        ({'WORLD_SIZE': 'abc'}, "the environment variable WORLD_SIZE is 'abc', not a possible number"),
        ({'WORLD_SIZE': '2'}, 'the environment variable RANK is not set; torch.distributed.launch sets it'),
        ({'WORLD_SIZE': '2', 'RANK': '0', 'LOCAL_RANK': 'x'}, "the environment variable LOCAL_RANK is 'x'"),
        ({'WORLD_SIZE': '0'}, "the environment variable WORLD_SIZE is '0', not a possible number"),
        ({'WORLD_SIZE': '2', 'RANK': '7', 'LOCAL_RANK': '0'}, 'the environment has RANK 7 of WORLD_SIZE 2'),
        ({'WORLD_SIZE': '2', 'RANK': '0', 'LOCAL_RANK': '0'}, 'the processes cannot meet'),
    ],
)
def test_a_broken_environment_is_one_line(shapes, tmp_path, monkeypatch, environment, message):
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    [(code, _, err)] = run_script('NLVR.py', arguments('nlvr', shapes, tmp_path / 'out'), tmp_path)
    assert code == 2 and err.count('\n') == 1 and err.startswith(f'error: {message}'), err


# ---- the launcher without tracebacks ----


@pytest.mark.parametrize(
    'argv, message',
    [
        (['--nproc_per_node=foo', 'NLVR.py'], 'nproc'),
        (['--nproc_per_node=0', 'NLVR.py'], '--help lists the arguments'),
        (['--rdzv_backend=nonsense', 'NLVR.py'], 'nonsense'),
        (['--nonsense', 'NLVR.py'], '--help lists the arguments'),
        ([], 'training_script'),
    ],
)
def test_a_mistake_of_the_launcher_is_an_input_error(argv, message):
    disabled = logging.root.manager.disable
    try:
        with pytest.raises(InputError, match=message):
            launch.main(argv)
    finally:
        logging.disable(disabled)


@pytest.mark.slow
def test_an_error_of_the_user_is_one_line_with_the_launcher(shapes, tmp_path):
    launcher = ['-m', 'utils.launch', '--nproc_per_node=2', f'--master_port={free_port()}']
    argv = arguments('vqa', shapes, tmp_path / 'out', 'optimizer.lrr=1')
    code, out, err = run_python([*launcher, 'VQA.py', *argv])
    assert code == 2 and err.count('\n') == 1 and err.startswith('error: ') and 'optimizer.lrr' in err
