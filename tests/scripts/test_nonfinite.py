"""A loss or gradient that is not finite, injected into each of the five scripts."""

import importlib
import math

import pytest
import torch

import engine
from models import losses
from tests.helpers import differing, read_log, read_pth, state_of_run, weights
from tests.processes import run_script
from tests.tiny import SCRIPTS, arguments
from utils.errors import InputError
from utils.finite import not_finite

MAINS = {task: importlib.import_module(name).main for task, name in SCRIPTS.items()}
FEWER_STEPS = {'nlvr': ('batch_size=48',), 'vqa': ('batch_size_train=48',), 'retrieval': ('batch_size_train=24',)}


class Poison:
    """Make the loss, or one gradient, not finite at some (epoch, step) of the runs in a process."""

    def __init__(self, kind, *places):
        self.kind, self.places, self.optimize = kind, places, engine.TrainingRun.optimize

    def install(self, setattr=setattr):
        setattr(engine.TrainingRun, 'optimize', lambda run, loss: self.optimize(run, self.poisoned(run, loss)))

    def poisoned(self, run, loss):
        if (run.epoch, run.step) not in self.places:
            return loss
        if self.kind == 'loss':
            return loss * math.nan
        parameter = next(parameter for parameter in run.model.parameters() if parameter.requires_grad)
        handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * math.inf)[1])
        return loss


@pytest.fixture
def poison(monkeypatch):
    """A function that poisons steps of the runs in this test."""
    return lambda kind, *places: Poison(kind, *places).install(monkeypatch.setattr)


def is_finite(path):
    return not not_finite(weights(path))


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
@pytest.mark.parametrize('task', SCRIPTS)
def test_nothing_of_a_bad_step_is_saved_and_the_run_goes_on(shapes, tmp_path, monkeypatch, task, kind):
    """Poisoned in the step after a checkpoint inside the epoch; resumed without the poison it ends as if unharmed."""
    settings = (*FEWER_STEPS.get(task, ()), 'save_every=2')
    with monkeypatch.context() as patch:
        Poison(kind, (0, 2)).install(patch.setattr)
        with pytest.raises(InputError, match=f'epoch 0, step 2: the {kind} is not finite, with .*, rows .*--resume'):
            MAINS[task](arguments(task, shapes, tmp_path / 'run', *settings))
    assert read_pth(tmp_path / 'run' / 'checkpoint_step.pth')['position'] == [0, 2]
    assert is_finite(tmp_path / 'run' / 'checkpoint_step.pth')
    MAINS[task](arguments(task, shapes, tmp_path / 'run', *settings, flags=['--resume']))
    MAINS[task](arguments(task, shapes, tmp_path / 'unharmed', *settings))
    assert read_log(tmp_path / 'run') == read_log(tmp_path / 'unharmed')
    states = (state_of_run(tmp_path / name / 'checkpoint_01.pth') for name in ('run', 'unharmed'))
    assert differing(*states) == []


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
def test_the_last_step_of_the_last_epoch(shapes, tmp_path, poison, kind):
    poison(kind, (1, 14))
    with pytest.raises(InputError, match='epoch 1, step 14'):
        MAINS['pretrain'](arguments('pretrain', shapes, tmp_path, 'keep_checkpoints=1'))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['checkpoint_00.pth']
    assert is_finite(tmp_path / 'checkpoint_00.pth') and len(read_log(tmp_path)) == 1


@pytest.mark.parametrize('task', SCRIPTS)
def test_bad_steps_can_be_skipped(shapes, tmp_path, poison, capsys, task):
    """Also with distillation, whose queue and momentum copies outlive a step, and GRIT's queue."""
    poison('loss', (0, 1), (1, 0))
    distill = ('distill=true', 'alpha=0.4') if task in ('retrieval', 'nlvr', 'vqa') else ()
    queue = ('use_momentum=true', 'queue_size=32') if task in ('retrieval', 'pretrain') else ()
    settings = (*FEWER_STEPS.get(task, ()), *distill, *queue, 'on_nonfinite=skip', 'save_every=2')
    MAINS[task](arguments(task, shapes, tmp_path, *settings))
    printed = capsys.readouterr().out
    assert printed.count('skipped epoch') == 2 and 'skipped epoch 1, step 0: the loss is not finite' in printed
    assert is_finite(tmp_path / 'checkpoint_01.pth')
    for record in read_log(tmp_path):
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))


@pytest.mark.parametrize('call', range(1, 5))
@pytest.mark.parametrize('task', ['pretrain', 'retrieval'])
def test_features_that_are_not_finite_do_not_stay_in_the_queue(shapes, tmp_path, monkeypatch, capsys, task, call):
    """They reach the queue before the loss is known: those of the image or text encoder or of a copy."""
    original, calls = losses.feature, [0]

    def feature(*args):
        calls[0] += 1
        return original(*args) * (math.nan if calls[0] == call else 1)

    monkeypatch.setattr(losses, 'feature', feature)
    settings = ('use_momentum=true', 'on_nonfinite=skip', 'schedular.epochs=1')
    if task == 'retrieval':
        settings += ('distill=true', 'alpha=0.4', 'queue_size=64')
    MAINS[task](arguments(task, shapes, tmp_path, *settings, *({'pretrain': ['train_epochs=1']}.get(task, []))))
    assert capsys.readouterr().out.count('skipped epoch 0') == 1
    assert is_finite(tmp_path / 'checkpoint_00.pth')


def test_an_epoch_without_a_finite_step_is_not_recorded(shapes, tmp_path, poison):
    poison('loss', *((0, step) for step in range(4)))
    settings = ('on_nonfinite=skip', 'batch_size=16', 'search_space=16', 'print_freq=1')
    with pytest.raises(InputError, match='no step of the epoch was finite'):
        MAINS['pretrain'](arguments('pretrain', shapes, tmp_path, *settings))
    assert read_log(tmp_path) == [] and not list(tmp_path.glob('*.pth'))


def test_many_bad_steps_in_a_row_stop_the_run(shapes, tmp_path, poison):
    poison('gradient', *((0, step) for step in range(3, 15)))
    settings = ('on_nonfinite=skip', 'save_every=2')
    with pytest.raises(InputError, match='10 steps in a row were not finite, the last: epoch 0, step 12.*diverged'):
        MAINS['pretrain'](arguments('pretrain', shapes, tmp_path, *settings))
    assert is_finite(tmp_path / 'checkpoint_step.pth')


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
def test_one_of_two_processes(shapes, tmp_path, kind):
    """Both stop in the same step, with one line. A loss names the rows of its own process."""
    argv = arguments('pretrain', shapes, tmp_path / 'out', 'save_every=3')
    outcomes = run_script('Pretrain.py', argv, tmp_path, 2, faults={1: Poison(kind, (0, 4))})
    printed = [line for _, _, err in outcomes for line in err.splitlines()]
    assert len(printed) == 1 and f'epoch 0, step 4: the {kind} is not finite' in printed[0]
    rows = printed[0].split('rows ')[1].split(';')[0].split(', ')
    assert len(rows) == (4 if kind == 'loss' else 8)
    assert [code for code, _, _ in outcomes] == [2, 2]
    assert read_pth(tmp_path / 'out' / 'checkpoint_step.pth')['position'] == [0, 3]


def test_weights_that_are_not_finite_are_never_saved(shapes, tmp_path, monkeypatch):
    """A step can make them so although its gradient is finite."""
    step = torch.optim.AdamW.step

    def destroying(optimizer, *args):
        step(optimizer, *args)
        with torch.no_grad():
            optimizer.param_groups[1]['params'][0].view(-1)[0] = math.inf

    monkeypatch.setattr(torch.optim.AdamW, 'step', destroying)
    settings = ('schedular.epochs=1', 'batch_size=62')
    with pytest.raises(InputError, match='are not finite at the end of epoch 0: the training diverged'):
        MAINS['nlvr_pretrain'](arguments('nlvr_pretrain', shapes, tmp_path, *settings))
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize('task', ['retrieval', 'nlvr', 'vqa'])
def test_scores_that_are_not_finite_give_no_metric(shapes, tmp_path, monkeypatch, task):
    """With finite weights, as products in low precision may overflow."""
    module = importlib.import_module(SCRIPTS[task])

    def broken(model, device, config):
        head = {'retrieval': 'itm_head', 'nlvr': 'cls_head', 'vqa': 'text_decoder.cls'}[task]
        model.get_submodule(head).register_forward_hook(lambda module, inputs, out: out * math.nan)
        return to_device(model, device, config)

    to_device, select = module.to_device, ['--select_on', 'test'] if task == 'retrieval' else []
    settings = (*FEWER_STEPS[task], 'schedular.epochs=1', 'val_file=null')
    MAINS[task](arguments(task, shapes, tmp_path, *settings, flags=select))
    monkeypatch.setattr(module, 'to_device', broken)
    flags = ['--evaluate', '--checkpoint', str(tmp_path / 'checkpoint_00.pth')]
    before = read_log(tmp_path)
    with pytest.raises(InputError, match='scores of test are not finite, although the weights are'):
        MAINS[task](arguments(task, shapes, tmp_path, 'val_file=null', flags=flags))
    assert read_log(tmp_path) == before
