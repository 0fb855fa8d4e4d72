"""The device of a process, on machines with and without GPUs."""

import threading
import time

import pytest
import torch

from utils import distributed
from utils.distributed import choose_device
from utils.errors import InputError


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends a number of GPUs and a local rank; `chosen` has the GPUs that were made current."""
    chosen = []
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)

    def machine(gpus, local_rank=0):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        monkeypatch.setenv('LOCAL_RANK', str(local_rank))
        return chosen

    return machine


@pytest.mark.parametrize(
    'name, gpus, local_rank, device',
    [
        ('cpu', 2, 1, 'cpu'),
        ('cuda', 0, 1, 'cpu'),
        ('cuda:3', 0, 0, 'cpu'),
        ('cuda', 2, 0, 'cuda:0'),
        ('cuda', 2, 1, 'cuda:1'),
        ('cuda:0', 2, 1, 'cuda:0'),
    ],
)
def test_a_device(machine, name, gpus, local_rank, device):
    chosen = machine(gpus, local_rank)
    assert choose_device(name) == torch.device(device)
    assert chosen == ([torch.device(device)] if device.startswith('cuda') else [])


@pytest.mark.parametrize('gpus', [0, 2])
@pytest.mark.parametrize('name', ['foo', 'cuda:', 'cuda:x', 'cuda:-1', 'cpu:3', 'meta', ''])
def test_no_device(machine, name, gpus):
    machine(gpus)
    with pytest.raises(InputError, match=f'--device {name}: there is no such device; give cuda'):
        choose_device(name)


@pytest.mark.parametrize('name, local_rank, gpu', [('cuda:99', 0, 99), ('cuda', 2, 2)])
def test_a_gpu_that_the_machine_does_not_have(machine, name, local_rank, gpu):
    machine(2, local_rank)
    with pytest.raises(InputError, match=f'GPU {gpu} is wanted, and this machine has only 2 GPU'):
        choose_device(name)


@pytest.mark.parametrize('mark, waits', [(b'1', False), (None, True)])
def test_another_process_waits_until_the_error_is_printed(monkeypatch, capsys, mark, waits):
    """A launcher kills the rest when a process ends, so the first must have printed by then."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed, '_store', store)
    monkeypatch.setattr(distributed, 'PRINTING', 0.3)
    if mark:
        distributed.print_failure('error: one line')
        assert capsys.readouterr().err == 'error: one line\n'
    start = time.monotonic()
    distributed.await_printing()
    assert (time.monotonic() - start > 0.2) == waits
    if waits:
        threading.Timer(0.1, distributed.print_failure, ['error: late']).start()
        monkeypatch.setattr(distributed, 'PRINTING', 60)
        distributed.await_printing()
        assert store.check(['printed'])
