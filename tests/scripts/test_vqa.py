"""VQA.py end to end on the small synthetic dataset: what it writes, evaluation, runs that are killed and resumed."""

import json
import shutil

import pytest
import torch

import engine
import utils.checkpoint
import VQA
from dataset.vqa_dataset import read_answer_list
from evaluation.vqa_results import accuracy_metrics
from tests.helpers import differing, read_log, read_pth, read_rows, state_of_run, weights, write_rows
from tests.processes import KILLED, DieAt, check_run, run, tail
from tests.tiny import arguments


def evaluating(shapes, output, checkpoint, *settings):
    """The argv of an evaluation of a checkpoint."""
    return arguments('vqa', shapes, output, *settings, flags=['--evaluate', '--checkpoint', str(checkpoint)])


@pytest.fixture(scope='module')
def checkpoint(vqa_run):
    """The last one of a run."""
    return vqa_run / 'checkpoint_01.pth'


def files_of(folder):
    paths = [path for path in folder.rglob('*') if path.is_file() and path.name != '.lock']
    return {str(path.relative_to(folder)) for path in paths}


def test_what_a_run_writes(shapes, vqa_run):
    log = read_log(vqa_run)
    assert [record['epoch'] for record in log] == [0, 1]
    assert log[1]['train_loss'] < log[0]['train_loss']
    metrics = {'val_overall', 'val_answer_type_yes/no', 'val_question_type_how many', 'val_kind_colour'}
    assert metrics | {'train_lr'} <= log[0].keys()
    assert not any(key.startswith('test_') for key in log[1])
    assert files_of(vqa_run) == {
        'checkpoint_00.pth',
        'checkpoint_01.pth',
        'checkpoint_best.pth',
        'config.yaml',
        'log.txt',
        'result/vqa_val_result_epoch0.json',
        'result/vqa_val_result_epoch1.json',
        'result/vqa_result_epoch1.json',
    }
    best = read_pth(vqa_run / 'checkpoint_best.pth')
    assert best['best'] == max(record['val_overall'] for record in log) == log[best['epoch']]['val_overall']
    results = json.loads((vqa_run / 'result/vqa_result_epoch1.json').read_text())
    assert [row['question_id'] for row in results] == [row['question_id'] for row in read_rows(shapes, 'vqa_test')]
    assert {row['answer'] for row in results} <= set(read_answer_list(shapes / 'answer_list.json'))
    validated = json.loads((vqa_run / 'result/vqa_val_result_epoch1.json').read_text())
    assert accuracy_metrics(validated, read_rows(shapes, 'vqa_val'))['overall'] == log[1]['val_overall']


@pytest.mark.slow
def test_evaluation_is_the_same_for_any_number_of_processes(shapes, vqa_run, checkpoint, tmp_path):
    """The same answers and metrics as in the run, whichever process answers what; a test split with answers is scored,
    too. The training files are not read.
    """
    settings = (f'test_file={shapes}/vqa_test_annotated.json', 'train_file=none.json')
    logs = []
    for processes in (1, 3):
        folder = tmp_path / f'{processes}'
        argv = evaluating(shapes, folder, checkpoint, *settings)
        if processes == 1:
            VQA.main(argv)
        else:
            check_run(VQA.main, argv, tmp_path / 'out', processes)
        for name in ('vqa_result_epoch1.json', 'vqa_val_result_epoch1.json'):
            assert (folder / 'result' / name).read_text() == (vqa_run / 'result' / name).read_text()
        logs.append(read_log(folder))
        assert not (folder / 'config.yaml').exists()
    assert logs[0] == logs[1] and len(logs[0]) == 1
    assert logs[0][0]['val_overall'] == read_log(vqa_run)[1]['val_overall'] and 'test_kind_count' in logs[0][0]


def test_the_annotated_part_of_a_test_file_is_scored(shapes, checkpoint, tmp_path):
    rows = read_rows(shapes, 'vqa_test_annotated')
    for row in rows[10:]:
        del row['answer']
    settings = (f'test_file={write_rows(tmp_path / "half.json", rows)}', 'val_file=null')
    VQA.main(evaluating(shapes, tmp_path / 'out', checkpoint, *settings))
    results = json.loads((tmp_path / 'out/result/vqa_result_epoch1.json').read_text())
    assert len(results) == len(rows)
    assert read_log(tmp_path / 'out')[0]['test_overall'] == accuracy_metrics(results[:10], rows[:10])['overall']


def test_what_cannot_be_evaluated_is_refused(shapes, pretrained, checkpoint, tmp_path):
    with pytest.raises(ValueError, match='neither val_file nor test_file'):
        VQA.main(evaluating(shapes, tmp_path, checkpoint, 'val_file=null', 'test_file=null'))
    with pytest.raises(ValueError, match='nothing to evaluate'):
        VQA.main([*arguments('vqa', shapes, tmp_path), '--evaluate'])
    with pytest.raises(ValueError, match='has no answer decoder'):
        VQA.main(evaluating(shapes, tmp_path, pretrained))
    with pytest.raises(ValueError, match='val_file: no row has answers'):
        VQA.main(arguments('vqa', shapes, tmp_path, f'val_file={shapes}/vqa_test.json'))


def test_fine_tuning_with_distillation_from_a_vqa_checkpoint(shapes, vqa_run, checkpoint, tmp_path, capsys):
    settings = ('distill=true', 'alpha=0.4', 'schedular.epochs=1', 'val_file=null', 'test_file=null')
    VQA.main([*arguments('vqa', shapes, tmp_path, *settings), '--checkpoint', str(checkpoint)])
    assert 'momentum copies: copies of the weights just loaded' in capsys.readouterr().out
    assert read_log(tmp_path)[0]['train_loss'] < read_log(vqa_run)[0]['train_loss']
    assert files_of(tmp_path) == {'checkpoint_00.pth', 'config.yaml', 'log.txt'}
    state = weights(tmp_path / 'checkpoint_00.pth')
    copy, online = (state[f'text_decoder{m}.bert.encoder.layer.0.output.dense.weight'] for m in ('_m', ''))
    assert not torch.equal(copy, online)


# ---- resumption ----

POINTS = {  # one after another, each in a process of its own
    'after a checkpoint inside an epoch': DieAt(engine, 'save_run', 1, after=True),
    'while validating': DieAt(VQA, 'check_results', 1),
    'between checkpoint and log': DieAt(utils.checkpoint, 'write_log', 1),
    'in the second epoch': DieAt(torch.optim.AdamW, 'step', 12),
    'after the last checkpoint': DieAt(utils.checkpoint, 'prune_checkpoints', 1, after=True),
}


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(shapes, pretrained, vqa_run, checkpoint, tmp_path):
    folder, log = tmp_path / 'run', tmp_path / 'log'
    argv = [*arguments('vqa', shapes, folder, 'save_every=8'), '--checkpoint', str(pretrained), '--resume']
    for place, death in POINTS.items():
        assert run(VQA.main, argv, log, fault=death) == [KILLED], (place, tail(log))
    check_run(VQA.main, argv, log)
    assert differing(state_of_run(folder / 'checkpoint_01.pth'), state_of_run(checkpoint)) == []
    assert (folder / 'log.txt').read_text() == (vqa_run / 'log.txt').read_text()
    assert files_of(folder) == files_of(vqa_run)


def test_evaluation_can_use_the_newest_checkpoint_of_the_folder(shapes, vqa_run, tmp_path):
    folder = shutil.copytree(vqa_run, tmp_path / 'run')
    VQA.main([*arguments('vqa', shapes, folder), '--resume', '--evaluate'])
    assert read_log(folder)[2]['val_overall'] == read_log(vqa_run)[1]['val_overall']


@pytest.mark.slow
def test_two_processes_train_as_one_run(shapes, pretrained, tmp_path):
    argv = arguments('vqa', shapes, tmp_path / 'run', 'schedular.epochs=1', 'batch_size_train=8')
    check_run(VQA.main, [*argv, '--checkpoint', str(pretrained)], tmp_path / 'log', 2)
    assert read_log(tmp_path / 'run')[0]['val_overall'] >= 0
    results = json.loads((tmp_path / 'run/result/vqa_result_epoch0.json').read_text())
    assert [row['question_id'] for row in results] == [row['question_id'] for row in read_rows(shapes, 'vqa_test')]
