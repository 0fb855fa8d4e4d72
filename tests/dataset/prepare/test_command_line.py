"""`python -m dataset.prepare` as a program: help, one line for an error, what it refuses."""

import os
import subprocess
import sys

import pytest

from tests.dataset.prepare.tools import refuse, run, write


def test_every_command_has_help(capsys):
    for command in ('coco', 'vg', 'cc3m', 'sbu', 'flickr30k', 'nlvr2', 'vqa', 'answers', 'folder', 'check'):
        with pytest.raises(SystemExit) as stop:
            run(command, '--help')
        assert stop.value.code == 0 and '--out' in capsys.readouterr().out


def run_module(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'dataset.prepare', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_runs_as_a_module():
    done = run_module('--help')
    assert done.returncode == 0 and 'flickr30k' in done.stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['check', 'absent.json', '--out', 'g.json'], 'error: the annotation file absent.json does not exist'),
        (['folder', 'absent.csv', '--out', 'g.json'], 'error: absent.csv: No such file or directory'),
        (['vg', 'a.json', 'b.json', '--out', 'g.json', '--largest', '0'], 'error: argument --largest'),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(args, message):
    done = run_module(*args)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count('\n') == 1


def test_debug_shows_the_traceback(tmp_path):
    done = run_module('check', tmp_path / 'absent.json', '--out', 'g.json', '--debug')
    assert done.returncode != 0 and 'Traceback' in done.stderr and 'MissingFileError' in done.stderr


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'is not complete JSON'),
        ('{"images": [{"sentences"', 'is not complete JSON'),
        ('[1, 2]', 'its top level is [1, 2], not an object'),
        ('[' * 100_000, 'cannot be read (maximum recursion depth exceeded'),
        (f'{{"images": {"9" * 5000}}}', 'cannot be read (Exceeds the limit'),
        ('{"images": [{"id": 1}], "annotations": []}', "has no 'file_name'"),
        ('{"images": [], "annotations": [{"caption": "x"}]}', "has no 'image_id'"),
    ],
)
def test_a_release_that_was_cut_is_refused(tmp_path, text, message):
    assert message in refuse('coco', write(tmp_path / 'captions_train2014.json', text), '--out', tmp_path)


def test_a_bad_exclude_file_is_refused(tmp_path, karpathy):
    command = ['coco', karpathy, '--out', tmp_path, '--exclude']
    assert 'names no image' in refuse(*command, write(tmp_path / 'empty.txt', '\n'))
    assert 'image 0 is 1, not an object' in refuse(*command, write(tmp_path / 'a.json', {'images': [1]}))
    assert "has no 'cocoid'" in refuse(*command, write(tmp_path / 'a.json', {'images': [{}]}))
    os.mkfifo(tmp_path / 'pipe.json')
    assert 'it is a pipe or a device' in refuse(*command, tmp_path / 'pipe.json')
    (tmp_path / 'latin1.txt').write_bytes(b'caf\xe9.jpg\n')
    assert 'is not UTF-8 text' in refuse(*command, tmp_path / 'latin1.txt')


def test_annotations_without_answers_are_refused(tmp_path):
    rows = [{'question_id': 1, 'answers': [], 'multiple_choice_answer': '.'}]
    file = write(tmp_path / 'annotations.json', {'annotations': rows})
    assert 'no answer is left' in refuse('vqa', file, '--out', tmp_path)
