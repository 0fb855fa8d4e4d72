"""The model on its device: DDP's buckets are the same in all steps; all processes see the output folder."""

import importlib
import os
import warnings

import pytest
import torch
from torch import nn

from tests.processes import run_function, run_script, tail
from tests.tiny import arguments
from utils import distributed, setup
from utils.setup import autocast, to_device

CPU = torch.device('cpu')


class Model(nn.Module):
    """Gradients are ready in another order than that of registration; one layer is frozen, two share their weights."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.frozen, self.middle, self.tied = (nn.Linear(9, 9) for _ in range(5))
        self.tied.weight = self.middle.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer('shift', torch.randn(9))
        self.frozen.requires_grad_(False)

    def forward(self, x):
        hidden = self.tied(self.middle(self.frozen(self.first(x)).tanh()).tanh() + self.shift)
        return (self.last(hidden) * self.scale).pow(2).mean()


def wrapped():
    torch.manual_seed(0)
    return to_device(Model(), CPU, {'compile': False})


def gradients(model, step, precision='fp32'):
    """One backward pass with data of this rank and step -> all gradients, [P]."""
    data = torch.randn(5, 9, generator=torch.Generator().manual_seed(100 * step + distributed.rank()))
    model.zero_grad(set_to_none=True)
    with autocast(CPU, {'precision': precision}):
        loss = model(data)
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.requires_grad])


def buckets(model):
    """The parameters in each bucket, by their number."""
    number = {id(parameter): n for n, parameter in enumerate(model.parameters())}
    return [[number[id(p)] for p in bucket.parameters()] for bucket in model.reducer._get_zeros_like_grad_buckets()]


def in_processes(function, folder, processes):
    assert run_function(function, folder, processes) == [0] * processes, tail(folder / 'log', lines=40)


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_the_first_step_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path, precision):
    """With more than two processes the last bits of a sum depend on the place of a number in its bucket."""

    def compare():
        whole = wrapped()
        steps = [gradients(whole, step, precision) for step in range(3)]
        for first in (1, 2):
            assert torch.equal(gradients(wrapped(), first, precision), steps[first])

    in_processes(compare, tmp_path, 3)


@pytest.mark.slow
def test_the_buckets_of_the_first_step_are_those_of_all(tmp_path):
    def compare():
        model = wrapped()
        gradients(model, 0)
        first = buckets(model)
        for step in (1, 2):
            gradients(model, step)
            assert buckets(model) == first
        assert model._get_ddp_logging_data()['has_rebuilt_buckets'] == 1

    in_processes(compare, tmp_path, 2)


@pytest.mark.slow
def test_nothing_else_changes(tmp_path):
    def compare():
        torch.manual_seed(0)
        expected = Model()
        generator = torch.get_rng_state()
        torch.manual_seed(0)
        model = Model()
        given = torch.randn(9, 9, generator=torch.Generator().manual_seed(1))
        model.first.weight.grad, model.last.bias.data[0] = given.clone(), float('nan')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            model = to_device(model, CPU, {'compile': False}).module
        assert torch.equal(torch.get_rng_state(), generator)
        assert 'forward' not in vars(model) and torch.equal(model.first.weight.grad, given)
        assert all(p.grad is None for name, p in model.named_parameters() if name != 'first.weight')
        differing = [n for n, v in model.state_dict().items() if not torch.equal(v, expected.state_dict()[n])]
        assert differing == ['last.bias'] and not model.last.bias[1:].isnan().any()

    in_processes(compare, tmp_path, 2)


class ElsewhereAt:
    """Another working directory, as on a machine that does not share the output folder."""

    def __init__(self, folder):
        self.folder = folder

    def install(self):
        os.chdir(self.folder)


@pytest.mark.slow
def test_a_folder_that_a_process_does_not_see_is_refused(shapes, tmp_path, monkeypatch):
    importlib.import_module('NLVR')  # which the forked processes need not import
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup, 'PATIENCE', 0.2)
    argv, fault = arguments('nlvr', shapes, 'out'), ElsewhereAt(tmp_path / 'elsewhere')
    outcomes = run_script('NLVR.py', argv, tmp_path, 2, faults={1: fault})
    assert [code for code, _, _ in outcomes] == [2, 2]
    printed = ''.join(err for _, _, err in outcomes)
    assert printed.count('\n') == 1 and 'error: --output_dir out: rank 1 on ' in printed and 'share' in printed
    assert os.listdir(tmp_path / 'out') == ['.lock'] and os.listdir(tmp_path / 'elsewhere') == []


@pytest.mark.slow
def test_a_slow_file_system_is_given_time(tmp_path):
    """The other process sees the file a moment later."""

    def look():
        if distributed.rank():
            exists, calls = setup.Path.exists, []
            setup.Path.exists = lambda path: exists(path) if len(calls) > 3 else calls.append(path)
        setup.require_shared_folder(str(tmp_path))
        assert distributed.rank() == 0 or len(calls) == 4

    in_processes(look, tmp_path, 2)
    assert not list(tmp_path.glob('.*'))
