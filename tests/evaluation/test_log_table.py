"""The table of finished runs."""

import json

import pytest

from evaluation.__main__ import main
from utils.errors import InputError


def write_log(folder, *entries):
    folder.mkdir()
    (folder / 'log.txt').write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return str(folder)


def table_of(capsys, *folders):
    main(['table', *folders])
    text = capsys.readouterr().out
    header, _, *lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    assert header == ['key', *folders]
    return {line[0]: line[1:] for line in lines}


def test_table_picks_the_best_validated_epoch_and_joins_runs(tmp_path, capsys):
    retrieval = write_log(
        tmp_path / 'retrieval',
        *(
            {
                'epoch': epoch,
                'train_loss_itc': 2.0 - epoch,
                'train_lr': 1e-5,
                'val_r_mean': mean,
                'val_itc_r_mean': -mean,
                'test_txt_r1': 10.0 * epoch,
                'test_itc_img_r10': 33.333333,
            }
            for epoch, mean in enumerate([50.0, 60.0, 60.0])
        ),
    )
    pretrain = write_log(tmp_path / 'pretrain', {'epoch': 0, 'train_loss_itc': 3.0}, {'epoch': 1, 'train_loss_itc': 2})
    table = table_of(capsys, retrieval, pretrain)
    metrics = ['test_txt_r1', 'test_itc_img_r10', 'val_r_mean', 'val_itc_r_mean', 'train_loss_itc']
    assert list(table) == ['chosen by', 'epoch', *metrics]
    assert table['chosen by'] == ['val_r_mean', 'last'] and table['epoch'] == ['1', '1']
    assert table['test_txt_r1'] == ['10', '-'] and table['test_itc_img_r10'] == ['33.33', '-']
    assert table['train_loss_itc'] == ['1', '2']


def test_table_of_nlvr_and_vqa(tmp_path, capsys):
    nlvr = write_log(tmp_path / 'nlvr', {'epoch': 0, 'val_acc': 0.81, 'test_acc': 0.5}, {'epoch': 1, 'val_acc': 0.8})
    vqa = write_log(tmp_path / 'vqa', {'epoch': 3, 'val_overall': 70.0, 'val_perAnswerType': {'yes/no': 80.0}})
    table = table_of(capsys, nlvr, vqa)
    assert table['val_acc'] == ['0.81', '-'] and table['test_acc'] == ['0.5', '-']
    assert table['val_overall'] == ['-', '70'] and table['val_perAnswerType.yes/no'] == ['-', '80']


@pytest.mark.parametrize('text, message', [
    (None, 'log.txt does not exist'), ('', 'is empty'), ('3\n', 'line 1: not a JSON object'),
    ('{"epoch": 0}\n{"epo', 'line 2: not a JSON object'), ('[' * 100_000, 'line 1: not a JSON object'),
    ('{"epoch": ' + '9' * 5000 + '}', 'line 1: not a JSON object'),
])  # fmt: skip
def test_a_bad_log_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'log.txt').write_text(text)
    with pytest.raises(InputError, match=message):
        main(['table', str(tmp_path)])


@pytest.mark.parametrize('missing', [None, float('nan'), 'x'])
def test_an_epoch_without_a_number_is_not_the_best(tmp_path, capsys, missing):
    means = [missing, 40.0, 60.0, missing, 50.0]
    run = write_log(tmp_path / 'a', *({'epoch': epoch, 'val_r_mean': mean} for epoch, mean in enumerate(means)))
    assert table_of(capsys, run)['epoch'] == ['2']
