"""predict.py: a checkpoint that is used without anything else."""

import os
import shutil

import pytest
from PIL import Image

import predict
from dataset.vqa_dataset import read_answer_list
from tests.helpers import read_rows


def test_questions_are_answered_with_only_the_checkpoint(shapes, vqa_run, tmp_path, monkeypatch, capsys):
    """Answers, vocabulary and configuration are the checkpoint's, wherever it is."""
    checkpoint = str(shutil.copy(vqa_run / 'checkpoint_01.pth', tmp_path / 'c.pth'))
    Image.open(shapes / read_rows(shapes, 'vqa_test')[0]['image']).save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)
    questions = 'What color is the circle?', 'how many objects are there?'
    flags = [word for question in questions for word in ('--question', question)]
    predict.main(['answer', '--checkpoint', checkpoint, '--image', 'a.png', *flags])
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[5]) == questions and len(lines) == 10
    answers = read_answer_list(shapes / 'answer_list.json')
    probabilities = [float(line.split('%')[0]) for line in lines[1:5]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(100, abs=0.05)  # k_test is 4
    assert all(line.split('%')[1].strip() in answers for line in lines[1:5])
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'c.pth']


def test_what_is_missing_is_named(pretrained, vqa_run, tmp_path, capsys):
    checkpoint = str(vqa_run / 'checkpoint_01.pth')

    def answer(checkpoint, *flags):
        predict.main(['answer', '--checkpoint', checkpoint, '--image', 'a.png', *flags])

    with pytest.raises(SystemExit) as error:
        answer(checkpoint)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith('error: the following arguments are required: --question')
    with pytest.raises(ValueError, match='no answer decoder'):
        answer(str(pretrained), '--question', 'what?')
    with pytest.raises(FileNotFoundError, match='--checkpoint none.pth: there is no such file'):
        answer('none.pth', '--question', 'what?')
    with pytest.raises(ValueError, match="cannot read the image 'a.png'"):
        answer(checkpoint, '--question', 'what?')
