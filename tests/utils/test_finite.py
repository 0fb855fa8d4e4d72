"""Gradients that are not finite: the step is left out on the device, and the host learns of it later."""

import copy
import math

import pytest
import torch
from torch import nn

from utils.finite import StepResults, backward, not_finite, step_if


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def loss_of(model, factor=1.0):
    return factor * model(torch.linspace(-1, 1, 12).view(4, 3)).square().mean()


def take_step(model, optimizer, factor=1.0, max_norm=None):
    optimizer.zero_grad()
    finite = backward(loss_of(model, factor), model.parameters(), max_norm)
    step_if(finite, optimizer)
    return bool(finite)


def state_of(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()['state']))


@pytest.mark.parametrize('max_norm', [None, 0.5])
@pytest.mark.parametrize('factor', [math.nan, math.inf, 1e38])
def test_a_bad_step_changes_nothing(factor, max_norm):
    """The optimizer decides on its device. 1e38: the loss is finite, its gradient is not."""
    model, optimizer = make()
    factor = factor * 3 if factor == 1e38 else factor
    assert take_step(model, optimizer, max_norm=max_norm)
    before = state_of(model, optimizer)
    assert not take_step(model, optimizer, factor, max_norm)
    torch.testing.assert_close(state_of(model, optimizer), before, rtol=0, atol=0)
    assert take_step(model, optimizer, max_norm=max_norm)
    assert not_finite(model.state_dict()) == []

    plain, plain_optimizer = make()  # as if the bad step had never been
    for _ in range(2):
        take_step(plain, plain_optimizer, max_norm=max_norm)
    torch.testing.assert_close(state_of(model, optimizer), state_of(plain, plain_optimizer), rtol=0, atol=0)


def test_gradients_are_those_of_a_plain_backward_pass():
    (model, _), (plain, _) = make(), make()
    backward(loss_of(model), model.parameters())
    loss_of(plain).backward()
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize('lag', [0, 2])
def test_results_are_read_later_each_once(lag):
    results, read = StepResults(torch.device('cpu'), lag), []
    for step in range(5):
        results.add(step, torch.tensor([step != 3, True]))
        read += results.ready()
        assert [step for step, _ in read] == list(range(step + 1 - lag))
    read += results.ready(all_of_them=True)
    assert read == [(step, [step != 3, True]) for step in range(5)] and results.ready(True) == []


def test_the_tensors_that_are_not_finite_are_named():
    tensors = {'a': torch.ones(2), 'b': torch.tensor([1, math.nan]), 'c': torch.tensor(math.inf).bfloat16()}
    assert not_finite({**tensors, 'd': torch.tensor([1]), 'e': 'word'}) == ['b', 'c']
    assert not_finite({}) == []
