"""Pretrain.py end to end on the small synthetic dataset: what it writes, its options, its messages for bad input."""

import json

import pytest
import torch

import Pretrain
from dataset.samplers import EpochBatches
from models import itm_negatives
from tests.helpers import (
    differing,
    examples_of,
    read_lines,
    read_log,
    read_pth,
    read_rows,
    state_of_run,
    weights,
    write_rows,
)
from tests.processes import launch
from tests.tiny import arguments
from utils.config import read_yaml


def test_what_a_run_writes(pretrained):
    folder = pretrained.parent
    assert {path.name for path in folder.iterdir()} >= {
        'checkpoint_00.pth',
        'checkpoint_01.pth',
        'config.yaml',
        'log.txt',
    }
    content = read_pth(pretrained)
    assert content['epoch'] == 1 and content['config'] == read_yaml(folder / 'config.yaml')
    assert {'model', 'optimizer', 'lr_scheduler', 'config', 'epoch'} <= content.keys()
    assert examples_of([content['ranks'][0]['plan']]) == list(range(62))
    for number, record in enumerate(read_log(folder)):
        assert record['epoch'] == number
        assert 0 <= record['train_itm_acc'] <= 1 and 0.001 <= record['train_temp'] <= 0.5
        assert -1 <= record['train_sim_random'] <= 1 and -1 <= record['train_sim_neighbour'] <= 1


def test_the_same_command_gives_the_same_run_with_any_number_of_workers(pretrained, shapes, tmp_path):
    Pretrain.main(arguments('pretrain', shapes, tmp_path, 'num_workers=2'))
    assert differing(weights(tmp_path / 'checkpoint_01.pth'), weights(pretrained)) == []
    assert read_log(tmp_path) == read_log(pretrained.parent)


def test_a_new_run_in_a_used_folder_keeps_the_earlier_log(shapes, tmp_path):
    """That of a run whose checkpoints were moved away, or of an evaluation."""
    argv = arguments('pretrain', shapes, tmp_path, 'train_epochs=1')
    Pretrain.main(argv)
    first = read_log(tmp_path)
    (tmp_path / 'checkpoint_00.pth').unlink()
    Pretrain.main([*argv, '--seed', '7'])
    assert (tmp_path / 'log.1.txt').read_text() == ''.join(json.dumps(record) + '\n' for record in first)
    assert read_log(tmp_path) != first


@pytest.mark.parametrize(
    'setting',
    [
        'consistency_weight=0',
        'itm_negatives=sampled',
        'mlm_probability=0.15',
        'itm_negatives=uniform',
        'itm_negatives=auto',
        'clip_grad_norm=1.0',
        'precision=bf16',
    ],
)
def test_every_ablation_and_option_is_one_setting(shapes, tmp_path, pretrained, setting):
    Pretrain.main(arguments('pretrain', shapes, tmp_path, 'train_epochs=1', setting))
    assert read_log(tmp_path)[0] != read_log(pretrained.parent)[0]


@pytest.mark.parametrize('setting', ['grad_checkpointing=true', 'grit_from_epoch=1', 'sampler=random'])
def test_what_changes_no_number_of_the_first_epoch(shapes, tmp_path, pretrained, setting):
    """Recomputed activations are the same numbers, with dropout too; before its first order GRIT is random sampling."""
    Pretrain.main(arguments('pretrain', shapes, tmp_path, 'train_epochs=1', setting))
    assert read_log(tmp_path)[0] == read_log(pretrained.parent)[0]


@pytest.mark.slow
def test_a_warm_up_before_mining_changes_the_epochs_it_should(shapes, tmp_path):
    """Random batches before grit_from_epoch are those of the random sampler, and a schedule of negatives uses each
    policy in its epochs.
    """

    def run(name, *settings):
        Pretrain.main(arguments('pretrain', shapes, tmp_path / name, *settings))
        plan = read_pth(tmp_path / name / 'checkpoint_00.pth')['ranks'][0]['plan']
        return read_log(tmp_path / name), plan

    grit, grit_plan = run('grit')
    later, later_plan = run('later', 'grit_from_epoch=2')
    never, never_plan = run('random', 'sampler=random')
    assert torch.equal(later_plan['order'], never_plan['order'])
    assert not torch.equal(grit_plan['order'], later_plan['order'])
    assert later == never and grit[0] == never[0] and grit[1] != never[1]
    sampled, _ = run('sampled', 'itm_negatives=sampled')
    soft_start, _ = run('soft start', 'itm_negatives={0: sampled, 1: hard}')
    assert soft_start[0] == sampled[0] != grit[0] and soft_start[1] != sampled[1]


@pytest.fixture
def moving_beta(monkeypatch):
    """beta moves within a tiny run: it starts at 0.9 and rises while ITM is worse than its target."""
    monkeypatch.setattr(itm_negatives, 'BETA_RANGE', (0.9, 3.0))
    monkeypatch.setattr(itm_negatives, 'BETA_RATE', -1.0)


def test_negatives_that_adapt_log_and_save_their_beta(shapes, tmp_path, moving_beta):
    Pretrain.main(arguments('pretrain', shapes, tmp_path, 'itm_negatives=auto'))
    saved = [read_pth(tmp_path / f'checkpoint_0{epoch}.pth') for epoch in (0, 1)]
    betas = [content['ranks'][0]['itm_negatives']['beta'].item() for content in saved]
    means = [record['train_itm_beta'] for record in read_log(tmp_path)]
    assert 0.9 < means[0] < betas[0] <= means[1] <= betas[1] <= 3
    assert not any('beta' in name or 'negatives' in name for name in saved[1]['model'])


def test_grit_that_begins_by_itself_is_resumed_exactly(shapes, tmp_path, moving_beta):
    """From a checkpoint in the epoch before GRIT begins, and from one after."""
    settings = ('itm_negatives={0: uniform, 1: auto}', 'grit_from_epoch=auto', 'train_epochs=4')
    Pretrain.main(arguments('pretrain', shapes, tmp_path / 'whole', *settings, 'save_every=4'))
    log = read_log(tmp_path / 'whole')
    assert [record['train_itm_beta'] >= 1 for record in log] == [False, True, True, True]
    for start in (0, 1, 2):
        folder = tmp_path / str(start)
        folder.mkdir()
        name = f'checkpoint_{start:02d}.pth'
        (folder / name).write_bytes((tmp_path / 'whole' / name).read_bytes())
        Pretrain.main(arguments('pretrain', shapes, folder, *settings, flags=['--resume']))
        assert read_log(folder) == log
        states = (state_of_run(path / 'checkpoint_03.pth') for path in (folder, tmp_path / 'whole'))
        assert differing(*states) == []


@pytest.mark.parametrize('before, after', [('hard', 'auto'), ('auto', 'hard'), ('sampled', '{0: sampled, 1: auto}')])
def test_a_run_may_be_resumed_with_other_negatives(shapes, tmp_path, capsys, before, after):
    Pretrain.main(arguments('pretrain', shapes, tmp_path, f'itm_negatives={before}', 'train_epochs=1'))
    capsys.readouterr()
    Pretrain.main(arguments('pretrain', shapes, tmp_path, f'itm_negatives={after}', flags=['--resume']))
    printed = capsys.readouterr().out
    assert '--resume: itm_negatives was' in printed and ('has no state of itm_negatives' in printed) == (
        'auto' in after
    )
    records = read_log(tmp_path)
    assert len(records) == 2 and ('train_itm_beta' in records[1]) == ('auto' in after)


def test_random_batches_need_no_beta(shapes, tmp_path):
    Pretrain.main(arguments('pretrain', shapes, tmp_path, 'sampler=random', 'grit_from_epoch=auto', 'train_epochs=1'))
    assert len(read_log(tmp_path)) == 1


def test_evaluation_uses_the_saved_beta(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(itm_negatives, 'BETA_RANGE', (0.0, 1e6))
    Pretrain.main(arguments('pretrain', shapes, tmp_path / 'run', 'itm_negatives=auto', 'train_epochs=1'))
    content = read_pth(tmp_path / 'run' / 'checkpoint_00.pth')
    for beta in (0.0, 1e6, 0.0):
        content['ranks'][0]['itm_negatives']['beta'] = torch.tensor(beta)
        torch.save(content, tmp_path / f'{beta}.pth')
        flags = ['--evaluate', '--checkpoint', str(tmp_path / f'{beta}.pth')]
        Pretrain.main(arguments('pretrain', shapes, tmp_path / 'evaluation', 'itm_negatives=auto', flags=flags))
    losses = [record['val_loss_itm'] for record in read_log(tmp_path / 'evaluation')]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize('beta, grouped', [(0.5, False), (3.0, True)])
def test_grit_may_begin_when_beta_reaches_1(shapes, tmp_path, monkeypatch, beta, grouped):
    """The first epoch's mean beta decides whether the second is grouped."""
    monkeypatch.setattr(itm_negatives, 'BETA_RANGE', (beta, beta))
    settings = ('itm_negatives=auto', 'grit_from_epoch=auto')
    Pretrain.main(arguments('pretrain', shapes, tmp_path / 'auto', *settings))
    Pretrain.main(arguments('pretrain', shapes, tmp_path / 'random', 'itm_negatives=auto', 'sampler=random'))
    orders = [
        read_pth(tmp_path / name / 'checkpoint_00.pth')['ranks'][0]['plan']['order'] for name in ('auto', 'random')
    ]
    assert torch.equal(*orders) != grouped
    assert read_log(tmp_path / 'auto')[0]['train_itm_beta'] == pytest.approx(beta)


def test_warm_start_uses_the_saved_order(shapes, tmp_path, pretrained, monkeypatch):
    used = []
    original = EpochBatches.set_epoch

    def set_epoch(self, epoch, batches):
        used.append([i for batch in batches for i in batch])
        original(self, epoch, batches)

    monkeypatch.setattr(EpochBatches, 'set_epoch', set_epoch)

    def warm_start(folder, *value):
        Pretrain.main(arguments('pretrain', shapes, folder, 'train_epochs=1', flags=['--index_warmstart', *value]))

    warm_start(tmp_path / 'own', str(pretrained.parent))
    assert used.pop(0) == read_pth(pretrained)['ranks'][0]['plan']['order'].tolist()

    from scipy.io import savemat

    (tmp_path / 'official').mkdir()
    order = list(range(61, -1, -1)) + [5, 6]  # the official sampler's padding repeats examples
    savemat(tmp_path / 'official' / 'total_indices.mat', {'total_indices': order})
    warm_start(tmp_path / 'official')
    assert used == [order[:60]]

    with pytest.raises(FileNotFoundError, match='--index_warmstart: .* has no saved order'):
        warm_start(tmp_path / 'empty')


def test_resume_uses_the_checkpoint_argument_only_if_the_folder_has_none(shapes, tmp_path, pretrained):
    """--resume with --checkpoint: a run's own file is resumed, other weights are only the start."""

    def resume(folder, checkpoint, epochs):
        flags = ['--resume', '--checkpoint', str(checkpoint)]
        Pretrain.main(arguments('pretrain', shapes, folder, f'train_epochs={epochs}', flags=flags))
        return [record['epoch'] for record in read_log(folder)]

    assert resume(tmp_path / 'continued', pretrained, 3) == [0, 1, 2]
    bare = tmp_path / 'bare.pth'
    torch.save(weights(pretrained), bare)
    assert resume(tmp_path / 'started', bare, 1) == [0]
    assert differing(torch.load(bare), weights(tmp_path / 'started' / 'checkpoint_00.pth'))


def test_evaluation_adds_a_record_and_trains_nothing(shapes, tmp_path, pretrained):
    argv = arguments('pretrain', shapes, tmp_path, flags=['--evaluate', '--checkpoint', str(pretrained)])
    Pretrain.main(argv)
    Pretrain.main(argv)
    first, second = read_log(tmp_path)
    assert first.pop('checkpoint') == second.pop('checkpoint') == str(pretrained)
    assert first.keys() == {'val_loss_mlm', 'val_loss_itc', 'val_loss_itm', 'val_itm_acc'}
    assert first == second and not list(tmp_path.glob('*.pth'))


@pytest.fixture
def break_images(shapes, tmp_path):
    """A function from numbers of rows to the overrides that make their images unreadable."""

    def break_images(indices):
        rows = read_rows(shapes, 'pretrain')
        for index in indices:
            (tmp_path / f'broken{index}.jpg').write_text('<html>not found</html>')
            rows[index]['image'] = str(tmp_path / f'broken{index}.jpg')
        return f'train_file=[{write_rows(tmp_path / "broken.json", rows)}]', 'images_outside_root=true'

    return break_images


def test_a_bad_image_is_skipped_counted_and_keeps_its_place(shapes, tmp_path, break_images):
    output = tmp_path / 'out'
    Pretrain.main(arguments('pretrain', shapes, output, *break_images([7])))
    listed = read_lines(output / 'bad_images.jsonl')
    assert [item['index'] for item in listed] == [7] and 'broken7.jpg' in listed[0]['reason']
    assert examples_of([read_pth(output / 'checkpoint_01.pth')['ranks'][0]['plan']]) == list(range(62))


def test_many_bad_images_stop_the_run(shapes, tmp_path, break_images):
    with pytest.raises(ValueError, match='2 of about 62 images cannot be read, more than 1%.*check'):
        Pretrain.main(arguments('pretrain', shapes, tmp_path / 'out', *break_images([7, 9])))
    assert len(read_lines(tmp_path / 'out' / 'bad_images.rank0.jsonl')) == 2


def test_bad_images_can_be_errors(shapes, tmp_path, break_images):
    with pytest.raises(ValueError, match=r'row 7: .*broken7.jpg.*on_bad_image: skip'):
        Pretrain.main(arguments('pretrain', shapes, tmp_path / 'out', *break_images([7]), 'on_bad_image=error'))


@pytest.mark.parametrize(
    'settings, message',
    [
        (['train_file=[nowhere.json]'], 'nowhere.json'),
        (['batch_size=64', 'queue_size=128', 'search_space=64'], 'batch_size 64 on 1 process'),
        (['bert_config.vocab_size=20'], 'set bert_config.vocab_size='),
    ],
)
def test_what_cannot_work_is_refused_before_training(shapes, tmp_path, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Pretrain.main(arguments('pretrain', shapes, tmp_path, *settings))


def test_divergence_is_noticed_and_nothing_of_it_is_saved(shapes, tmp_path):
    rates = [f'{key}=1e30' for key in ('optimizer.lr', 'schedular.lr', 'schedular.warmup_lr')]
    with pytest.raises(ValueError, match='epoch 0, step 1: the loss is not finite, with .*pretrain.json, rows'):
        Pretrain.main(arguments('pretrain', shapes, tmp_path, *rates, 'save_every=100'))
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.slow
def test_the_official_command_line_works_with_a_launcher(shapes, tmp_path):
    """Two processes, started as in the README: the ranks share the work, mini-batches are shuffled across ranks."""
    argv = arguments('pretrain', shapes, tmp_path, flags=['--mini_batch_shuffle_across_gpu', '--resume', 'False'])
    assert launch('Pretrain.py', argv).count('2 process(es) on cpu') == 1
    content = read_pth(tmp_path / 'checkpoint_01.pth')
    assert examples_of([rank['plan'] for rank in content['ranks']]) == list(range(62))
    assert [record['epoch'] for record in read_log(tmp_path)] == [0, 1]
