"""Pretrain.py with ALBEF's own method, and with what goes beyond the paper: one setting each, resumed exactly."""

import argparse
import math

import pytest
import torch

import Pretrain
from dataset.shapes import make_dataset
from models import create_model
from tests.helpers import differing, read_log, read_pth, state_of_run, weights
from tests.processes import check_run
from tests.tiny import arguments, resolved
from utils import distributed
from utils.errors import InputError

ALBEF = ('use_momentum=true', 'itm_negatives=sampled', 'itc_queue_size=24')


@pytest.fixture(scope='module')
def with_truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp('with_truth')
    make_dataset(folder, 0, {'train': 62, 'val': 12, 'test': 13}, duplicates=1.0)
    return folder


class Stop(Exception):
    """Raised by a run's optimizer."""


def stop_at_step(monkeypatch, number):
    """Let the training fail before its step of this number."""
    calls, original = [0], torch.optim.AdamW.step

    def step(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            raise Stop
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)


@pytest.mark.parametrize(
    'settings',
    [
        (*ALBEF, 'sampler=grit'),
        ('grit_quantile=auto', 'itc_smoothing={0: 0, 1: 0.5}', 'false_negative_filter={pretrained}'),
        ('grit_grouping=cuthill_mckee', 'on_nonfinite=skip'),
    ],
)
def test_a_run_continues_exactly(shapes, tmp_path, pretrained, monkeypatch, settings):
    """From a checkpoint inside the second epoch, which GRIT ordered: weights, copies, queue, what adapts, the log."""
    settings = [*(setting.format(pretrained=pretrained) if 'filter' in setting else setting for setting in settings)]
    argv = arguments('pretrain', shapes, tmp_path / 'run', *settings, 'save_every=4')
    with monkeypatch.context() as patch:
        stop_at_step(patch, 22)
        with pytest.raises(Stop):
            Pretrain.main(argv)
    assert read_pth(tmp_path / 'run' / 'checkpoint_step.pth')['position'] == [1, 5]
    Pretrain.main([*argv, '--resume'])
    Pretrain.main(arguments('pretrain', shapes, tmp_path / 'whole', *settings))
    assert read_log(tmp_path / 'run') == read_log(tmp_path / 'whole')
    states = (state_of_run(tmp_path / name / 'checkpoint_01.pth') for name in ('run', 'whole'))
    assert differing(*states) == []


@pytest.mark.parametrize('setting', ['itc_smoothing=0.5', 'grit_quantile=0'])
def test_every_method_is_one_setting(shapes, tmp_path, pretrained, setting):
    Pretrain.main(arguments('pretrain', shapes, tmp_path, setting))
    record, before = read_log(tmp_path)[1], read_log(pretrained.parent)[1]
    assert record['train_loss_itc'] != before['train_loss_itc']
    assert record.keys() == before.keys()


def test_soft_targets_rise_over_the_first_epoch(shapes, tmp_path, monkeypatch):
    alphas = []
    original = Pretrain.TrainingRun.distillation_weight
    monkeypatch.setattr(
        Pretrain.TrainingRun, 'distillation_weight', lambda run: alphas.append(original(run)) or alphas[-1]
    )
    Pretrain.main(arguments('pretrain', shapes, tmp_path, *ALBEF))
    assert alphas == pytest.approx([0.4 * i / 15 for i in range(15)] + [0.4] * 15)
    state = weights(tmp_path / 'checkpoint_01.pth')
    assert state['image_queue'].shape == (16, 24) and state['queue_ptr'].tolist() == [2 * 15 * 4 % 24]
    names = [name for name in state if '_m.' in name and state[name].is_floating_point()]
    assert names and any(not torch.equal(state[name], state[name.replace('_m.', '.', 1)]) for name in names)


def test_a_run_from_a_checkpoint_without_copies_says_so(shapes, tmp_path, pretrained, capsys):
    flags = ['--checkpoint', str(pretrained)]
    Pretrain.main(arguments('pretrain', shapes, tmp_path, *ALBEF, 'train_epochs=1', flags=flags))
    assert 'momentum encoders: copies of the loaded weights' in capsys.readouterr().out


def enqueue_on_a_rank(folder):
    """Two batches of each rank: rank r's n-th feature of batch b holds 100 b + 10 r + n."""
    distributed.init(argparse.Namespace(device='cpu', distributed=True, dist_url='env://'))
    model = create_model('pretrain', resolved('pretrain', '.', *ALBEF, 'bert_config.vocab_size=50'), _ids())
    model.image_queue.zero_()
    for batch in (1, 2):
        feat = (100 * batch + 10 * distributed.rank() + torch.arange(8.0))[:, None].expand(8, 16)
        model.enqueue(feat, -feat)
    torch.save([model.image_queue, model.text_queue, model.queue_ptr], f'{folder}/{distributed.rank()}.pth')
    distributed.close()


def _ids():
    return argparse.Namespace(pad_token_id=0, cls_token_id=2, mask_token_id=3)


@pytest.mark.slow
def test_the_queue_gathers_over_ranks(tmp_path):
    """24 places: both ranks' first batch, then 16 more, of which the last 8 replace the oldest; on both ranks alike."""
    check_run(enqueue_on_a_rank, str(tmp_path), tmp_path / 'log', world_size=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert all(map(torch.equal, first, second))
    image_queue, text_queue, pointer = first
    expected = [*range(210, 218), *range(110, 118), *range(200, 208)]
    assert image_queue[5].tolist() == expected and text_queue[0].tolist() == [-value for value in expected]
    assert pointer.tolist() == [8]


@pytest.mark.slow
def test_two_processes_continue_exactly_with_momentum(shapes, tmp_path):
    settings = ('use_momentum=true', 'itm_negatives=sampled', 'itc_queue_size=512')  # more than two epochs fill
    argv = arguments('pretrain', shapes, tmp_path / 'whole', *settings)
    check_run(Pretrain.main, argv, tmp_path / 'log', world_size=2)
    (tmp_path / 'run').mkdir()
    first = (tmp_path / 'whole' / 'checkpoint_00.pth').read_bytes()
    (tmp_path / 'run' / 'checkpoint_00.pth').write_bytes(first)
    argv = arguments('pretrain', shapes, tmp_path / 'run', *settings, flags=['--resume'])
    check_run(Pretrain.main, argv, tmp_path / 'log', world_size=2)
    assert read_log(tmp_path / 'run') == read_log(tmp_path / 'whole')
    states = (state_of_run(tmp_path / name / 'checkpoint_01.pth') for name in ('run', 'whole'))
    assert differing(*states) == []


# ---- known truth ----


def test_the_rate_of_false_negatives_is_logged(with_truth, shapes, tmp_path, pretrained):
    """With six groups of ten in 62 images many negatives match; a filter that answers "match" leaves no negatives."""
    settings = ('train_epochs=1', 'itm_negatives=uniform')
    Pretrain.main(arguments('pretrain', with_truth, tmp_path / 'truth', *settings))
    rate = read_log(tmp_path / 'truth')[0]['train_false_negative_rate']
    assert rate == pytest.approx(9 / 61, abs=0.08)
    assert 'train_false_negative_rate' not in read_log(pretrained.parent)[0]


def test_a_filter_reports_what_it_found(with_truth, tmp_path, pretrained, monkeypatch):
    monkeypatch.setattr('models.match_filter.MATCH', -math.inf)
    settings = ('train_epochs=1', f'false_negative_filter={pretrained}')
    Pretrain.main(arguments('pretrain', with_truth, tmp_path, *settings))
    record = read_log(tmp_path)[0]
    assert record['train_match_rate'] == 1 and record['train_false_negative_rate'] == 0


def test_evaluation_with_momentum_and_a_filter(shapes, tmp_path, pretrained):
    """It changes neither copies nor queue, and has hard targets: the same losses twice."""
    settings = (*ALBEF, f'false_negative_filter={pretrained}')
    Pretrain.main(arguments('pretrain', shapes, tmp_path / 'run', *settings, 'train_epochs=1'))
    flags = ['--evaluate', '--checkpoint', str(tmp_path / 'run' / 'checkpoint_00.pth')]
    for _ in range(2):
        Pretrain.main(arguments('pretrain', shapes, tmp_path / 'evaluation', *settings, flags=flags))
    first, second = read_log(tmp_path / 'evaluation')
    assert first == second and all(math.isfinite(first[f'val_loss_{name}']) for name in ('itc', 'itm', 'mlm'))


def test_a_grouping_without_quantiles_refuses_one(shapes, tmp_path):
    settings = ('grit_grouping=cuthill_mckee', 'grit_quantile=auto')
    with pytest.raises(InputError, match='grit_quantile auto is of chains, and grit_grouping is cuthill_mckee'):
        Pretrain.main(arguments('pretrain', shapes, tmp_path, *settings))


def test_another_filter_is_refused_when_a_run_continues(shapes, tmp_path, pretrained):
    """By its weights: the file has the same name."""
    file = tmp_path / 'filter.pth'
    file.write_bytes(pretrained.read_bytes())
    argv = arguments('pretrain', shapes, tmp_path / 'run', f'false_negative_filter={file}')
    Pretrain.main([*argv, '--set', 'train_epochs=1'])
    content = read_pth(file)
    content['model']['itm_head.bias'] += 1
    torch.save(content, file)
    with pytest.raises(InputError, match='false_negative_filter was .* and is now .*; give the same as before'):
        Pretrain.main([*argv, '--resume'])
    Pretrain.main([*argv, '--resume', '--force'])


def test_a_metric_that_begins_inside_an_epoch_has_its_own_mean(shapes, tmp_path, monkeypatch):
    """The other steps of the epoch do not count as 0."""
    argv = arguments('pretrain', shapes, tmp_path, 'save_every=4', 'train_epochs=1')
    with monkeypatch.context() as patch:
        stop_at_step(patch, 10)
        with pytest.raises(Stop):
            Pretrain.main(argv)
    monkeypatch.setattr('models.itm_negatives.BETA_RANGE', (0.5, 0.5))
    Pretrain.main([*argv, '--resume', '--set', 'grit_quantile=auto', '--set', 'itm_negatives=auto'])
    record = read_log(tmp_path)[0]
    assert record['train_grit_quantile'] == pytest.approx(0.98) and record['train_itm_beta'] == pytest.approx(0.5)


def test_soft_targets_weigh_at_most_1(shapes, tmp_path):
    with pytest.raises(InputError, match='alpha must be a number from 0 to 1, not 4'):
        Pretrain.main(arguments('pretrain', shapes, tmp_path, *ALBEF, 'alpha=4'))


def test_a_filter_that_is_not_there_is_refused_at_the_start(shapes, tmp_path):
    with pytest.raises(InputError, match='false_negative_filter: checkpoint none.pth: there is no such file'):
        Pretrain.main(arguments('pretrain', shapes, tmp_path, 'false_negative_filter=none.pth'))


def test_a_quantile_that_adapts_is_logged(shapes, tmp_path):
    Pretrain.main(arguments('pretrain', shapes, tmp_path, 'grit_quantile=auto'))
    first, second = (record['train_grit_quantile'] for record in read_log(tmp_path))
    assert first == pytest.approx(0.98) and second != first
