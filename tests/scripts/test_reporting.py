"""`report_to: tensorboard` in the scripts: the event files have every line of progress and every record once."""

import signal
import sys
import time

import numpy as np
import pytest
import torch

import Pretrain
import utils.checkpoint
import VQA
from scheduler import learning_rate
from tests.helpers import read_log, read_pth
from tests.processes import KILLED, DieAt, SignalAt, check_run, run, run_script, tail
from tests.test_engine import make_run, train
from tests.tiny import arguments, resolved
from utils.checkpoint import Status
from utils.reporting import Report, flatten

pytest.importorskip('tensorboard')

STEPS = 7  # an epoch of 62 pairs in batches of 8
SETTINGS = ('report_to=tensorboard', 'batch_size=8', 'save_every=4', 'print_freq=2')


def scalars_of(folder):
    """{tag: [(global step, value), ...]} as TensorBoard shows them, all files together."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'scalars': 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def records_of(folder, steps):
    """The numbers of log.txt as they must be reported; TensorBoard has 32 bits."""
    found = {}
    for record in read_log(folder):
        for name, value in flatten(record).items():
            found.setdefault(f'epoch/{name}', []).append(((record['epoch'] + 1) * steps, np.float32(value)))
    return found


def next_second():
    """Event files are read in the order of their names, which begin with the second they were made in."""
    time.sleep(1 - time.time() % 1)


@pytest.fixture(scope='module')
def whole(shapes, tmp_path_factory):
    """The folder of a pre-training that nothing interrupts."""
    folder = tmp_path_factory.mktemp('whole')
    Pretrain.main(arguments('pretrain', shapes, folder, *SETTINGS))
    return folder


def test_the_scalars_are_those_of_the_log(shapes, whole):
    scalars = scalars_of(whole)
    epochs = {tag: values for tag, values in scalars.items() if tag.startswith('epoch/')}
    assert epochs == records_of(whole, STEPS) and len(epochs['epoch/train_loss_mlm']) == 2
    lines = [epoch * STEPS + step for epoch in range(2) for step in (1, 3, 5, 6)]
    assert {tag: [step for step, _ in values] for tag, values in scalars.items() if tag not in epochs} == dict.fromkeys(
        (f'step/{name}' for name in ('lr', 'loss_mlm', 'loss_itc', 'loss_itm', 'itm_acc', 'temp')), lines
    )
    schedule = resolved('pretrain', shapes)['schedular']
    rates = [learning_rate(schedule, *divmod(step, STEPS)) for step in lines]
    assert [value for _, value in scalars['step/lr']] == [np.float32(rate) for rate in rates]
    for name in ('loss_mlm', 'loss_itc', 'itm_acc'):  # the mean of an epoch is that of its lines: of 2, 2, 2, 1 steps
        values = np.array([value for _, value in scalars[f'step/{name}']]).reshape(2, 4)
        means = [record[f'train_{name}'] for record in read_log(whole)]
        assert (values * [2, 2, 2, 1]).sum(1) / STEPS == pytest.approx(means, rel=1e-6)


def test_a_stopped_and_killed_run_reports_everything_once(shapes, tmp_path, whole):
    """Killed after a line that is trained again, after a checkpoint, and stopped by a signal."""
    folder, log = tmp_path / 'run', tmp_path / 'log'
    argv = arguments('pretrain', shapes, folder, *SETTINGS, flags=['--resume'])
    deaths = [
        (DieAt(torch.optim.AdamW, 'step', 7), [0, 4], [1, 3, 5]),  # the line of step 5 is trained again
        (DieAt(utils.checkpoint, 'prune_checkpoints', 1, after=True), [1, 0], [1, 3, 5, 6]),  # the record is missing
    ]
    for death, position, lines in deaths:
        assert run(Pretrain.main, argv, log, 1, death) == [KILLED], tail(log)
        newest = folder / ('checkpoint_00.pth' if position[0] else 'checkpoint_step.pth')
        assert read_pth(newest)['position'] == position
        scalars = scalars_of(folder)
        assert [step for step, _ in scalars['step/loss_mlm']] == lines and 'epoch/epoch' not in scalars
        next_second()
    fault = SignalAt(torch.optim.AdamW, 'step', 4, signal.SIGTERM)
    ((code, _, err),) = run_script('Pretrain.py', argv, tmp_path, faults={0: fault})
    assert code == 143 and err.startswith('stopped by SIGTERM at epoch 1, step 4; ') and err.count('\n') == 1
    assert [step for step, _ in scalars_of(folder)['step/loss_mlm']] == [1, 3, 5, 6, 8, 10]
    next_second()
    check_run(Pretrain.main, argv, log)
    assert scalars_of(folder) == scalars_of(whole)
    assert read_log(folder) == read_log(whole)


def test_a_row_is_in_the_file_at_once(tmp_path, monkeypatch):
    """Although a thread of TensorBoard writes it, here a slow one: nothing may end the process before."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write = RecordWriter.write
    monkeypatch.setattr(RecordWriter, 'write', lambda *args: (time.sleep(0.1), write(*args)))
    report = Report({'report_to': 'tensorboard'}, tmp_path, steps=5)
    report.begin(Status())
    report.step(3, {'loss': 0.5})
    assert scalars_of(tmp_path) == {'step/loss': [(3, 0.5)]}
    report.close(complete=True)


def test_a_new_run_hides_an_earlier_one(tmp_path):
    """As after its checkpoints were removed, to start again."""
    for epochs in (3, 1):
        if list(tmp_path.glob('*.pth')):
            next_second()
        for path in tmp_path.glob('*.pth'):
            path.unlink()
        run = make_run(tmp_path, epochs=epochs, report_to='tensorboard')
        run.begin()
        train(run)
    assert scalars_of(tmp_path)['epoch/epoch'] == [(run.steps, 0.0)]


def test_the_metrics_of_an_evaluation_are_reported(shapes, tmp_path):
    settings = ('schedular.epochs=1', 'batch_size_train=128', 'test_file=null', 'k_test=2')
    VQA.main(arguments('vqa', shapes, tmp_path, 'report_to=tensorboard', *settings))
    scalars = scalars_of(tmp_path)
    assert {tag: values for tag, values in scalars.items() if tag.startswith('epoch/')} == records_of(tmp_path, steps=2)
    assert [step for step, _ in scalars['step/loss']] == [1]
    assert {'epoch/val_overall', 'epoch/val_answer_type_yes/no', 'epoch/val_question_type_what is'} <= scalars.keys()


def test_an_evaluation_reports_nothing(shapes, tmp_path, pretrained, monkeypatch):
    """Not even the package is needed."""
    monkeypatch.setitem(sys.modules, 'wandb', None)
    argv = arguments(
        'pretrain', shapes, tmp_path, 'report_to=wandb', flags=['--evaluate', '--checkpoint', str(pretrained)]
    )
    Pretrain.main(argv)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != '.') == ['log.txt']
