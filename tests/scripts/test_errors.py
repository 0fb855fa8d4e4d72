"""The five scripts as programs in processes of their own: a mistake is one line on stderr, and the exit code is 2.

They are imported here so that forked processes need not import them.
"""

import importlib
import os

import pytest
import torch

from dataset.grit.grouping import generator_for
from tests.helpers import read_rows, write_rows
from tests.processes import run_python, run_script
from tests.tiny import SCRIPTS, arguments
from utils import distributed
from utils.entry import run_main
from utils.errors import InputError

MODULES = {name: importlib.import_module(name) for name in (*SCRIPTS.values(), 'predict', 'demo')}


def check_one_line(outcomes, *words):
    """Every process ends with code 2, and all of them together print one line on stderr, with these words."""
    printed = [line for _, _, err in outcomes for line in err.splitlines()]
    assert len(printed) == 1 and printed[0].startswith('error: '), printed
    assert all(word in printed[0] for word in words), printed
    assert [code for code, _, _ in outcomes] == [2] * len(outcomes)


MISTYPED = 'optimizer.lrr=1'
MESSAGE = '.yaml: unknown key optimizer.lrr; the nearest known key is optimizer.lr'


@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('task', SCRIPTS)
def test_a_mistyped_key_is_one_line(shapes, tmp_path, task, processes):
    argv = arguments(task, shapes, tmp_path / 'out', MISTYPED)
    outcomes = run_script(f'{SCRIPTS[task]}.py', argv, tmp_path, processes)
    assert len(outcomes) == processes
    check_one_line(outcomes, MESSAGE)
    assert not any(out for _, out, _ in outcomes) and not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_mistyped_key_is_one_line_in_an_interpreter_of_its_own(shapes, tmp_path):
    check_one_line([run_python(['VQA.py', *arguments('vqa', shapes, tmp_path / 'out', MISTYPED)])], MESSAGE)


@pytest.mark.parametrize('rank', [0, 1])
def test_an_error_of_only_one_rank_is_one_line(shapes, tmp_path, rank):
    """An unreadable image in the first batch of one of two ranks; the other ends as well, silently."""
    batch, steps = 4, 7  # of 62 pairs on two processes
    row = int(torch.randperm(62, generator=generator_for('random epoch', 42, 0))[rank * steps * batch])
    rows = read_rows(shapes, 'pretrain')
    (tmp_path / 'broken.jpg').write_text('<html>not found</html>')
    rows[row]['image'] = str(tmp_path / 'broken.jpg')
    file = write_rows(tmp_path / 'rows.json', rows)
    settings = (f'train_file={file}', 'images_outside_root=true', 'on_bad_image=error')
    outcomes = run_script('Pretrain.py', arguments('pretrain', shapes, tmp_path / 'out', *settings), tmp_path, 2)
    check_one_line(outcomes, f'rows.json, row {row}: cannot read the image', 'broken.jpg')
    assert outcomes[1 - rank][2] == ''


def without_a_device(name):
    if os.environ['RANK'] == '1':
        raise InputError('process 1 of this machine finds only 1 GPU(s)')
    return torch.device('cpu')


def test_a_device_that_only_rank_1_misses_is_one_line(shapes, tmp_path, monkeypatch):
    """It fails before the group exists, while rank 0 waits for it."""
    monkeypatch.setattr(distributed, 'choose_device', without_a_device)  # the forked processes inherit it
    argv = arguments('nlvr', shapes, tmp_path / 'out')
    check_one_line(run_script('NLVR.py', argv, tmp_path, 2, seconds=4)[1:], 'process 1 of this machine')


@pytest.mark.parametrize('rank', ['0', '1'])
def test_a_bug_before_the_processes_meet_keeps_its_traceback(tmp_path, monkeypatch, rank):
    monkeypatch.setenv('LOCAL_RANK', rank)
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--seed', '-1'], "argument --seed: '-1' is not an integer from 0 to 9223372036854775807"),
        (['--device', 'meta'], '--device meta: there is no such device; give cuda, cuda:N or cpu'),
        (['--device', 'cuda:x'], '--device cuda:x: there is no such device'),
        (['--checkpoint', 'configs'], '--checkpoint configs is a folder without model.safetensors; give a file in it'),
        (['--output_dir', 'README.md'], "--output_dir 'README.md' cannot be used (File exists)"),
        (['--config', 'configs'], 'configs is a folder, not a YAML file'),
    ],
)
def test_a_mistaken_flag_is_one_line(shapes, tmp_path, flags, message):
    argv = arguments('nlvr', shapes, tmp_path / 'out', flags=flags)
    check_one_line(run_script('NLVR.py', argv, tmp_path), message)


@pytest.mark.parametrize('name', MODULES)
def test_help_works(name, capsys):
    with pytest.raises(SystemExit) as end:
        MODULES[name].main(['--help'])
    printed = capsys.readouterr()
    assert end.value.code == 0 and printed.err == ''
    assert printed.out.startswith('usage: ') and '--debug' in printed.out
    if name in SCRIPTS.values():
        assert all(flag in printed.out for flag in ('--config', '--output_dir', '--resume', '--evaluate', '--set'))


@pytest.mark.parametrize('rank', ['0', '1'])
def test_a_mistyped_flag_is_one_line(monkeypatch, capsys, rank):
    """Every process reads the command line, and only the first one prints."""
    monkeypatch.setenv('LOCAL_RANK', rank)
    for name in SCRIPTS.values():
        with pytest.raises(SystemExit) as end:
            MODULES[name].main(['--outputdir', 'x'])
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines == (
            ['error: unrecognized arguments: --outputdir x; --help lists the arguments'] if rank == '0' else []
        )
