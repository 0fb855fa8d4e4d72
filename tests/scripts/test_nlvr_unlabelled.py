"""NLVR.py on rows without labels, as those of a challenge: predictions without an accuracy."""

import pytest

import NLVR
from tests.helpers import read_lines, read_log, read_rows, write_rows
from tests.tiny import arguments
from utils.errors import InputError

ONE_STEP = ('batch_size=100', 'schedular.epochs=2')


def without_labels(rows, numbers):
    return [{key: row[key] for key in row if key != 'label' or n not in numbers} for n, row in enumerate(rows)]


@pytest.fixture(scope='module')
def run(shapes, tmp_path_factory):
    """The folder of two epochs with every second label of dev and none of test."""
    folder = tmp_path_factory.mktemp('unlabelled')
    dev, test = read_rows(shapes, 'nlvr_dev'), read_rows(shapes, 'nlvr_test')
    val = write_rows(folder / 'dev.json', without_labels(dev, range(0, len(dev), 2)))
    test = write_rows(folder / 'test.json', without_labels(test, range(len(test))))
    NLVR.main(arguments('nlvr', shapes, folder, f'val_file={val}', f'test_file={test}', *ONE_STEP))
    return folder


def test_metrics_are_over_the_labelled_rows(shapes, run):
    rows = read_rows(shapes, 'nlvr_dev')
    lines = read_lines(run / 'result' / 'nlvr_val_epoch1.jsonl')
    assert len(lines) == len(rows) and [line.get('label') for line in lines[::2]] == [None] * len(rows[::2])
    labelled = list(zip(rows, lines, strict=True))[1::2]
    correct = [line['prediction'] == (row['label'] == 'True') for row, line in labelled]
    record = read_log(run)[1]
    assert record['val_acc'] == pytest.approx(sum(correct) / len(correct))
    assert 'val_consistency' not in record  # it is about all pairs of images of a sentence
    assert not [key for key in record if key.startswith('test_')] and (run / 'checkpoint_best.pth').exists()


def test_predictions_without_labels_are_written_at_the_end(shapes, run):
    assert not (run / 'result' / 'nlvr_test_epoch0.jsonl').exists()
    rows, lines = read_rows(shapes, 'nlvr_test'), read_lines(run / 'result' / 'nlvr_test_epoch1.jsonl')
    assert [line['identifier'] for line in lines] == [row['identifier'] for row in rows]
    for line in lines:
        assert 'label' not in line and line['prediction'] is (line['score'] > 0.5)


def test_a_split_without_labels_is_predicted_without_training(shapes, run, tmp_path, capsys):
    flags = ['--evaluate', '--checkpoint', str(run / 'checkpoint_01.pth')]
    settings = ('val_file=null', f'test_file={run}/test.json', *ONE_STEP)  # other batches give other last bits
    NLVR.main(arguments('nlvr', shapes, tmp_path, *settings, flags=flags))
    printed, rows = capsys.readouterr().out, len(read_rows(shapes, 'nlvr_test'))
    assert 'no test statement has a label: they are predicted, without metrics' in printed
    assert f'{rows} predictions of test are in {tmp_path}/result/nlvr_test.jsonl' in printed
    of_run = run / 'result' / 'nlvr_test_epoch1.jsonl'
    assert (tmp_path / 'result' / 'nlvr_test.jsonl').read_text() == of_run.read_text()
    assert read_log(tmp_path) == [{'checkpoint': str(run / 'checkpoint_01.pth')}]


def test_nothing_is_validated_without_labels(shapes, run, tmp_path):
    with pytest.raises(InputError, match='val_file: no row has a label, so nothing can be validated; give the file'):
        NLVR.main(arguments('nlvr', shapes, tmp_path, f'val_file={run}/test.json'))
    assert not list(tmp_path.glob('*.pth'))
    flags = ['--evaluate', '--checkpoint', str(run / 'checkpoint_01.pth')]  # only predicts
    NLVR.main(arguments('nlvr', shapes, tmp_path, f'val_file={run}/test.json', 'test_file=null', flags=flags))
    assert (tmp_path / 'result' / 'nlvr_val.jsonl').exists()
