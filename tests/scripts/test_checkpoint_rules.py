"""Which checkpoints a run may touch, refuses, skips, and continues from."""

import importlib
import json
import os
import shutil

import pytest
import torch

import utils.checkpoint
from tests.helpers import differing, read_log, read_pth, read_rows, weights, write_rows
from tests.processes import KILLED, DieAt, SmallFiles, run, run_script
from tests.tiny import SCRIPTS, arguments
from utils.errors import InputError

TWO_EPOCHS = ('train_epochs=2', 'schedular.epochs=2')
MAINS = {task: importlib.import_module(name).main for task, name in SCRIPTS.items()}


def one_epoch(task, *settings):
    """Settings of a run of a single epoch with few steps."""
    size = {'retrieval': 'batch_size_train', 'vqa': 'batch_size_train'}.get(task, 'batch_size')
    steps = ('batch_size=16', 'search_space=16') if task == 'pretrain' else (f'{size}=60',)
    epochs = 'train_epochs=1' if task == 'pretrain' else 'schedular.epochs=1'
    return (*steps, epochs, *settings)


@pytest.fixture(scope='module')
def finished(shapes, tmp_path_factory):
    """A function of a task: the folder of a finished run of one epoch, to be copied."""
    folders = {}

    def finished(task):
        if task not in folders:
            folders[task] = tmp_path_factory.mktemp(task)
            MAINS[task](arguments(task, shapes, folders[task], *one_epoch(task)))
        return folders[task]

    return finished


@pytest.fixture
def copy_of(finished, tmp_path):
    return lambda task: shutil.copytree(finished(task), tmp_path / task)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(task, shapes, folder, *settings, flags=(), match):
    """The command is refused, and not a byte of the folder changes."""
    before = content_of(folder)
    with pytest.raises(InputError, match=match):
        MAINS[task](arguments(task, shapes, folder, *settings, flags=flags))
    assert content_of(folder) == before


# ---- ownership of files ----


@pytest.mark.parametrize('task', SCRIPTS)
def test_a_new_run_does_not_overwrite_an_earlier_one(shapes, copy_of, task):
    refused(
        task, shapes, copy_of(task), *one_epoch(task), match=r'holds checkpoint_\w+.pth of an earlier run; --resume'
    )


@pytest.mark.parametrize('task, other', [('retrieval', 'pretrain'), ('pretrain', 'nlvr'), ('vqa', 'retrieval')])
def test_another_tasks_run_is_not_resumed(shapes, copy_of, task, other):
    message = f'checkpoint_00.pth is a checkpoint of {other}, not of {task}'
    refused(task, shapes, copy_of(other), *one_epoch(task), flags=['--resume'], match=message)


def test_two_runs_in_one_folder_are_not_mixed(shapes, copy_of, finished):
    folder = copy_of('nlvr')
    content = read_pth(folder / 'checkpoint_00.pth') | {'started': 1.0, 'position': [3, 0]}
    torch.save(content, folder / 'checkpoint_02.pth')
    refused('nlvr', shapes, folder, flags=['--resume'], match='checkpoint_02.pth are of two different runs')


def test_a_run_deletes_only_checkpoints_that_it_wrote(shapes, tmp_path):
    others = ['checkpoint_01_old.pth', 'checkpoint_01 (copy).pth', 'checkpoint_1.pth', 'checkpoint_007.pth', 'my.pth']
    for name in others:
        (tmp_path / name).write_text(name)
    settings = ('batch_size=16', 'search_space=16', 'train_epochs=3', 'keep_checkpoints=1')
    MAINS['pretrain'](arguments('pretrain', shapes, tmp_path, *settings))
    assert {path.name for path in tmp_path.glob('*.pth')} == {*others, 'checkpoint_02.pth'}
    assert all((tmp_path / name).read_text() == name for name in others)
    MAINS['pretrain'](arguments('pretrain', shapes, tmp_path, *settings, 'train_epochs=4', flags=['--resume']))
    assert {path.name for path in tmp_path.glob('*.pth')} == {*others, 'checkpoint_03.pth'}


@pytest.mark.parametrize('task', ['pretrain', 'nlvr'])
def test_a_run_that_was_killed_before_it_deleted_does_so_when_it_begins_again(shapes, tmp_path, task):
    """In the last epoch, after which no other deletes."""
    argv = arguments(task, shapes, tmp_path, *one_epoch(task), *TWO_EPOCHS, 'keep_checkpoints=1', flags=['--resume'])
    death = DieAt(utils.checkpoint, 'prune_checkpoints', 2)
    assert run(MAINS[task], argv, tmp_path / 'log', fault=death) == [KILLED]
    assert (tmp_path / 'checkpoint_00.pth').exists() and (tmp_path / 'checkpoint_01.pth').exists()
    MAINS[task](argv)
    names = {path.name for path in tmp_path.glob('*.pth')}
    assert names - {'checkpoint_best.pth'} == {'checkpoint_01.pth'} and len(read_log(tmp_path)) == 2


@pytest.mark.parametrize('resume', [False, True])
def test_a_second_run_is_refused_while_the_first_uses_the_folder(shapes, tmp_path, monkeypatch, resume):
    from utils import ownership

    monkeypatch.setattr(ownership, 'WAIT', 0.1)
    ownership.own_folder(tmp_path)
    argv = arguments('pretrain', shapes, tmp_path, flags=['--resume'] if resume else [])
    [(code, _, err)] = run_script('Pretrain.py', argv, tmp_path)
    ownership.release_folder()
    assert code == 2 and err.count('\n') == 1 and 'another run is using this folder' in err
    assert not (tmp_path / 'config.yaml').exists()


# ---- damaged files ----


def flip_a_bit(path):
    """In the middle of the largest tensor of a checkpoint."""
    largest = max(weights(path).values(), key=torch.Tensor.numel)
    content = bytearray(path.read_bytes())
    content[content.index(largest.numpy().tobytes()) + largest.numel() * 2] ^= 4
    path.write_bytes(content)


def poison_weights(path):
    content = read_pth(path)
    next(iter(content['model'].values())).view(-1)[0] = float('nan')
    torch.save(content, path)


def drop_the_start(path):
    content = read_pth(path)
    del content['started']
    torch.save(content, path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


DAMAGES = {
    flip_a_bit: 'damaged, the checksum of .*data/.* is wrong',
    poison_weights: '1 of its weights are not finite',
    drop_the_start: 'damaged, or not a checkpoint of a run',
    truncate: 'damaged, or not a checkpoint of a run',
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(shapes, tmp_path, capsys, damage):
    argv = arguments('pretrain', shapes, tmp_path, 'batch_size=16', 'search_space=16', flags=['--resume'])
    MAINS['pretrain'](argv)
    expected = weights(tmp_path / 'checkpoint_01.pth')
    damage(tmp_path / 'checkpoint_01.pth')
    capsys.readouterr()
    MAINS['pretrain'](argv)
    printed = capsys.readouterr().out
    assert f'skipped {tmp_path}/checkpoint_01.pth: ' in printed and 'checkpoint_00.pth at epoch 1' in printed
    assert differing(weights(tmp_path / 'checkpoint_01.pth'), expected) == []


@pytest.mark.parametrize('damage, reason', DAMAGES.items())
def test_damaged_checkpoints_alone_are_not_overwritten(shapes, copy_of, damage, reason):
    folder = copy_of('pretrain')
    damage(folder / 'checkpoint_00.pth')
    message = f'no checkpoint in .* can be resumed, such as .*checkpoint_00.pth: {reason}'
    refused('pretrain', shapes, folder, *one_epoch('pretrain'), flags=['--resume'], match=message)


# ---- another vocabulary, other data, another seed, another model ----


def other_seed(shapes, folder):
    return [], ['--seed', '7'], r'seed was \d+ and is now 7'


def permuted_vocabulary(shapes, folder):
    words = (shapes / 'vocab' / 'vocab.txt').read_text().splitlines()
    words[-1], words[-2] = words[-2], words[-1]
    shutil.copytree(shapes / 'vocab', folder / 'vocab')
    for name in os.listdir(folder / 'vocab'):
        if name != 'vocab.txt':
            os.remove(folder / 'vocab' / name)
    (folder / 'vocab' / 'vocab.txt').write_text('\n'.join(words) + '\n')
    return (
        [],
        ['--text_encoder', str(folder / 'vocab')],
        r'vocabulary was \d+ tokens with digest \w+ and is now \d+ tokens',
    )


def other_rows(name):
    def other_rows(shapes, folder):
        rows = read_rows(shapes, name)
        rows[3], rows[4] = rows[4], rows[3]
        path = write_rows(folder / 'rows.json', rows)
        return [f'train_file=[{path}]'], [], r'train_file was \d+ rows with digest \w+ and is now \d+ rows'

    return other_rows


TRAIN_FILES = {
    'pretrain': 'pretrain',
    'retrieval': 'retrieval_train',
    'nlvr_pretrain': 'pretrain',
    'nlvr': 'nlvr_train',
    'vqa': 'vqa_train',
}


@pytest.mark.parametrize('kind', ['seed', 'vocabulary', 'rows'])
@pytest.mark.parametrize('task', SCRIPTS)
def test_other_input_is_refused_unless_it_is_forced(shapes, copy_of, tmp_path, capsys, task, kind):
    change = {'seed': other_seed, 'vocabulary': permuted_vocabulary, 'rows': other_rows(TRAIN_FILES[task])}[kind]
    settings, flags, line = change(shapes, tmp_path)
    folder, epochs = copy_of(task), 'train_epochs=2' if task == 'pretrain' else 'schedular.epochs=2'
    settings = (*one_epoch(task), epochs, *settings)
    flags = ['--resume', *flags]
    refused(task, shapes, folder, *settings, flags=flags, match=f'is of a run with other input: {line}.*--force')
    if (task, kind) == ('pretrain', 'seed'):
        return  # GRIT's queue cannot continue with another seed
    MAINS[task](arguments(task, shapes, folder, *settings, flags=[*flags, '--force']))
    assert '--force: ' in capsys.readouterr().out and len(read_log(folder)) == 2


@pytest.mark.parametrize(
    'task, key, name', [('retrieval', 'val_file', 'retrieval_val'), ('nlvr', 'test_file', 'nlvr_test')]
)
def test_other_rows_to_evaluate_are_refused(shapes, copy_of, tmp_path, task, key, name):
    """Their metrics could not be compared with those of the epochs before."""
    path = write_rows(tmp_path / 'rows.json', read_rows(shapes, name)[:-1])
    settings = (*one_epoch(task), 'schedular.epochs=2', f'{key}={path}')
    message = rf'{key} was \d+ rows with digest \w+ and is now \d+ rows.*--force'
    refused(task, shapes, copy_of(task), *settings, flags=['--resume'], match=message)


def test_another_answer_list_is_refused(shapes, copy_of, tmp_path):
    path = write_rows(tmp_path / 'answers.json', json.loads((shapes / 'answer_list.json').read_text())[::-1])
    settings = (*one_epoch('vqa'), 'schedular.epochs=2', f'answer_list={path}')
    message = r'answer_list was \d+ answers with digest \w+ and is now'
    refused('vqa', shapes, copy_of('vqa'), *settings, flags=['--resume'], match=message)


@pytest.mark.parametrize('flag', ['--force', '--elastic'])
def test_flags_of_resuming_need_it(shapes, tmp_path, flag):
    with pytest.raises(InputError, match=f'{flag}: needs --resume'):
        MAINS['nlvr'](arguments('nlvr', shapes, tmp_path, flags=[flag]))


@pytest.mark.parametrize('task', SCRIPTS)
def test_another_model_is_refused_by_key(shapes, copy_of, task):
    message = (
        r'checkpoint_00.pth does not fit this model: .* was .* and is now .*; bert_config.intermediate_size was 64 and '
        'is now 32; resume with the settings of the config.yaml'
    )
    settings = (*one_epoch(task), 'bert_config.intermediate_size=32')
    refused(task, shapes, copy_of(task), *settings, flags=['--resume'], match=message)


def test_another_grouping_of_parameters_is_refused(shapes, copy_of):
    settings = (*one_epoch('pretrain'), 'optimizer.no_decay=[temp]')
    message = 'the optimizer of the run had other parameters.*optimizer.no_decay'
    refused('pretrain', shapes, copy_of('pretrain'), *settings, flags=['--resume'], match=message)


def test_changed_settings_are_printed_by_their_full_name(shapes, copy_of, capsys):
    folder = copy_of('nlvr')
    settings = (*one_epoch('nlvr'), 'schedular.epochs=2', 'optimizer.weight_decay=0.1')
    MAINS['nlvr'](arguments('nlvr', shapes, folder, *settings, flags=['--resume']))
    printed = capsys.readouterr().out
    assert '--resume: optimizer.weight_decay was 0.02 and is now 0.1' in printed
    assert '--resume: schedular.epochs was 1 and is now 2' in printed
    assert 'weight_decay: 0.1' in (folder / 'config.yaml').read_text()


# ---- a full disk ----


def test_a_full_disk_leaves_the_earlier_files_and_one_line(shapes, copy_of, tmp_path):
    folder = copy_of('pretrain')
    before = content_of(folder)
    assert len(before['checkpoint_00.pth']) > 100_000
    argv = arguments('pretrain', shapes, folder, *one_epoch('pretrain'), 'train_epochs=2', flags=['--resume'])
    [(code, _, err)] = run_script('Pretrain.py', argv, tmp_path, faults={0: SmallFiles(100_000)})
    assert code == 2
    assert err == f'error: {folder}/checkpoint_01.pth: File too large: make room and start again with --resume\n'
    after = content_of(folder)
    assert after.keys() == before.keys() and after['checkpoint_00.pth'] == before['checkpoint_00.pth']
    assert json.loads(after['log.txt'].splitlines()[-1])['epoch'] == 0
