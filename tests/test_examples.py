"""The converter of easy-VQA, with a small package of the same name."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils.errors import InputError

SCRIPT = Path(__file__).parent.parent / 'examples' / 'convert_easy_vqa.py'


def convert(monkeypatch, tmp_path, argv, package):
    """Run the converter's main in another working directory, with `package` as easy_vqa."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'easy_vqa', package)
    monkeypatch.setattr(sys, 'path', [str(SCRIPT.parent), *sys.path])
    runpy.run_path(str(SCRIPT), run_name='examples.convert_easy_vqa')['main'](argv)


def easy_vqa(answer):
    questions = lambda: (['is there a circle?'], [answer], [0])  # noqa: E731
    images = lambda: {0: 'a.png'}  # noqa: E731
    names = ('get_train_questions', 'get_test_questions', 'get_train_image_paths', 'get_test_image_paths')
    package = dict(zip(names, (questions, questions, images, images), strict=True))
    return SimpleNamespace(get_answers=lambda: ['yes', 'no'], **package)


def test_help_needs_no_package(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        convert(monkeypatch, tmp_path, ['--help'], None)  # None: importing it fails
    assert end.value.code == 0 and '--out' in capsys.readouterr().out
    with pytest.raises(InputError, match='the package easy-vqa is missing: pip install easy-vqa'):
        convert(monkeypatch, tmp_path, [], None)


@pytest.mark.parametrize('name', ['answer_list.json', 'vocab/vocab.txt', 'vqa_test.json'])
def test_files_of_others_are_not_overwritten(monkeypatch, tmp_path, name):
    for _ in range(2):  # the second time its own files are there
        convert(monkeypatch, tmp_path, ['--out', 'out'], easy_vqa('yes'))
    assert json.loads((tmp_path / 'out' / 'vqa_train.json').read_text())[0]['answer'] == ['yes'] * 10
    (tmp_path / 'out' / name).write_text('mine')
    before = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    with pytest.raises(InputError, match=f'out/{name} is another file: remove it, or give another --out'):
        convert(monkeypatch, tmp_path, ['--out', 'out'], easy_vqa('yes'))
    assert {path: path.read_bytes() for path in before} == before
