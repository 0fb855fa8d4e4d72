"""The invariants of `TrainingRun`, with a dataset of numbers and a linear model."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dataset.base import TrainingSet, collate_common
from engine import TrainingRun, find_checkpoint
from scheduler import distillation_weight, learning_rate
from tests.helpers import differing, examples_of, read_log, read_pth, state_of_run
from utils.config_files import read_yaml
from utils.seeding import rng_state

STEPS = 5  # of 22 numbers in batches of 4
CONFIG = {
    'num_workers': 0,
    'print_freq': 2,
    'save_every': None,
    'clip_grad_norm': None,
    'on_nonfinite': 'error',
    'keep_checkpoints': None,
    'report_to': 'none',
    'alpha': 0.4,
    'warm_up': True,
    'optimizer': {'opt': 'adamW', 'lr': 1e-2, 'weight_decay': 0.02},
    'schedular': {
        'sched': 'cosine',
        'lr': 1e-2,
        'epochs': 3,
        'min_lr': 1e-3,
        'warmup_lr': 5e-3,
        'warmup_epochs': 1,
    },
}


class Numbers(TrainingSet):
    """Examples that are their number and a random one."""

    unit = 'numbers'
    collate = staticmethod(collate_common)

    def example(self, index, rng):
        return {'image': torch.tensor([float(index), rng.random()])}

    def source(self, index):
        return 'numbers.json', index

    def identity(self):
        return {'train_file': f'{len(self)} numbers'}

    def packed_tokenizer(self):
        return {}


class Counter:
    """An entry of `state`: counts steps, and `reset` sets it to 0."""

    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {'count': self.count}

    def load_state_dict(self, state):
        self.count = state['count']


class ResetCounter(Counter):
    def reset(self):
        self.count = 0


def make_run(folder, epochs=3, **settings):
    torch.manual_seed(0)
    model, state = nn.Linear(2, 1), {'total': Counter(), 'of_epoch': ResetCounter()}
    args = SimpleNamespace(output_dir=str(folder), seed=0, force=False, elastic=False)
    folder.mkdir(exist_ok=True)
    config = CONFIG | settings
    cpu, numbers = torch.device('cpu'), Numbers(range(22), seed=0)
    return TrainingRun('numbers', model, numbers, args, config, cpu, ('loss',), 4, epochs, state)


def train(run, seen=None):
    """Train to the end; `seen` gets (epoch, step, examples) of every batch."""
    for epoch in run.epochs():
        for batch in run.batches():
            if seen is not None:
                seen.append((run.epoch, run.step, batch['index'].tolist()))
            loss = run.model(batch['image'] / 22).square().mean()
            run.optimize(loss)
            run.log(loss=loss)
            for entry in ('total', 'of_epoch'):
                run.state[entry].count += 1
        record = run.summary()
        run.plan.set_random_order(epoch + 1)
        run.end_epoch(record)


def test_every_example_is_used_once_in_an_epoch(tmp_path):
    run, seen = make_run(tmp_path), []
    run.begin()
    assert run.steps == STEPS
    train(run, seen)
    assert [place[:2] for place in seen] == [(epoch, step) for epoch in range(3) for step in range(STEPS)]
    for epoch in range(3):
        used = [index for place in seen for index in place[2] if place[0] == epoch]
        assert len(set(used)) == len(used) == 20
    assert examples_of([run.plan.state_dict()]) == list(range(22))
    records = read_log(tmp_path)
    assert [set(record) for record in records] == [{'epoch', 'train_lr', 'train_loss'}] * 3
    assert [record['train_lr'] for record in records] == [
        learning_rate(CONFIG['schedular'], epoch, STEPS - 1) for epoch in range(3)
    ]


def test_a_configuration_that_is_not_of_this_run_is_kept(tmp_path, capsys):
    """As that of a user who gives its folder as output; an equal one, or that of a resumed run, is written again."""
    mine = '# my notes\nbatch_size: 4\n'
    (tmp_path / 'config.yaml').write_text(mine)
    for _ in range(2):
        make_run(tmp_path).begin()
    assert (tmp_path / 'config.1.yaml').read_text() == mine
    assert capsys.readouterr().out.count('config.yaml of an earlier run was renamed to config.1.yaml') == 1
    assert sorted(path.name for path in tmp_path.glob('config*')) == ['config.1.yaml', 'config.yaml']
    assert read_yaml(tmp_path / 'config.yaml') == CONFIG
    (tmp_path / 'log.txt').write_text('{"epoch": 0}\n')
    make_run(tmp_path).begin()
    assert read_yaml(tmp_path / 'config.2.yaml') == CONFIG  # beside its log
    assert (tmp_path / 'log.2.txt').read_text() == '{"epoch": 0}\n' and not (tmp_path / 'log.1.txt').exists()


# ---- misuse ----


def leave_early(run):
    for _ in run.batches():
        break


def forget_order(run):
    for batch in run.batches():
        run.log(loss=batch['image'].mean())
    run.end_epoch(run.summary())


@pytest.mark.parametrize(
    'body, message',
    [
        (lambda run: (leave_early(run), run.summary()), 'left before its last batch'),
        (lambda run: (leave_early(run), run.plan.set_random_order(1), run.end_epoch({})), 'left before its last batch'),
        (lambda run: (run.plan.set_random_order(1), run.end_epoch({})), 'left before its last batch'),
        (forget_order, 'order of the next epoch was not set'),
        (lambda run: list(run.batches()), 'left without end_epoch'),
    ],
)
def test_misuse_fails_an_assertion(tmp_path, body, message):
    run = make_run(tmp_path)
    run.begin()
    with pytest.raises(AssertionError, match=message):
        for _ in run.epochs():
            body(run)
    assert not list(tmp_path.glob('*.pth')) and read_log(tmp_path) == []


# ---- checkpoints ----


def test_the_position_of_a_checkpoint_is_the_next_batch(tmp_path):
    """At every batch after one that was saved, and after every epoch; a run resumed from there continues with it."""
    run, seen, saved = make_run(tmp_path / 'run', save_every=2), [], {}
    folder = tmp_path / 'run'
    run.begin()
    batches = run.batches

    def copying_batches():
        for batch in batches():
            for path in folder.glob('*.pth'):
                position = tuple(read_pth(path)['position'])
                if position not in saved:
                    saved[position] = shutil.copy(path, tmp_path / f'{len(saved)}.pth')
                    assert position == (run.epoch, run.step)
            yield batch

    run.batches = copying_batches
    train(run, seen)
    # Every second step of the run, counted through the epochs; the end of an epoch has its own file.
    assert list(saved) == [(0, 2), (0, 4), (1, 0), (1, 1), (1, 3), (2, 0), (2, 2), (2, 4)]
    assert read_pth(folder / 'checkpoint_02.pth')['position'] == [3, 0]
    assert not (folder / 'checkpoint_step.pth').exists()

    expected = state_of_run(folder / 'checkpoint_02.pth')
    for number, (position, path) in enumerate(saved.items()):
        resumed, again = make_run(tmp_path / f'resumed {number}', save_every=2), []
        resumed.begin(path)
        assert (resumed.epoch, resumed.step) == position
        train(resumed, again)
        assert again == seen[seen.index(again[0]) :] and again[0][:2] == position
        assert differing(state_of_run(tmp_path / f'resumed {number}' / 'checkpoint_02.pth'), expected) == []
        assert read_log(tmp_path / f'resumed {number}') == read_log(folder)


def test_entries_of_the_state_are_saved_and_reset_at_the_end_of_an_epoch(tmp_path):
    run = make_run(tmp_path, save_every=3)
    run.begin()
    counts = []
    original = run.end_epoch

    def end_epoch(record):
        counts.append((run.state['total'].count, run.state['of_epoch'].count))
        original(record)

    run.end_epoch = end_epoch
    train(run)
    assert counts == [(STEPS, STEPS), (2 * STEPS, STEPS), (3 * STEPS, STEPS)]
    for epoch in range(3):
        saved = read_pth(tmp_path / f'checkpoint_{epoch:02d}.pth')['ranks'][0]
        assert saved['total'] == {'count': (epoch + 1) * STEPS} and saved['of_epoch'] == {'count': 0}
        assert not saved['averages']['sums'].any()


def test_the_best_epoch_is_saved_again(tmp_path):
    run = make_run(tmp_path)
    run.begin()
    metrics, original = iter([1.0, 3.0, 2.0]), run.end_epoch
    run.end_epoch = lambda record: original(record, metric=next(metrics))
    train(run)
    assert (tmp_path / 'checkpoint_best.pth').read_bytes() == (tmp_path / 'checkpoint_01.pth').read_bytes()
    assert read_pth(tmp_path / 'checkpoint_02.pth')['best'] == 3.0


@pytest.mark.parametrize(
    'resume, evaluate, expected', [(0, 0, 'given'), (1, 0, 'given'), (1, 1, 'found'), (0, 1, 'given')]
)
def test_the_checkpoint_to_resume_is_the_one_to_evaluate(tmp_path, resume, evaluate, expected):
    run = make_run(tmp_path, epochs=1)
    run.begin()
    train(run)
    found = str(tmp_path / 'checkpoint_00.pth')
    folder = str(tmp_path if resume else tmp_path / 'new')
    flags = {'resume': resume, 'evaluate': evaluate, 'elastic': False, 'force': False}
    args = SimpleNamespace(output_dir=folder, checkpoint='given', **flags)
    assert find_checkpoint('numbers', args) == (found if resume and not evaluate else None)
    assert args.checkpoint == {'given': 'given', 'found': found}[expected]


# ---- learning rate, distillation, random generators ----


def test_the_learning_rate_of_every_step_follows_the_schedule(tmp_path, monkeypatch):
    """Also in a resumed run, and with more than a hundred steps, after which the warm-up has its next value."""

    def rates_of(run):
        rates, original = [], run.optimizer.step

        def step():
            assert len({group['lr'] for group in run.optimizer.param_groups}) == 1
            rates.append((run.epoch, run.step, run.optimizer.param_groups[0]['lr']))
            original()

        run.optimizer.step = step
        train(run)
        return rates

    def expected(places):
        return [(epoch, step, learning_rate(CONFIG['schedular'], epoch, step)) for epoch, step in places]

    run = make_run(tmp_path)
    run.begin()
    rates = rates_of(run)
    assert rates == expected((epoch, step) for epoch in range(3) for step in range(STEPS))
    assert len({rate for _, _, rate in rates}) == 3

    resumed = make_run(tmp_path / 'resumed')
    resumed.begin(str(tmp_path / 'checkpoint_00.pth'))
    assert rates_of(resumed) == rates[STEPS:]

    monkeypatch.setattr('tests.test_engine.Numbers.__len__', lambda self: 420)
    many = make_run(tmp_path / 'many', epochs=1)
    many.begin()
    rates = rates_of(many)
    assert rates == expected((0, step) for step in range(105)) and len({rate for _, _, rate in rates}) == 2


def test_the_distillation_weight_follows_epoch_and_step(tmp_path):
    run, alphas = make_run(tmp_path, epochs=2), []
    run.begin()
    original = run.optimize
    run.optimize = lambda loss: (alphas.append(run.distillation_weight()), original(loss))
    train(run)
    assert alphas == [distillation_weight(CONFIG, epoch, step, STEPS) for epoch in range(2) for step in range(STEPS)]


def test_gradients_are_clipped_if_it_is_set(tmp_path):
    norms = []
    for name, limit in (('plain', None), ('clipped', 1e-3)):
        run = make_run(tmp_path / name, epochs=1, clip_grad_norm=limit)
        run.begin()
        original = run.optimizer.step

        def step(run=run, original=original):
            gradients = [parameter.grad for parameter in run.model.parameters()]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
            original()

        run.optimizer.step = step
        train(run)
    assert min(norms[:STEPS]) > 1e-2 and max(norms[STEPS:]) <= 1.001e-3


def flat(state):
    """The state of every default generator, comparable."""
    name, keys, *rest = state['numpy']
    return state['torch'].tolist(), state['python'], name, keys.tolist(), rest


@pytest.mark.parametrize('num_workers', [0, 1])
def test_no_default_generator_is_advanced(tmp_path, num_workers):
    """Neither by making a run, nor by its batches, steps and checkpoints, nor by evaluation."""
    run = make_run(tmp_path / 'first', save_every=2, num_workers=num_workers)
    before = flat(rng_state())
    run.begin()
    train(run)
    assert flat(rng_state()) == before
    assert len(list(run.evaluation_batches())) == STEPS
    assert flat(rng_state()) == before
    state = rng_state()
    args = SimpleNamespace(output_dir=str(tmp_path), seed=1)
    TrainingRun('numbers', run.model, Numbers(range(22), 0), args, CONFIG, torch.device('cpu'), ('loss',), 4, 1)
    assert flat(rng_state()) == flat(state)


def test_a_resumed_run_has_the_generators_of_the_checkpoint(tmp_path):
    run = make_run(tmp_path / 'first', epochs=1)
    run.begin()
    train(run)
    before = flat(rng_state())
    resumed = make_run(tmp_path / 'second')
    torch.rand(3)
    assert flat(rng_state()) != before
    resumed.begin(str(tmp_path / 'first' / 'checkpoint_00.pth'))
    assert flat(rng_state()) == before
