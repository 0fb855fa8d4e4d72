"""Scripts and tools started from another working directory, texts that the vocabulary cannot write."""

import os

import pytest

import demo
import predict
import Pretrain
import VQA
from tests.helpers import read_rows, write_rows
from tests.tiny import arguments
from utils.config_files import ROOT


def test_a_script_finds_its_configuration_from_any_working_directory(shapes, tmp_path, monkeypatch, capsys):
    argv = arguments('pretrain', shapes, 'out', 'train_epochs=1')
    argv[argv.index('--config') + 1] = 'configs/shapes/Pretrain.yaml'
    monkeypatch.chdir(tmp_path)
    Pretrain.main(argv)
    assert f'configuration {ROOT}/configs/shapes/Pretrain.yaml' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'config.yaml').exists()
    argv = arguments('pretrain', shapes, 'out', 'optimizer.lrr=1')
    argv[argv.index('--config') + 1] = './configs/shapes/Pretrain.yaml'
    with pytest.raises(ValueError, match=f'^{ROOT}/configs/shapes/Pretrain.yaml: unknown key optimizer.lrr'):
        Pretrain.main(argv)


def test_predict_finds_its_configuration_from_any_working_directory(shapes, vqa_run, tmp_path, monkeypatch, capsys):
    """Only the shape differs from the checkpoint, which shows that the file was read."""
    monkeypatch.chdir(tmp_path)
    argv = ['answer', '--checkpoint', str(vqa_run / 'checkpoint_01.pth'), '--image', 'a.jpg', '--question', 'what?']
    argv += ['--config', 'configs/shapes/VQA.yaml', '--device', 'cpu']
    with pytest.raises(ValueError, match='does not fit this model'):
        predict.main([*argv, '--set', f'answer_list={shapes}/answer_list.json'])


def test_the_demo_works_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, 'OUTPUT', tmp_path / 'demo')
    places = []

    def step(title, *commands):
        places.append(os.getcwd())
        raise InterruptedError

    monkeypatch.setattr(demo, 'step', step)
    with pytest.raises(InterruptedError):
        demo.main([])
    assert places == [str(ROOT)]


def test_texts_that_the_vocabulary_cannot_write_are_named_before_training(shapes, tmp_path, capsys):
    rows = [row | {'question': '\u732b\u306f\u3069\u3053'} for row in read_rows(shapes, 'vqa_train')[:20]]
    files = [write_rows(tmp_path / 'train.json', rows), write_rows(tmp_path / 'answers.json', ['\u732b', 'red'])]
    settings = (f'train_file={files[0]}', f'answer_list={files[1]}', 'val_file=null', 'test_file=null')
    VQA.main(arguments('vqa', shapes, tmp_path / 'out', *settings, 'schedular.epochs=1'))
    printed = capsys.readouterr().out.split('epoch 0')[0]
    assert f'warning: {files[0]}: ' in printed and f'warning: {files[1]}: ' in printed
    assert printed.count('of the tokens are [UNK] (in') == 2
