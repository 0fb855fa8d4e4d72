"""How a script ends: one line for an error that the user can correct, a traceback for a bug."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import run_script
from utils.entry import run_main, user_message
from utils.errors import InputError, MissingFileError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def end(monkeypatch, capsys):
    """A function that runs a main in `run_main` -> (exit code, stderr)."""
    monkeypatch.setattr(sys, 'argv', ['script.py'])
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)

    def end(main):
        with pytest.raises(SystemExit) as raised:
            run_main(main)
        return raised.value.code, capsys.readouterr().err

    return end


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize('result, code', [(None, 0), (0, 0), (3, 3), ('words', 0)])
def test_a_script_without_an_error(end, result, code):
    assert end(lambda: result) == (code, '')


@pytest.mark.parametrize('error', [InputError, MissingFileError])
def test_an_input_error_is_one_line(end, error):
    assert end(raising(error('a.json: row 3 is bad;\n  repair it'))) == (2, 'error: a.json: row 3 is bad; repair it\n')


def test_input_errors_can_be_caught_as_what_they_are():
    assert issubclass(InputError, ValueError) and issubclass(MissingFileError, FileNotFoundError)


def test_an_error_of_the_system_with_a_file_name_is_one_line(end, tmp_path):
    path = tmp_path / 'none' / 'a.txt'
    assert end(lambda: open(path)) == (2, f'error: {path}: No such file or directory; correct the path\n')
    assert end(lambda: open(tmp_path)) == (2, f'error: {tmp_path}: Is a directory; give the name of a file\n')


def test_a_full_disk_is_one_line(end):
    full = OSError(errno.ENOSPC, 'No space left on device')
    assert end(raising(full)) == (2, 'error: No space left on device: make room and start again with --resume\n')
    full.filename = 'out/checkpoint_00.pth'
    message = 'out/checkpoint_00.pth: No space left on device: make room and start again with --resume'
    assert end(raising(full)) == (2, f'error: {message}\n')


@pytest.mark.parametrize('error', [KeyError('a'), ValueError('a'), OSError('a'), AssertionError()])
def test_a_bug_keeps_its_traceback(end, capsys, error):
    with pytest.raises(type(error)) as raised:
        end(raising(error))
    assert raised.value is error and user_message(error) is None and capsys.readouterr().err == ''


@pytest.mark.parametrize(
    'error, words',
    [
        (MemoryError(), 'the memory is not enough; set a smaller batch size'),
        (
            torch.OutOfMemoryError('CUDA out of memory. Tried'),
            "the GPU's memory is not enough; set a smaller batch size",
        ),
        (
            RuntimeError('DataLoader worker (pid 12) is killed by signal: Killed. '),
            'a loader process was ended by a signal (Killed.), perhaps for its memory; set fewer num_workers',
        ),
    ],
)
def test_what_lacks_memory_is_one_line(end, error, words):
    code, printed = end(raising(error))
    assert code == 2 and printed.startswith(f'error: {words}') and printed.count('\n') == 1


def test_debug_keeps_the_traceback(end, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['script.py', '--debug'])
    with pytest.raises(InputError, match='row 3'):
        end(raising(InputError('row 3')))
    assert capsys.readouterr().err == ''


def test_only_the_first_of_several_processes_prints(end, monkeypatch):
    """Before there is a process group, the ranks of the launcher decide."""
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert end(raising(InputError('row 3'))) == (2, '')
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert end(raising(InputError('row 3'))) == (2, 'error: row 3\n')


WORKER = """
from torch.utils.data import DataLoader
from utils.entry import run_main
from utils.errors import InputError, MissingFileError

class Failing:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise {error}

run_main(lambda: list(DataLoader(Failing(), num_workers=1)))
"""


def end_of_worker(tmp_path, error):
    """(exit code, stderr) of a program whose DataLoader worker raises an error."""
    (tmp_path / 'program.py').write_text(WORKER.format(error=error))
    [(code, _, printed)] = run_script(tmp_path / 'program.py', [], tmp_path)
    return code, printed


@pytest.mark.parametrize('error', ['InputError', 'MissingFileError'])
def test_an_error_in_a_worker_is_one_line(tmp_path, error):
    message = 'a.json, row 3: bad; repair it'
    assert end_of_worker(tmp_path, f'{error}({message!r})') == (2, f'error: {message}\n')


def test_a_bug_in_a_worker_keeps_its_traceback(tmp_path):
    code, printed = end_of_worker(tmp_path, "KeyError('row 3')")
    assert code == 1 and 'Caught KeyError in DataLoader worker' in printed and 'in __getitem__' in printed
    assert not printed.startswith('error: ')


PRINTS = "from utils.entry import run_main; run_main(lambda: [print('\u732b' * 50) for _ in range(5000)] and None)"


@pytest.mark.parametrize('reader, code', [('head -1', 141), ('cat', 0)])
def test_a_reader_that_has_enough_ends_a_program_in_silence(reader, code):
    """And a terminal that lacks a letter gets it escaped."""
    command = f'set -o pipefail; "$PYTHON" -c "$PRINTS" | {reader}'
    more = {'PYTHON': sys.executable, 'PRINTS': PRINTS, 'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'ascii'}
    done = subprocess.run(['bash', '-c', command], env=os.environ | more, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, '')
    assert done.stdout.startswith('\\u732b\\u732b')


def test_a_broken_pipe_that_is_not_the_readers_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['script.py', '--debug'])
    with pytest.raises(BrokenPipeError):
        run_main(raising(BrokenPipeError(errno.EPIPE, 'Broken pipe')))
