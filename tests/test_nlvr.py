"""Pretrain_nlvr.py and NLVR.py end to end on a small world: both stages, evaluation, resumption, and bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset.metrics import nlvr_consistency

import models.momentum
import NLVR
import Pretrain_nlvr
import utils.checkpoint
from dataset.nlvr_dataset import NLVRDataset, NLVREvalDataset
from dataset.samplers import ShardBatches
from models.tokenization_bert import create_tokenizer
from tests.processes import KILLED, DieAt, run, tail
from tests.tiny import arguments
from utils.config import apply_overrides, read_yaml, resolve

DISTILL = ('distill=true', 'alpha=0.4', 'momentum=0.9')


def records(folder):
    return [json.loads(line) for line in Path(folder, 'log.txt').read_text().splitlines()]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def content(path):
    return torch.load(path, weights_only=True)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope='module')
def assigned(world, pretrained, tmp_path_factory):
    """The folder of a text assignment run that started from pre-training."""
    folder = tmp_path_factory.mktemp('assigned')
    Pretrain_nlvr.main(arguments('nlvr_pretrain', world, folder, flags=['--checkpoint', str(pretrained)]))
    return folder


@pytest.fixture(scope='module')
def tuned(world, assigned, tmp_path_factory):
    """The folder of an NLVR run that started from text assignment."""
    folder = tmp_path_factory.mktemp('tuned')
    NLVR.main(arguments('nlvr', world, folder, flags=['--checkpoint', str(assigned / 'checkpoint_01.pth')]))
    return folder


# ---- both stages ----


def test_both_stages_leave_what_they_should(assigned, tuned):
    assert {path.name for path in assigned.iterdir()} >= {
        'checkpoint_00.pth',
        'checkpoint_01.pth',
        'config.yaml',
        'log.txt',
    }
    assert [sorted(record) for record in records(assigned)] == [['epoch', 'train_loss', 'train_lr']] * 2
    trained = content(assigned / 'checkpoint_01.pth')['model']
    started = content(assigned / 'checkpoint_00.pth')['model']
    for name in ('temp', 'vision_proj.weight', 'text_proj.weight'):
        assert torch.equal(trained[name], started[name])
    assert not torch.equal(trained['ta_head.weight'], started['ta_head.weight'])

    assert {path.name for path in tuned.iterdir()} >= {'checkpoint_00.pth', 'checkpoint_01.pth', 'checkpoint_best.pth'}
    log = records(tuned)
    kinds = {f'{split}_acc{kind}' for split in ('val', 'test') for kind in ('', '_presence', '_count', '_relation')}
    assert set(log[0]) == kinds | {'epoch', 'train_lr', 'train_loss', 'val_consistency', 'test_consistency'}
    best = max(log, key=lambda record: record['val_acc'])  # the first of equal ones
    assert content(tuned / 'checkpoint_best.pth')['epoch'] == best['epoch']


def test_predictions_are_those_behind_the_figures(world, tuned):
    for split, name in (('val', 'dev'), ('test', 'test')):
        rows = json.loads((world / f'nlvr_{name}.json').read_text())
        judged = lines(tuned / 'result' / f'nlvr_{split}_epoch1.jsonl')
        for row, line in zip(rows, judged, strict=True):
            assert {key: line[key] for key in ('sentence', 'images', 'identifier', 'kind')} == {
                key: row[key] for key in ('sentence', 'images', 'identifier', 'kind')
            }
            assert line['label'] == (row['label'] == 'True')
            assert line['prediction'] in (True, False) and line['prediction'] == (line['score'] > 0.5)
        right = [line['prediction'] == line['label'] for line in judged]
        record, counts = records(tuned)[1], [row['kind'] == 'count' for row in rows]
        assert record[f'{split}_acc'] == np.mean(right)
        assert record[f'{split}_acc_count'] == np.mean(np.array(right)[counts])
        assert record[f'{split}_consistency'] == nlvr_consistency([row['identifier'] for row in rows], right)


def test_each_stage_says_what_it_took(world, tmp_path, pretrained, assigned, capsys):
    NLVR.main(arguments('nlvr', world, tmp_path / 'raw', 'schedular.epochs=1', flags=['--checkpoint', str(pretrained)]))
    said = capsys.readouterr().out
    assert 'checkpoint_01.pth: took' in said and 'stands for two' in said and 'cls_head (4 tensors)' in said
    left = said.split('left in the file, not used here: ')[1].split('\n')[0]
    assert 'text_encoder (7 tensors)' in left and 'itm_head (2 tensors)' in left  # the heads of pre-training
    NLVR.main(
        arguments(
            'nlvr',
            world,
            tmp_path / 'two',
            'schedular.epochs=1',
            *DISTILL,
            flags=['--checkpoint', str(assigned / 'checkpoint_01.pth')],
        )
    )
    said = capsys.readouterr().out
    assert 'stands for two' not in said and 'momentum copies: of the weights after loading' in said
    model = content(tmp_path / 'two' / 'checkpoint_00.pth')['model']
    assert not torch.equal(model['cls_head_m.0.weight'], model['cls_head.0.weight'])


def test_evaluation_alone_agrees_with_the_run(world, tmp_path, tuned, pretrained):
    flags = ['--evaluate', '--checkpoint', str(tuned / 'checkpoint_01.pth')]
    NLVR.main(arguments('nlvr', world, tmp_path, 'train_file=[nowhere.json]', flags=flags))
    last = records(tuned)[1]
    assert records(tmp_path) == [{key: last[key] for key in last if key.startswith(('val_', 'test_'))}]
    assert (tmp_path / 'result' / 'nlvr_test.jsonl').read_text() == (
        tuned / 'result' / 'nlvr_test_epoch1.jsonl'
    ).read_text()
    with pytest.raises(ValueError, match='checkpoint_01.pth does not fit this model: it lacks cls_head.0.weight'):
        NLVR.main(arguments('nlvr', world, tmp_path, flags=['--evaluate', '--checkpoint', str(pretrained)]))
    with pytest.raises(ValueError, match='nothing to evaluate'):
        NLVR.main(arguments('nlvr', world, tmp_path, flags=['--evaluate']))
    with pytest.raises(ValueError, match='names neither a val_file nor a test_file'):
        NLVR.main(arguments('nlvr', world, tmp_path, 'val_file=null', 'test_file=null', flags=flags))


def test_text_assignment_evaluates_too(world, tmp_path, assigned):
    argv = arguments(
        'nlvr_pretrain', world, tmp_path, flags=['--evaluate', '--checkpoint', str(assigned / 'checkpoint_01.pth')]
    )
    Pretrain_nlvr.main(argv)
    Pretrain_nlvr.main(argv)
    first, second = records(tmp_path)
    assert first == second and first.keys() == {'val_loss'} and not list(tmp_path.glob('*.pth'))


# ---- any number of processes ----


@pytest.mark.parametrize('processes', [2, 3])
def test_every_row_is_judged_once_by_any_number_of_processes(world, tmp_path, tuned, processes):
    """The same files and figures to the last bit; with batches of 7 the last of 3 processes' share is short."""
    argv = {
        n: arguments(
            'nlvr',
            world,
            tmp_path / str(n),
            'batch_size=7',
            flags=['--evaluate', '--checkpoint', str(tuned / 'checkpoint_01.pth')],
        )
        for n in (1, processes)
    }
    NLVR.main(argv[1])
    assert run(NLVR.main, argv[processes], tmp_path / 'log', processes) == [0] * processes, tail(tmp_path / 'log')
    for name in ('log.txt', 'result/nlvr_val.jsonl', 'result/nlvr_test.jsonl'):
        assert (tmp_path / '1' / name).read_bytes() == (tmp_path / str(processes) / name).read_bytes()


def test_more_processes_than_batches(world, tmp_path, tuned):
    rows = json.loads((world / 'nlvr_dev.json').read_text())[:2]
    (tmp_path / 'two.json').write_text(json.dumps(rows))
    argv = arguments(
        'nlvr',
        world,
        tmp_path / 'out',
        f'val_file={tmp_path}/two.json',
        'test_file=null',
        flags=['--evaluate', '--checkpoint', str(tuned / 'checkpoint_01.pth')],
    )
    assert run(NLVR.main, argv, tmp_path / 'log', 2) == [0, 0], tail(tmp_path / 'log')
    assert len(lines(tmp_path / 'out' / 'result' / 'nlvr_val.jsonl')) == 2


def test_two_processes_through_the_launcher(world, tmp_path, assigned):
    command = [
        sys.executable,
        '-m',
        'torch.distributed.launch',
        '--nproc_per_node=2',
        '--use_env',
        'NLVR.py',
        *arguments(
            'nlvr',
            world,
            tmp_path,
            'schedular.epochs=1',
            'num_workers=1',
            flags=['--checkpoint', str(assigned / 'checkpoint_01.pth')],
        ),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {'OMP_NUM_THREADS': '1'}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [record['epoch'] for record in records(tmp_path)] == [0]
    assert '3 steps an epoch' in done.stdout  # 124 statements in batches of 16 on two processes


# ---- resumption ----

POINTS = {
    'at start-up': lambda: DieAt(models, 'model_settings', 1),
    'while stepping': lambda: DieAt(torch.optim.AdamW, 'step', 3),
    'while evaluating': lambda: DieAt(ShardBatches, '__iter__', 2),
    'while writing a checkpoint': lambda: DieAt(os, 'fsync', 2),
    'between checkpoint and log': lambda: DieAt(utils.checkpoint, 'write_log', 1),
}


def outcome(folder, number='01'):
    found = content(folder / f'checkpoint_{number}.pth')
    tensors = dict(found['model'])
    for index, state in found['optimizer']['state'].items():
        tensors |= {f'optimizer.{index}.{name}': value for name, value in state.items()}
    for rank, state in enumerate(found['ranks']):
        tensors |= {f'rank {rank} order': state['plan']['order'], f'rank {rank} rng': state['rng']['torch']}
    files = {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob('*')
        if path.suffix in ('.txt', '.jsonl')
    }
    return tensors, files


def check_resumed(main, argv, processes, places, tmp_path):
    """Killed at each place in turn and resumed by the same command, a run ends as one that nothing disturbed."""
    log = tmp_path / 'log'
    assert run(main, argv(tmp_path / 'whole'), log, processes) == [0] * processes, tail(log)
    killed = [*argv(tmp_path / 'killed'), '--resume']
    for place in places:
        assert run(main, killed, log, processes, POINTS[place]())[0] == KILLED, (place, tail(log))
    assert run(main, killed, log, processes) == [0] * processes, tail(log)
    (tensors, files), (expected, expected_files) = outcome(tmp_path / 'killed'), outcome(tmp_path / 'whole')
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    assert files == expected_files


@pytest.mark.parametrize('processes, places', [(1, list(POINTS)), (2, ['while stepping', 'while evaluating'])])
def test_nlvr_resumes_exactly(world, tmp_path, assigned, processes, places):
    """With distillation: the momentum copies are part of the run."""
    check_resumed(
        NLVR.main,
        lambda folder: arguments(
            'nlvr', world, folder, 'save_every=2', *DISTILL, flags=['--checkpoint', str(assigned / 'checkpoint_01.pth')]
        ),
        processes,
        places,
        tmp_path,
    )


@pytest.mark.parametrize('processes', [1, 2])
def test_text_assignment_resumes_exactly(world, tmp_path, pretrained, processes):
    check_resumed(
        Pretrain_nlvr.main,
        lambda folder: arguments(
            'nlvr_pretrain', world, folder, 'save_every=2', flags=['--checkpoint', str(pretrained)]
        ),
        processes,
        ['while stepping', 'while writing a checkpoint'],
        tmp_path,
    )


def test_distillation_warms_up_and_the_copies_start_where_training_does(world, tmp_path, assigned, monkeypatch):
    weights, copies = [], []
    original = NLVR.distillation_weight
    monkeypatch.setattr(NLVR, 'distillation_weight', lambda *a: weights.append(original(*a)) or weights[-1])
    monkeypatch.setattr(
        models.model_nlvr,
        'update_momentum',
        lambda pairs, momentum: copies.append(
            all(
                torch.equal(p, m)
                for module, copy in pairs
                for p, m in zip(module.parameters(), copy.parameters(), strict=True)
            )
        ),
    )
    NLVR.main(arguments('nlvr', world, tmp_path, *DISTILL, flags=['--checkpoint', str(assigned / 'checkpoint_01.pth')]))
    steps = 7
    assert weights == pytest.approx([0.4 * i / steps for i in range(steps)] + [0.4] * steps)
    assert copies == [True] + [False] * (2 * steps - 1)


# ---- data ----


def settings(world, tmp_path, rows, *changes):
    (tmp_path / 'rows.json').write_text(json.dumps(rows))
    overrides = [f'train_file={tmp_path}/rows.json', f'image_root={world}', 'image_res=32', *changes]
    config, _ = resolve('nlvr', apply_overrides(read_yaml('configs/shapes/NLVR.yaml'), overrides))
    return config, create_tokenizer(f'{world}/vocab')


def training_set(world, tmp_path, rows, *changes):
    return NLVRDataset(*settings(world, tmp_path, rows, *changes), seed=0)


def test_both_images_are_augmented_independently(world, tmp_path):
    rows = json.loads((world / 'nlvr_train.json').read_text())[:2]
    rows[0]['images'][1] = rows[0]['images'][0]
    data = training_set(world, tmp_path, rows, 'crop_scale=[0.2, 1.0]')
    left, right = data[0, 0]['image']
    assert not torch.equal(left, right)
    assert torch.equal(data[0, 0]['image'], data[0, 0]['image']) and not torch.equal(
        data[0, 0]['image'], data[1, 0]['image']
    )


def test_a_batch_holds_left_images_then_right_ones(world, tmp_path):
    rows = json.loads((world / 'nlvr_train.json').read_text())[:3]
    for row, label in zip(rows, ('True', False, True), strict=True):
        row['label'] = label
    plain = ('crop_scale=[1, 1]', 'flip=false', 'randaugment=false')
    data = training_set(world, tmp_path, rows, *plain)
    batch = data.collate([data[0, i] for i in range(3)])
    assert batch['targets'].tolist() == [1, 0, 1] and batch['images'].shape == (6, 3, 32, 32)
    config, tokenizer = settings(world, tmp_path, rows)
    judged = NLVREvalDataset(config, config['train_file'], tokenizer)
    other = judged.collate([judged[i] for i in range(3)])
    for i in range(3):
        for side in (0, 1):
            alone = judged.transform(os.path.join(world, rows[i]['images'][side]))
            assert torch.equal(other['images'][3 * side + i], alone)


@pytest.mark.parametrize('label', ['true', 1, None, 'Yes', 'TRUE'])
def test_any_other_label_is_refused_with_its_row(world, tmp_path, label):
    rows = json.loads((world / 'nlvr_train.json').read_text())[:3]
    rows[2]['label'] = label
    with pytest.raises(
        ValueError, match=r"""rows.json: row 2, .*: 'label' must be "True", "False" or a JSON boolean"""
    ):
        training_set(world, tmp_path, rows)


def test_statements_keep_30_words_and_are_not_cut_in_tokens_but_by_the_position_table(world, tmp_path, capsys):
    rows = json.loads((world / 'nlvr_train.json').read_text())[:2]
    rows[0]['sentence'] = ' '.join(['circle'] * 40)
    data = training_set(world, tmp_path, rows)
    assert data.collate([data[0, 0]])['text'].input_ids.shape == (1, 31)  # [CLS] and 30 words
    rows[0]['sentence'] = ' '.join(['zzzzzzz'] * 40)  # a word of seven pieces
    data = training_set(world, tmp_path, rows, 'bert_config.max_position_embeddings=61')
    for _ in range(2):
        text = data.collate([data[0, 0]])['text']
        assert text.input_ids.shape == text.attention_mask.shape == (1, 61)
    assert capsys.readouterr().out.count('texts longer than 61 tokens are cut there') == 1


def judge_rows(world, tmp_path, tuned, rows, *changes):
    (tmp_path / 'rows.json').write_text(json.dumps(rows))
    NLVR.main(
        arguments(
            'nlvr',
            world,
            tmp_path / 'out',
            f'val_file={tmp_path}/rows.json',
            'test_file=null',
            *changes,
            flags=['--evaluate', '--checkpoint', str(tuned / 'checkpoint_01.pth')],
        )
    )
    return records(tmp_path / 'out')[0]


def test_rows_without_identifier_or_kind_have_accuracy_alone(world, tmp_path, tuned):
    rows = json.loads((world / 'nlvr_dev.json').read_text())
    plain = [{key: row[key] for key in ('sentence', 'images', 'label')} for row in rows]
    assert judge_rows(world, tmp_path, tuned, plain).keys() == {'val_acc'}


def test_some_kinds_and_other_identifiers(world, tmp_path, tuned):
    rows = json.loads((world / 'nlvr_dev.json').read_text())
    del rows[0]['kind']
    rows[1]['identifier'] = 17
    record = judge_rows(world, tmp_path, tuned, rows)
    assert record.keys() == {'val_acc', 'val_acc_presence', 'val_acc_count', 'val_acc_relation'}


def test_an_unreadable_image_is_judged_blank_and_said_or_refused(world, tmp_path, tuned, capsys):
    rows = json.loads((world / 'nlvr_dev.json').read_text())[:4]
    rows[2]['images'][1] = 'images/none.jpg'
    assert judge_rows(world, tmp_path, tuned, rows)['val_acc'] in (0, 0.25, 0.5, 0.75, 1)
    assert 'judged with a blank image' in (said := capsys.readouterr().out) and 'row 2' in said
    assert len(lines(tmp_path / 'out' / 'result' / 'nlvr_val.jsonl')) == 4
    with pytest.raises(ValueError, match=r'rows.json, row 2: cannot read the image .*none.jpg'):
        judge_rows(world, tmp_path, tuned, rows, 'on_bad_image=error')


def test_what_cannot_work_is_refused_before_any_work(world, tmp_path):
    with pytest.raises(ValueError, match='batch_size must be at least 3'):
        Pretrain_nlvr.main(arguments('nlvr_pretrain', world, tmp_path, 'batch_size=2'))
    with pytest.raises(FileNotFoundError, match='--checkpoint none.pth: there is no such file'):
        NLVR.main(arguments('nlvr', world, tmp_path, flags=['--checkpoint', 'none.pth']))
    with pytest.raises(FileNotFoundError, match='set image_root'):
        NLVR.main(arguments('nlvr', world, tmp_path, 'image_root=/nowhere'))
