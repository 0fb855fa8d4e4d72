"""SIGTERM, Ctrl-C and SIGUSR1: a checkpoint after the current step, one line, the shell's exit code, nothing lost."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import utils.checkpoint
from tests.helpers import differing, read_log, read_pth, state_of_run
from tests.processes import (
    KILLED,
    ROOT,
    DieAt,
    SignalAt,
    check_run,
    run,
    run_script,
)
from tests.tiny import SCRIPTS, arguments

MODULES = {task: importlib.import_module(name) for task, name in SCRIPTS.items()}
LARGER = {'nlvr': ('batch_size=48',), 'vqa': ('batch_size_train=48',), 'retrieval': ('batch_size_train=24',)}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def check_stopped(outcomes, number, words):
    """Every process ended with the signal's code, and together they printed one line on stderr."""
    assert [code for code, _, _ in outcomes] == [128 + number] * len(outcomes), outcomes
    printed = [line for _, _, err in outcomes for line in err.splitlines()]
    assert len(printed) == 1 and printed[0].startswith(f'stopped by {signal.Signals(number).name}{words}'), printed


def check_equal(one, two, name='checkpoint_01.pth'):
    assert read_log(one) == read_log(two)
    assert differing(state_of_run(one / name), state_of_run(two / name)) == []


@pytest.mark.parametrize('task', SCRIPTS)
def test_a_stopped_run_continues_exactly(shapes, tmp_path, task):
    """In the middle of the second step of the first epoch."""
    folder, number = tmp_path / 'run', SIGNALS[sorted(SCRIPTS).index(task) % 3]
    argv = arguments(task, shapes, folder, *LARGER.get(task, ()), flags=['--resume'])
    fault = SignalAt(torch.optim.AdamW, 'step', 2, number)
    outcomes = run_script(f'{SCRIPTS[task]}.py', argv, tmp_path, faults={0: fault})
    check_stopped(outcomes, number, f' at epoch 0, step 2; --resume continues from {folder}/checkpoint_step.pth')
    assert read_pth(folder / 'checkpoint_step.pth')['position'] == [0, 2]
    MODULES[task].main(argv)
    MODULES[task].main(arguments(task, shapes, tmp_path / 'whole', *LARGER.get(task, ())))
    check_equal(folder, tmp_path / 'whole')


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(shapes, tmp_path, number):
    folder = tmp_path / 'run'
    argv = arguments('pretrain', shapes, folder, 'train_epochs=1', flags=['--resume'])
    fault = SignalAt(torch.optim.AdamW, 'step', 3, number)
    outcomes = run_script('Pretrain.py', argv, tmp_path, 2, faults={1: fault})
    check_stopped(outcomes, number, ' at epoch 0, step ')
    assert read_pth(folder / 'checkpoint_step.pth')['position'][1] in (3, 4)
    check_run(MODULES['pretrain'].main, argv, tmp_path / 'log', 2)
    whole = arguments('pretrain', shapes, tmp_path / 'whole', 'train_epochs=1')
    check_run(MODULES['pretrain'].main, whole, tmp_path / 'log', 2)
    check_equal(folder, tmp_path / 'whole', 'checkpoint_00.pth')


def test_a_signal_while_the_last_checkpoint_of_an_epoch_is_written(shapes, tmp_path):
    folder = tmp_path / 'run'
    argv = arguments('pretrain', shapes, folder, flags=['--resume'])
    fault = SignalAt(utils.checkpoint, 'write_checkpoint', 1, signal.SIGTERM)
    outcomes = run_script('Pretrain.py', argv, tmp_path, faults={0: fault})
    check_stopped(outcomes, signal.SIGTERM, f' at epoch 1, step 0; --resume continues from {folder}/checkpoint_00.pth')
    assert len(read_log(folder)) == 1


@pytest.mark.parametrize('end', ['signal', 'kill', 'bad row'])
@pytest.mark.parametrize(
    'task, metric', [('nlvr', 'nlvr_metrics'), ('retrieval', 'retrieval_recall'), ('vqa', 'accuracy_metrics')]
)
def test_an_evaluation_that_ends_badly_costs_no_training(shapes, tmp_path, monkeypatch, task, metric, end):
    """The epoch's steps are not trained again, and the run ends as an uninterrupted one."""
    folder = tmp_path / 'run'
    argv = arguments(task, shapes, folder, *LARGER.get(task, ()), flags=['--resume'])
    if end == 'bad row':
        with monkeypatch.context() as patch:
            patch.setattr(MODULES[task], metric, lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                MODULES[task].main(argv)
    elif end == 'kill':
        assert run(MODULES[task].main, argv, tmp_path / 'log', 1, DieAt(MODULES[task], metric, 1)) == [KILLED]
    else:
        fault = SignalAt(MODULES[task], metric, 1, signal.SIGTERM)
        assert run(MODULES[task].main, argv, tmp_path / 'log', 1, fault)[0] != 0
    content = read_pth(folder / 'checkpoint_step.pth')
    assert content['position'][0] == 0 and content['position'][1] > 1 and read_log(folder) == []

    trained, step = [], torch.optim.AdamW.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, 'step', lambda *args: (trained.append(1), step(*args))[1])
        MODULES[task].main(argv)
    assert len(trained) == content['position'][1]  # those of the second epoch only
    MODULES[task].main(arguments(task, shapes, tmp_path / 'whole', *LARGER.get(task, ())))
    check_equal(folder, tmp_path / 'whole')


def start(argv, environment=None, **options):
    """Start Python in a process group of its own, with one thread."""
    environment = os.environ | {'OMP_NUM_THREADS': '1'} | (environment or {})
    return subprocess.Popen(
        [sys.executable, *argv],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def wait_for(path, process, seconds=60):
    """Until a file exists."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def is_member(pid, group):
    try:
        state, _, process_group, *_ = Path('/proc', pid, 'stat').read_text().rsplit(')', 1)[1].split()
    except OSError:  # it ended meanwhile
        return False
    return int(process_group) == group and state != 'Z'


def members_of(group, seconds=2):
    """The processes of a group that still run after some time."""
    deadline = time.monotonic() + seconds
    while True:
        members = [pid for pid in filter(str.isdigit, os.listdir('/proc')) if is_member(pid, group)]
        if not members or time.monotonic() > deadline:
            return members
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(shapes, tmp_path):
    """The signal reaches the loader's workers, too: one line, no traceback, no process left, a checkpoint."""
    settings = ('train_epochs=1000', 'num_workers=2', 'save_every=3')
    process = start(['Pretrain.py', *arguments('pretrain', shapes, tmp_path, *settings)])
    wait_for(tmp_path / 'checkpoint_step.pth', process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.startswith('stopped by SIGINT at epoch') and err.count('\n') == 1, err
    assert 'Traceback' not in out
    assert members_of(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize('command', [['NLVR.py'], ['predict.py', '--help'], ['-m', 'utils.launch', 'NLVR.py']])
def test_ctrl_c_while_the_modules_load_prints_no_traceback(command, tmp_path):
    process = start([*command, '--output_dir', str(tmp_path), '--config', 'nowhere.yaml'])
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGINT, 130) and 'Traceback' not in err, err


@pytest.mark.slow
def test_ctrl_c_in_a_tool_prints_no_traceback(tmp_path):
    process = start(['-m', 'dataset.shapes', '--out', str(tmp_path / 'shapes')])
    wait_for(tmp_path / 'shapes', process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == 'stopped by SIGINT\n'


def test_a_second_ctrl_c_does_not_wait_for_the_step(shapes, tmp_path):
    class Twice(SignalAt):
        def install(self):
            original = self.function

            def step(*args):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)
                return original(*args)

            setattr(self.owner, self.name, step)

    argv = arguments('pretrain', shapes, tmp_path / 'run')
    outcomes = run_script('Pretrain.py', argv, tmp_path, faults={0: Twice(torch.optim.AdamW, 'step', 1, 2)})
    check_stopped(outcomes, signal.SIGINT, '; --resume continues from the last checkpoint')
    assert not list((tmp_path / 'run').glob('*.pth'))
