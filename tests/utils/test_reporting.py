"""`report_to`: every line of progress and every record once, wherever a run is killed; with a stand-in of wandb."""

import json
import random
import re
import sys

import pytest

import engine
from tests.helpers import read_log, through_a_file
from tests.test_engine import STEPS, make_run, train
from utils.checkpoint import Status
from utils.config import apply_overrides, resolve
from utils.config_files import read_yaml
from utils.errors import InputError
from utils.reporting import LAST_ROWS, Report, flatten, require_package


class Wandb:
    """A stand-in of the module: what the server has of each run, {id: [(wandb's step, row)]}, and all other calls."""

    class Error(Exception):
        pass

    def __init__(self):
        self.rows, self.calls = {}, []

    def init(self, **settings):
        self.calls.append(('init', settings))
        return WandbRun(self, self.rows.setdefault(settings['id'], []))

    def only_run(self):
        (rows,) = self.rows.values()
        return [row for _, row in rows]


class WandbRun:
    def __init__(self, server, rows):
        self.server, self.rows = server, rows
        self.starting_step = rows[-1][0] + 1 if rows else 0

    def define_metric(self, *words, **settings):
        self.server.calls.append(('define_metric', words, settings))

    def log(self, row, step, commit):
        assert commit and step >= self.starting_step, 'wandb ignores this row'
        assert not self.rows or step > self.rows[-1][0], 'wandb ignores this row'
        self.rows.append((step, json.loads(json.dumps(row))))

    def finish(self, exit_code):
        self.server.calls.append(('finish', exit_code))


@pytest.fixture
def wandb(monkeypatch):
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', stand_in)
    return stand_in


class Killed(BaseException):
    """The process ends here."""


def reporting_run(folder, **settings):
    return make_run(folder, report_to='wandb', save_every=3, **settings)


def kill_at(monkeypatch, owner, name, n):
    """The n-th call of a function ends the process before it runs; nothing is closed."""
    calls, original = [], getattr(owner, name)

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == n:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)
    monkeypatch.setattr(Report, 'close', lambda report, complete: None)


def newest(folder):
    """The checkpoint that --resume continues from."""
    paths = [*sorted(folder.glob('checkpoint_0*.pth')), *folder.glob('checkpoint_step.pth')]
    return str(paths[-1]) if paths else None


def test_the_rows_are_the_lines_of_progress_and_the_records(tmp_path, wandb, capsys):
    run = reporting_run(tmp_path)
    run.begin()
    train(run)
    printed = re.findall(r'epoch (\d) \[(\d)/5\]  lr (\S+)  loss (\S+)  ', capsys.readouterr().out)
    rows = wandb.only_run()
    lines = [row for row in rows if 'step/lr' in row]
    assert [(row['global_step'], repr(row['step/lr']), f'{row["step/loss"]:.4f}') for row in lines] == [
        (int(epoch) * STEPS + int(done) - 1, rate, loss) for epoch, done, rate, loss in printed
    ]
    assert len(lines) == 9 and all(row.keys() == {'global_step', 'step/lr', 'step/loss'} for row in lines)
    assert [row for row in rows if row not in lines] == [
        {'global_step': STEPS * (epoch + 1), **{f'epoch/{name}': value for name, value in record.items()}}
        for epoch, record in enumerate(read_log(tmp_path))
    ]
    assert [row['global_step'] for row in rows] == [1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15]


def test_what_wandb_is_told(tmp_path, wandb, monkeypatch):
    monkeypatch.delenv('WANDB_PROJECT', raising=False)
    folder = tmp_path / 'my run#1'
    run = reporting_run(folder, epochs=1)
    run.begin()
    train(run)
    (_, settings), *others = wandb.calls
    number = int(run.status.started * 1000)
    assert settings['id'] == f'my-run-1-{number}' and settings['name'] == 'my run#1' and settings['dir'] == str(folder)
    assert settings['project'] == 'grit-vlp' and settings['resume'] == 'allow' and settings['config'] == run.config
    assert others == [
        ('define_metric', ('global_step',), {}),
        ('define_metric', ('*',), {'step_metric': 'global_step'}),
        ('finish', 0),
    ]
    monkeypatch.setenv('WANDB_PROJECT', 'mine')
    again = reporting_run(folder)
    again.begin(newest(folder))
    assert wandb.calls[-3][1]['project'] == 'mine' and len(wandb.rows) == 1  # the same run


# Where a run is killed: at the n-th call of a function; and how many of its last rows have not been sent then.
PLACES = [
    *(('optim', n, unsent) for n, unsent in ((1, 0), (4, 0), (5, 4), (6, 2), (12, 9))),
    ('complete_epoch', 1, 1),
    *(('epoch', n, unsent) for n, unsent in ((1, 0), (1, 2), (3, 1))),  # between checkpoint and report
]


@pytest.fixture(scope='module')
def rows_of_whole(tmp_path_factory):
    """The rows of a run that nothing interrupts."""
    stand_in = Wandb()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'wandb', stand_in)
        run = reporting_run(tmp_path_factory.mktemp('whole'))
        run.begin()
        train(run)
    return stand_in.only_run()


@pytest.mark.parametrize('name, n, unsent', PLACES)
def test_a_killed_and_resumed_run_reports_every_row_once(tmp_path, wandb, monkeypatch, rows_of_whole, name, n, unsent):
    with monkeypatch.context() as patch:
        first = reporting_run(tmp_path)
        owner = {'optim': first.optimizer, 'complete_epoch': engine, 'epoch': Report}[name]
        kill_at(patch, owner, 'step' if name == 'optim' else name, n)
        first.begin()
        with pytest.raises(Killed):
            train(first)
    (rows,) = wandb.rows.values()
    assert len(rows) < len(rows_of_whole)
    del rows[max(0, len(rows) - unsent) :]
    checkpoint = newest(tmp_path)
    if checkpoint is None:  # it starts anew, as another run
        wandb.rows.clear()
    second = reporting_run(tmp_path)
    second.begin(checkpoint)
    train(second)
    assert wandb.only_run() == rows_of_whole


def test_a_run_that_fails_is_closed_as_failed(tmp_path, wandb, monkeypatch):
    run = reporting_run(tmp_path)
    monkeypatch.setattr(engine, 'complete_epoch', lambda *_: 1 / 0)
    monkeypatch.setattr(WandbRun, 'finish', lambda run, exit_code: wandb.calls.append(exit_code) or 1 / 0)
    run.begin()
    with pytest.raises(ZeroDivisionError) as error:
        train(run)
    assert wandb.calls[-1] == 1 and error.traceback[-1].name == '<lambda>'
    assert [row['global_step'] for row in wandb.only_run()] == [1, 3, 4]


def test_the_axis_continues_if_epochs_have_another_length(tmp_path, wandb):
    """As with --elastic: half as many processes have epochs of twice as many steps, and the reverse."""
    status, state = Status(started=1.5), None
    for epoch, steps in enumerate((10, 5, 20)):
        report = Report({'report_to': 'wandb'}, tmp_path, steps)
        if state:
            report.load_state_dict(through_a_file(state))
        report.begin(status)
        report.step(steps - 1, {'loss': 1.0})
        report.reset()
        state = report.state_dict()
        status = Status(epoch + 1, records=[*status.records, {'epoch': epoch}], started=1.5)
        report.epoch(status.records[-1])
    assert [row['global_step'] for row in wandb.only_run()] == [9, 10, 14, 15, 34, 35]


def test_reporting_may_begin_later(tmp_path, wandb):
    """Then the checkpoint has no rows, and the record of the epoch before is the first one."""
    run = make_run(tmp_path, epochs=1)
    run.begin()
    train(run)
    assert wandb.calls == [] and not run.report.rows
    later = reporting_run(tmp_path, epochs=2)
    later.begin(newest(tmp_path))
    train(later)
    assert [row['global_step'] for row in wandb.only_run()] == [5, 6, 8, 9, 10]


def test_the_checkpoint_holds_a_bounded_number_of_rows(tmp_path, wandb):
    report = Report({'report_to': 'wandb'}, tmp_path, steps=1000)
    report.begin(Status())
    for step in range(3 * LAST_ROWS):
        report.step(step, {'loss': 1.0})
    assert [step for _, step, _ in report.state_dict()['rows']] == [*range(2 * LAST_ROWS, 3 * LAST_ROWS)]


def test_only_numbers_are_reported_nested_ones_by_dotted_keys(tmp_path, wandb):
    record = {'epoch': 3, 'val': {'yes/no': 1, 'deep': {'er': 2.0}}, 'name': 'x', 'is': True, 'no': None}
    flat = {'epoch': 3, 'val.yes/no': 1, 'val.deep.er': 2.0, 'name': 'x', 'is': True, 'no': None}
    assert flatten(record) == flat
    report = Report({'report_to': 'wandb'}, tmp_path, steps=10)
    report.begin(Status())
    report.reset()
    report.epoch(record)
    numbers = {'epoch/epoch': 3, 'epoch/val.yes/no': 1, 'epoch/val.deep.er': 2.0}
    assert wandb.only_run() == [{'global_step': 10, **numbers}]


# ---- mistakes ----


@pytest.mark.parametrize('package', ['tensorboard', 'wandb'])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, package):
    for name in [name for name in sys.modules if name.split('.')[0] == package or name == 'torch.utils.tensorboard']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = (
        rf'^report_to: {package} cannot be imported \(.*{package}.*\); `pip install {package}`, or set report_to: n'
    )
    with pytest.raises(InputError, match=message):
        require_package(package)
    run = make_run(tmp_path, report_to=package)
    with pytest.raises(InputError, match=message):
        run.begin()
    require_package('none')


def test_a_folder_is_not_a_package(tmp_path, monkeypatch):
    """wandb's own folder `wandb`, in the folder of the scripts."""
    (tmp_path / 'wandb').mkdir()
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    with pytest.raises(InputError, match='`pip install wandb`'):
        require_package('wandb')


def test_a_refusal_of_wandb_is_one_line(tmp_path, wandb, monkeypatch):
    def refuse(**settings):
        raise wandb.Error('No API key\nconfigured.')

    monkeypatch.setattr(wandb, 'init', refuse)
    with pytest.raises(
        InputError, match=r'wandb does not start \(No API key configured\.\); log in with `wandb login`'
    ):
        reporting_run(tmp_path).begin()


def test_the_key_takes_three_names():
    base = read_yaml('configs/shapes/Pretrain.yaml')
    assert resolve('pretrain', base)[0]['report_to'] == 'none'
    for word in ('none', 'tensorboard', 'wandb'):
        assert resolve('vqa', apply_overrides(read_yaml('configs/shapes/VQA.yaml'), [f'report_to={word}']))[0]
    with pytest.raises(InputError, match="report_to must be one of none, tensorboard, wandb, not 'mlflow'"):
        resolve('pretrain', apply_overrides(base, ['report_to=mlflow']))


def test_reporting_draws_no_random_numbers(tmp_path, wandb):
    """Neither here nor in the writer of TensorBoard; the weights are those of a run that reports nothing."""
    states = []
    for name in ('none', 'wandb', 'tensorboard'):
        random.seed(0)
        run = make_run(tmp_path / name, epochs=2, report_to=name)
        run.begin()
        train(run)
        states.append((random.getstate(), [weight.tolist() for weight in run.model.state_dict().values()]))
        assert ('report' in run.state) == (name != 'none')
    assert states[0] == states[1] == states[2]
    assert [path.name for path in tmp_path.glob('*/tensorboard')] == ['tensorboard']
    assert read_log(tmp_path / 'none') == read_log(tmp_path / 'wandb') == read_log(tmp_path / 'tensorboard')
