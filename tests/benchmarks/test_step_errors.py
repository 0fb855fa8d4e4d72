"""What goes wrong in one row of bench_step: the row says so, the others are measured, and the exit code is 2."""

import json

import pytest
import torch

from benchmarks import bench_step, report, step_tasks
from benchmarks.counting import TOKENIZER
from benchmarks.plain_steps import STEPS
from benchmarks.step_tasks import OurStep, random_inputs
from models import create_model
from optim import create_optimizer
from tests.benchmarks.test_mains import step_arguments
from tests.helpers import differing
from tests.tiny import resolved
from utils.errors import InputError

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    monkeypatch.setattr(report, 'PEAK_SIZE', {'cpu': 64, 'cuda': 64})


def rows_of(path):
    content = json.loads(path.read_text())
    assert content['complete']
    return content['rows']


def test_no_step_is_timed_if_the_losses_differ(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'step.json'
    monkeypatch.setitem(STEPS, 'nlvr', lambda *args: {'loss': step_tasks.our_losses(*args)['loss'] * 1.001})
    monkeypatch.setattr(step_tasks, 'take_turns', lambda *args, **options: pytest.fail('timed'))
    with pytest.raises(InputError, match='nlvr: loss difference of ours and plain is 1.0e-03') as error:
        bench_step.main(step_arguments('nlvr', path))
    (row,) = rows_of(path)
    assert row['error'] in str(error.value) and 'ms' not in row and str(path) in str(error.value)
    assert row['error'] in capsys.readouterr().out


@pytest.mark.parametrize(
    ('fault', 'words'),
    [
        (InputError('compile: true does not work here'), 'compile: true does not work here'),
        (torch.OutOfMemoryError(), 'out of memory'),
        (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED'), 'out of memory'),
    ],
)
def test_a_row_that_fails_leaves_the_others(tmp_path, monkeypatch, fault, words):
    path, create = tmp_path / 'step.json', bench_step.create

    def fail_first(*args):
        monkeypatch.setattr(bench_step, 'create', create)
        raise fault

    monkeypatch.setattr(bench_step, 'create', fail_first)
    with pytest.raises(InputError, match=rf'not measured: vqa fp32 \({words}\); leave'):
        bench_step.main(step_arguments('vqa', path, '--variants', 'fp32', 'bf16', '--rounds', '1'))
    failed, measured = rows_of(path)
    assert failed == {'task': 'vqa', 'variant': 'fp32', 'batch': 2, 'error': words}
    assert measured['variant'] == 'bf16' and measured['ratio'] > 0 and 'error' not in measured


def test_other_errors_are_bugs(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError('another')

    monkeypatch.setattr(bench_step, 'create', fail)
    with pytest.raises(RuntimeError, match='another'):
        bench_step.main(step_arguments('vqa', tmp_path / 'x.json'))


def test_without_memory_for_the_plain_step_ours_is_measured(tmp_path, monkeypatch):
    """In the check the plain step has memory for two examples, in training for none."""
    path, plain, checked = tmp_path / 'step.json', STEPS['vqa'], []

    def fail(model, image, *others):
        if model.training or len(image) > 2:
            raise torch.OutOfMemoryError
        checked.append(len(image))
        return plain(model, image, *others)

    monkeypatch.setitem(STEPS, 'vqa', fail)
    bench_step.main(step_arguments('vqa', path, '--batch', '5', '--rounds', '1'))
    (row,) = rows_of(path)
    assert row['error'] == 'plain: out of memory' and row['plain ms'] is None and row['ratio'] is None
    assert row['ms'] > 0 and row['ops'] > 100 and row['plain ops'] is None
    assert checked == [2] and row['checked batch'] == 2 and row['batch'] == 5


def test_the_configuration_of_largest_is_read_first(tmp_path, monkeypatch):
    class OnGpu(report.Report):
        def __init__(self, *args):
            super().__init__(*args)
            self.device = torch.device('cuda')

    monkeypatch.setattr(bench_step, 'Report', OnGpu)
    monkeypatch.setattr(bench_step, 'measure_peaks', lambda *args: pytest.fail('measured'))
    with pytest.raises(InputError):
        bench_step.main(step_arguments('vqa', tmp_path / 'x.json', '--largest'))


@pytest.mark.parametrize('factor', [1.0, float('nan')])
def test_our_step_changes_nothing_if_the_loss_is_not_finite(monkeypatch, factor):
    config = resolved('vqa', '.')
    torch.manual_seed(0)
    model, inputs = create_model('vqa', config, TOKENIZER), random_inputs('vqa', config, 2, 9, CPU)
    losses = step_tasks.our_losses
    monkeypatch.setattr(step_tasks, 'our_losses', lambda *args: {'loss': losses(*args)['loss'] * factor})
    step = OurStep(model, inputs, create_optimizer(config['optimizer'], model), 'fp32', 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step()
    assert bool(differing(before, model.state_dict())) == (factor == 1)
    if factor == 1:
        norm = torch.nn.utils.get_total_norm([p.grad for p in step.parameters if p.grad is not None])
        assert norm <= 0.5001
