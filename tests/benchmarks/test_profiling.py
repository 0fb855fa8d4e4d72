"""Operators and waits of a step, and the search of the largest batch."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import profiling
from benchmarks.profiling import count_operators, fits_memory, largest_batch, profile_step

CPU = torch.device('cpu')


def test_operators_count_and_views_do_not():
    weight = torch.randn(4, 4, requires_grad=True)

    def forward():
        return (torch.ones(2, 4) @ weight.t()).relu().sum()  # ones, mm, relu, sum; the transposition is a view

    assert count_operators(forward) == (4, 0)
    assert count_operators(lambda: forward().backward()).total > 6  # and those of the backward pass
    assert count_operators(lambda: weight.view(2, 8).t().detach()) == (0, 0)


def test_waits_are_counted():
    numbers = torch.tensor([0.0, 1.0])
    assert count_operators(lambda: (numbers.sum().item(), numbers.nonzero(), numbers + 1)).waiting == 2


def test_the_profile_of_a_step(capsys):
    square = torch.randn(8, 8)
    counts = profile_step(lambda: (square @ square).sum().item(), CPU)
    assert counts == {'kernel launches': 0, 'host syncs': 0, 'items': 1}
    assert 'aten::mm' in capsys.readouterr().out


def test_syncs_of_the_profiler_do_not_count(monkeypatch, capsys):
    """Each profile has one at its end; the step has another."""
    real, profiled = profiling.profile, []

    def profile(step, device):
        events = real(step, CPU)
        profiled.append(step)
        count = 1 if len(profiled) == 1 else 2
        events.append(SimpleNamespace(key='cudaDeviceSynchronize', count=count))
        monkeypatch.setattr(events, 'table', lambda **options: '')
        return events

    monkeypatch.setattr(profiling, 'profile', profile)
    counts = profile_step(lambda: torch.ones(2).sum().item(), torch.device('cuda'))
    assert counts == {'kernel launches': 0, 'host syncs': 1, 'items': 1} and len(profiled) == 2


@pytest.mark.parametrize('limit', [8, 9, 15, 16, 100, 129, 1000])
def test_the_largest_batch_is_found_within_an_eighth(limit):
    tried = []
    batch, is_complete = largest_batch(lambda size: tried.append(size) or size <= limit)
    assert is_complete and batch <= limit < batch + max(1, batch // 8) + 1 and len(tried) < 15


def test_the_search_ends():
    assert largest_batch(lambda size: False) == (0, True)
    assert largest_batch(lambda size: True, seconds=0) == (0, False)
    now = [0]

    def fits(size):
        now[0] += 10
        return True

    assert largest_batch(fits, seconds=35, clock=lambda: now[0]) == (64, False)


def test_a_step_without_memory_does_not_fit(monkeypatch):
    freed = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: freed.append(True))

    def fail(error):
        raise error

    assert fits_memory(lambda: None) and not fits_memory(lambda: fail(torch.OutOfMemoryError()))
    assert len(freed) == 2
    for words in ('CUDA error: out of memory', 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`'):
        assert not fits_memory(lambda words=words: fail(RuntimeError(words)))
    with pytest.raises(RuntimeError, match='another'):
        fits_memory(lambda: fail(RuntimeError('another')))
