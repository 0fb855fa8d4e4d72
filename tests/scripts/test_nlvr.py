"""Pretrain_nlvr.py and NLVR.py end to end on the small synthetic dataset: both stages, evaluation, resumption, bad
input.
"""

import os

import numpy as np
import pytest
import torch

import models
import NLVR
import Pretrain_nlvr
import utils.checkpoint
from dataset.samplers import ShardBatches
from engine import TrainingRun
from evaluation.nlvr import nlvr_consistency
from models.momentum import MomentumModel
from tests.helpers import differing, read_lines, read_log, read_pth, read_rows, state_of_run, weights, write_rows
from tests.processes import KILLED, DieAt, check_run, run, tail
from tests.tiny import arguments

DISTILL = ('distill=true', 'alpha=0.4', 'momentum=0.9')


def evaluating(shapes, output, checkpoint, *settings):
    """The argv of an evaluation of a checkpoint."""
    return arguments('nlvr', shapes, output, *settings, flags=['--evaluate', '--checkpoint', str(checkpoint)])


@pytest.fixture(scope='module')
def assigned(shapes, pretrained, tmp_path_factory):
    """The last checkpoint of a text assignment run that started from pre-training."""
    folder = tmp_path_factory.mktemp('assigned')
    Pretrain_nlvr.main(arguments('nlvr_pretrain', shapes, folder, flags=['--checkpoint', str(pretrained)]))
    return folder / 'checkpoint_01.pth'


@pytest.fixture(scope='module')
def tuned(shapes, assigned, tmp_path_factory):
    """The last checkpoint of an NLVR run that started from text assignment."""
    folder = tmp_path_factory.mktemp('tuned')
    NLVR.main(arguments('nlvr', shapes, folder, flags=['--checkpoint', str(assigned)]))
    return folder / 'checkpoint_01.pth'


# ---- both stages ----


def test_what_both_stages_write(assigned, tuned):
    names = {path.name for path in assigned.parent.iterdir()}
    assert names >= {'checkpoint_00.pth', 'checkpoint_01.pth', 'config.yaml', 'log.txt'}
    assert [sorted(record) for record in read_log(assigned.parent)] == [['epoch', 'train_loss', 'train_lr']] * 2
    started, trained = weights(assigned.with_name('checkpoint_00.pth')), weights(assigned)
    for name in ('temp', 'vision_proj.weight', 'text_proj.weight'):
        assert torch.equal(trained[name], started[name])
    assert not torch.equal(trained['ta_head.weight'], started['ta_head.weight'])

    names = {path.name for path in tuned.parent.iterdir()}
    assert names >= {'checkpoint_00.pth', 'checkpoint_01.pth', 'checkpoint_best.pth'}
    log = read_log(tuned.parent)
    kinds = {f'{split}_acc{kind}' for split in ('val', 'test') for kind in ('', '_presence', '_count', '_relation')}
    assert set(log[0]) == kinds | {'epoch', 'train_lr', 'train_loss', 'val_consistency', 'test_consistency'}
    best = max(log, key=lambda record: record['val_acc'])  # the first of equal ones
    assert read_pth(tuned.with_name('checkpoint_best.pth'))['epoch'] == best['epoch']


def test_the_metrics_are_those_of_the_predictions(shapes, tuned):
    for split, name in (('val', 'dev'), ('test', 'test')):
        rows = read_rows(shapes, f'nlvr_{name}')
        predicted = read_lines(tuned.parent / 'result' / f'nlvr_{split}_epoch1.jsonl')
        for row, line in zip(rows, predicted, strict=True):
            shown = ('sentence', 'images', 'identifier', 'kind')
            assert {key: line[key] for key in shown} == {key: row[key] for key in shown}
            assert line['label'] == (row['label'] == 'True')
            assert line['prediction'] in (True, False) and line['prediction'] == (line['score'] > 0.5)
        correct = [line['prediction'] == line['label'] for line in predicted]
        record, counts = read_log(tuned.parent)[1], [row['kind'] == 'count' for row in rows]
        assert record[f'{split}_acc'] == np.mean(correct)
        assert record[f'{split}_acc_count'] == np.mean(np.array(correct)[counts])
        assert record[f'{split}_consistency'] == nlvr_consistency([row['identifier'] for row in rows], correct)


def test_each_stage_reports_what_it_loaded(shapes, tmp_path, pretrained, assigned, capsys):
    argv = arguments('nlvr', shapes, tmp_path / 'raw', 'schedular.epochs=1', flags=['--checkpoint', str(pretrained)])
    NLVR.main(argv)
    printed = capsys.readouterr().out
    assert 'checkpoint_01.pth: loaded' in printed and 'is loaded twice' in printed
    assert 'cls_head (4 tensors)' in printed
    unused = printed.split('only in the file, not used: ')[1].split('\n')[0]
    assert 'text_encoder (7 tensors)' in unused and 'itm_head (2 tensors)' in unused  # the heads of pre-training
    settings = ('schedular.epochs=1', *DISTILL)
    NLVR.main(arguments('nlvr', shapes, tmp_path / 'two', *settings, flags=['--checkpoint', str(assigned)]))
    printed = capsys.readouterr().out
    assert 'is loaded twice' not in printed and 'momentum copies: copies of the loaded weights' in printed
    model = weights(tmp_path / 'two' / 'checkpoint_00.pth')
    assert not torch.equal(model['cls_head_m.0.weight'], model['cls_head.0.weight'])


def test_evaluation_agrees_with_the_run(shapes, tmp_path, tuned, pretrained):
    NLVR.main(evaluating(shapes, tmp_path, tuned, 'train_file=[nowhere.json]'))
    last = read_log(tuned.parent)[1]
    metrics = {key: last[key] for key in last if key.startswith(('val_', 'test_'))}
    assert read_log(tmp_path) == [{'checkpoint': str(tuned)} | metrics]
    of_run = tuned.parent / 'result' / 'nlvr_test_epoch1.jsonl'
    assert (tmp_path / 'result' / 'nlvr_test.jsonl').read_text() == of_run.read_text()
    with pytest.raises(ValueError, match='checkpoint_01.pth does not fit this model: missing keys: cls_head.0.weight'):
        NLVR.main(evaluating(shapes, tmp_path, pretrained))
    with pytest.raises(ValueError, match='nothing to evaluate'):
        NLVR.main(arguments('nlvr', shapes, tmp_path, flags=['--evaluate']))
    with pytest.raises(ValueError, match='has neither val_file nor test_file'):
        NLVR.main(evaluating(shapes, tmp_path, tuned, 'val_file=null', 'test_file=null'))


def test_text_assignment_can_be_evaluated(shapes, tmp_path, assigned):
    argv = arguments('nlvr_pretrain', shapes, tmp_path, flags=['--evaluate', '--checkpoint', str(assigned)])
    Pretrain_nlvr.main(argv)
    Pretrain_nlvr.main(argv)
    first, second = read_log(tmp_path)
    assert first == second and first.keys() == {'checkpoint', 'val_loss'} and not list(tmp_path.glob('*.pth'))


# ---- any number of processes ----


@pytest.mark.slow
@pytest.mark.parametrize('processes', [2, 3])
def test_every_row_is_evaluated_once_by_any_number_of_processes(shapes, tmp_path, tuned, processes):
    """The same files and metrics to the last bit; with batches of 7 the shard of the last of 3 processes is short."""
    argv = {n: evaluating(shapes, tmp_path / str(n), tuned, 'batch_size=7') for n in (1, processes)}
    NLVR.main(argv[1])
    check_run(NLVR.main, argv[processes], tmp_path / 'log', processes)
    for name in ('log.txt', 'result/nlvr_val.jsonl', 'result/nlvr_test.jsonl'):
        assert (tmp_path / '1' / name).read_bytes() == (tmp_path / str(processes) / name).read_bytes()


@pytest.mark.slow
def test_more_processes_than_batches(shapes, tmp_path, tuned):
    file = write_rows(tmp_path / 'two.json', read_rows(shapes, 'nlvr_dev')[:2])
    argv = evaluating(shapes, tmp_path / 'out', tuned, f'val_file={file}', 'test_file=null')
    check_run(NLVR.main, argv, tmp_path / 'log', 2)
    assert len(read_lines(tmp_path / 'out' / 'result' / 'nlvr_val.jsonl')) == 2


def test_two_processes_with_workers(shapes, tmp_path, assigned):
    settings = ('schedular.epochs=1', 'num_workers=1')
    argv = arguments('nlvr', shapes, tmp_path / 'out', *settings, flags=['--checkpoint', str(assigned)])
    check_run(NLVR.main, argv, tmp_path / 'log', 2)
    assert [record['epoch'] for record in read_log(tmp_path / 'out')] == [0]
    printed = tail(tmp_path / 'log', lines=1000)
    assert '7 steps per epoch' in printed  # 248 statements in batches of 16 on two processes


# ---- resumption ----

POINTS = {
    'at start-up': lambda: DieAt(models, 'model_settings', 1),
    'while stepping': lambda: DieAt(torch.optim.AdamW, 'step', 3),
    'while evaluating': lambda: DieAt(ShardBatches, '__iter__', 2),
    'while writing a checkpoint': lambda: DieAt(os, 'fsync', 2),
    'between checkpoint and log': lambda: DieAt(utils.checkpoint, 'write_log', 1),
}


def results(folder):
    """{name: content} of the log and the result files of a run."""
    files = [path for path in folder.rglob('*') if path.suffix in ('.txt', '.jsonl')]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def check_resumed(main, argv, processes, places, tmp_path):
    """Killed at each place in turn and resumed by the same command, a run ends as one without interruption."""
    log, folders = tmp_path / 'log', (tmp_path / 'killed', tmp_path / 'uninterrupted')
    check_run(main, argv(folders[1]), log, processes)
    killed = [*argv(folders[0]), '--resume']
    for place in places:
        assert run(main, killed, log, processes, POINTS[place]())[0] == KILLED, (place, tail(log))
    check_run(main, killed, log, processes)
    assert differing(*(state_of_run(folder / 'checkpoint_01.pth') for folder in folders)) == []
    assert results(folders[0]) == results(folders[1])


@pytest.mark.slow
@pytest.mark.parametrize('processes, places', [(1, list(POINTS)), (2, ['while stepping', 'while evaluating'])])
def test_nlvr_resumes_exactly(shapes, tmp_path, assigned, processes, places):
    """With distillation: the momentum copies are part of the run."""

    def argv(folder):
        return arguments('nlvr', shapes, folder, 'save_every=2', *DISTILL, flags=['--checkpoint', str(assigned)])

    check_resumed(NLVR.main, argv, processes, places, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_text_assignment_resumes_exactly(shapes, tmp_path, pretrained, processes):
    def argv(folder):
        return arguments('nlvr_pretrain', shapes, folder, 'save_every=2', flags=['--checkpoint', str(pretrained)])

    places = ['while stepping', 'while writing a checkpoint']
    check_resumed(Pretrain_nlvr.main, argv, processes, places, tmp_path)


# ---- distillation ----


def test_distillation_warms_up_and_the_copies_start_as_the_loaded_weights(shapes, tmp_path, assigned, monkeypatch):
    alphas, copies = [], []
    original = TrainingRun.distillation_weight
    monkeypatch.setattr(TrainingRun, 'distillation_weight', lambda run: alphas.append(original(run)) or alphas[-1])
    monkeypatch.setattr(
        MomentumModel,
        'update_momentum',
        lambda model: copies.append(
            all(
                torch.equal(p, m)
                for part, copy in model.momentum_pairs()
                for p, m in zip(part.parameters(), copy.parameters(), strict=True)
            )
        ),
    )
    NLVR.main(arguments('nlvr', shapes, tmp_path, *DISTILL, flags=['--checkpoint', str(assigned)]))
    steps = 15
    assert alphas == pytest.approx([0.4 * i / steps for i in range(steps)] + [0.4] * steps)
    assert copies == [True] + [False] * (2 * steps - 1)


@pytest.fixture(scope='module')
def averaged(shapes, assigned, tmp_path_factory):
    """The last checkpoint of a run that evaluates its momentum copy."""
    folder = tmp_path_factory.mktemp('averaged')
    settings = (*DISTILL, 'eval_ema=true')
    NLVR.main(arguments('nlvr', shapes, folder, *settings, flags=['--checkpoint', str(assigned)]))
    return folder / 'checkpoint_01.pth'


def test_eval_ema_evaluates_the_momentum_copy(shapes, averaged, tmp_path):
    """--evaluate gives the metrics and predictions of the log; with the copy as the model, they are the same."""
    NLVR.main(evaluating(shapes, tmp_path / 'copy', averaged, *DISTILL, 'eval_ema=true'))
    last = read_log(averaged.parent)[1]
    metrics = {key: last[key] for key in last if key.startswith(('val_', 'test_'))}
    assert read_log(tmp_path / 'copy') == [{'checkpoint': str(averaged)} | metrics]

    state = weights(averaged)
    names = [key for key in state if '_m.' not in key]
    assert any(not torch.equal(state[key], state[momentum_name(key)]) for key in names)
    torch.save({'model': {key: state[momentum_name(key)] for key in names}}, tmp_path / 'copy.pth')
    NLVR.main(evaluating(shapes, tmp_path / 'exchanged', tmp_path / 'copy.pth'))
    NLVR.main(evaluating(shapes, tmp_path / 'plain', averaged, *DISTILL))
    predictions = {
        name: read_lines(tmp_path / name / 'result' / 'nlvr_val.jsonl') for name in ('copy', 'exchanged', 'plain')
    }
    assert predictions['copy'] == read_lines(averaged.parent / 'result' / 'nlvr_val_epoch1.jsonl')
    assert predictions['copy'] == predictions['exchanged'] != predictions['plain']


def momentum_name(key):
    part, _, rest = key.partition('.')
    return f'{part}_m.{rest}'


def test_eval_ema_needs_the_momentum_copy(shapes, tuned, tmp_path):
    with pytest.raises(ValueError, match='eval_ema: true needs the momentum copy: set distill: true'):
        NLVR.main(arguments('nlvr', shapes, tmp_path, 'eval_ema=true'))
    with pytest.raises(ValueError, match='checkpoint_01.pth has no momentum copy to evaluate; set eval_ema: false'):
        NLVR.main(evaluating(shapes, tmp_path, tuned, *DISTILL, 'eval_ema=true'))  # its run had no copy


# ---- rows and images ----


def evaluate_rows(shapes, tmp_path, tuned, rows, *settings):
    """The record of an evaluation of some rows."""
    settings = (f'val_file={write_rows(tmp_path / "rows.json", rows)}', 'test_file=null', *settings)
    NLVR.main(evaluating(shapes, tmp_path / 'out', tuned, *settings))
    record = read_log(tmp_path / 'out')[0]
    assert record.pop('checkpoint') == str(tuned)
    return record


def test_rows_without_identifier_or_kind_have_only_accuracy(shapes, tmp_path, tuned):
    rows = read_rows(shapes, 'nlvr_dev')
    plain = [{key: row[key] for key in ('sentence', 'images', 'label')} for row in rows]
    assert evaluate_rows(shapes, tmp_path, tuned, plain).keys() == {'val_acc'}


def test_some_kinds_and_other_identifiers(shapes, tmp_path, tuned):
    rows = read_rows(shapes, 'nlvr_dev')
    del rows[0]['kind']
    rows[1]['identifier'] = 17
    record = evaluate_rows(shapes, tmp_path, tuned, rows)
    assert record.keys() == {'val_acc', 'val_acc_presence', 'val_acc_count', 'val_acc_relation'}


def test_an_unreadable_image_is_evaluated_blank_and_reported_or_refused(shapes, tmp_path, tuned, capsys):
    rows = read_rows(shapes, 'nlvr_dev')[:4]
    rows[2]['images'][1] = 'images/none.jpg'
    assert evaluate_rows(shapes, tmp_path, tuned, rows)['val_acc'] in (0, 0.25, 0.5, 0.75, 1)
    printed = capsys.readouterr().out
    assert 'evaluated with a blank image' in printed and 'row 2' in printed
    assert len(read_lines(tmp_path / 'out' / 'result' / 'nlvr_val.jsonl')) == 4
    with pytest.raises(ValueError, match=r'rows.json, row 2: cannot read the image .*none.jpg'):
        evaluate_rows(shapes, tmp_path, tuned, rows, 'on_bad_image=error')


def test_what_cannot_work_is_refused_before_any_work(shapes, tmp_path):
    with pytest.raises(ValueError, match='batch_size must be at least 3'):
        Pretrain_nlvr.main(arguments('nlvr_pretrain', shapes, tmp_path, 'batch_size=2'))
    with pytest.raises(FileNotFoundError, match='--checkpoint none.pth: there is no such file'):
        NLVR.main(arguments('nlvr', shapes, tmp_path, flags=['--checkpoint', 'none.pth']))
    with pytest.raises(FileNotFoundError, match='set image_root'):
        NLVR.main(arguments('nlvr', shapes, tmp_path, 'image_root=/nowhere'))
