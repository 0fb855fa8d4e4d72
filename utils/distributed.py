"""One process or many: without a process group every helper acts for a single process."""

import argparse
import datetime
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from utils.errors import InputError
from utils.interrupts import end_at_once

T = TypeVar('T')
NCCL_LATER = datetime.timedelta(minutes=5)  # NCCL's watchdog ends a process without a word: gloo shall be first
PATIENCE = 60.0  # seconds, at most the timeout, for the other processes to say that they wait, too
PRINTING = 2  # seconds that the others wait for the error of the first process that fails
_store: dist.Store | None = None  # shared by the processes of the group, also after one of them failed
_hosts: dist.ProcessGroup | None = None  # all ranks, for tensors on the CPU
_patience = PATIENCE


def init(args: argparse.Namespace, minutes: float = 30) -> torch.device:
    """Join the process group that a launcher announces in the environment, and choose this process's device.

    Without a launcher (WORLD_SIZE absent or 1) there is no group. Collectives use gloo for tensors on the CPU and NCCL
    for CUDA tensors. `--device cuda` means the CPU if there is no GPU. minutes: how long a process waits for the others
    in a collective before it fails; see `failure_of_others`.
    """
    global _store, _hosts, _patience
    if _announced('WORLD_SIZE', 1) == 1:
        return choose_device(args.device)
    if not args.distributed:
        raise InputError('--distributed false, but a launcher started several processes; start one, or drop the flag')
    for name in ('RANK', 'LOCAL_RANK'):
        _announced(name)
    if _announced('RANK') >= _announced('WORLD_SIZE'):
        raise InputError(f'the environment has RANK {os.environ["RANK"]} of WORLD_SIZE {os.environ["WORLD_SIZE"]}')
    timeout, _patience = datetime.timedelta(minutes=minutes), min(PATIENCE, 60 * minutes)
    with end_at_once():  # while a process waits for others that may never come
        store, own_rank, processes = _meet(args.dist_url, timeout)
        # A launcher that restarts its processes keeps its store, with the keys of the attempts that failed.
        _store = dist.PrefixStore(f'attempt_{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
        device = choose_device(args.device)  # with a store: one rank alone may have no device, and must say so
        on_gpu = device.type == 'cuda'
        dist.init_process_group(
            'cpu:gloo,cuda:nccl' if on_gpu else 'gloo',
            store=_store,
            rank=own_rank,
            world_size=processes,
            timeout=timeout + NCCL_LATER if on_gpu else timeout,
        )
        _hosts = dist.new_group(backend='gloo', timeout=timeout)
    return device


def _meet(url: str, timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """Wait for all processes -> (a store that they share, own rank, number of processes)."""
    try:
        with _without_stderr():  # frames of C++
            return next(dist.rendezvous(url, timeout=timeout))
    except (ValueError, RuntimeError, OSError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'the processes cannot meet ({reason}); start them with torch.distributed.launch') from None


def _announced(name: str, default: int | None = None) -> int:
    """A number that the launcher set in the environment."""
    word = os.environ.get(name, default)
    if not str(word).isdecimal() or (name == 'WORLD_SIZE' and int(word) < 1):
        state = 'is not set' if word is None else f'is {word!r}, not a possible number'
        raise InputError(
            f'the environment variable {name} {state}; torch.distributed.launch sets it, and without WORLD_SIZE there '
            'is one process'
        )
    return int(word)


def failure_of_others(error: BaseException) -> str | None:
    """What to tell the user about a collective that failed because of another process; None for other errors.

    A process that waited too long asks through the store who waits, too: those that do not answer are named.
    """
    if not has_store() or not isinstance(error, RuntimeError):
        return None
    text = str(error).lower()
    if 'timed out' in text or 'timeout' in text:
        silent = ', '.join(map(str, _silent_ranks()))
        who = f'rank {silent} does not answer, it is stopped or stuck' if silent else 'the network is too slow'
        return f'a process waited for the others longer than collective_timeout: {who}; continue with --resume'
    if 'connection closed' in text or 'connection reset' in text or 'broken pipe' in text:
        return (
            'another process ended without a message, perhaps killed for its memory (see the launcher and the system '
            'log); continue with --resume'
        )
    return None


def _silent_ranks() -> list[int]:
    """The ranks that do not report in time that they wait, too."""
    deadline = time.monotonic() + _patience
    others = [other for other in range(world_size()) if other != rank()]
    _ask_store(lambda: _store.set(f'waits/{rank()}', '1'))
    while others and time.monotonic() < deadline:
        waits = _ask_store(partial(_store.check, [f'waits/{others[0]}']))
        if waits is None:
            return [0]  # which hosts the store, if there is no launcher
        others = others[1:] if waits else [*others[1:], others[0]]
        time.sleep(0.1)
    return sorted(others)


def claim_failure() -> bool:
    """Whether this is the first process of the group that fails, and therefore the one to print its error.

    Before they share a store, only what a machine's processes have in common can be at fault, and the first of each
    machine prints.
    """
    if not has_store():
        return is_first_here()
    failures = _ask_store(lambda: _store.add('failures', 1))
    if failures is None:  # the host of the store is stopped: rank 0, if there is no launcher
        return rank() == 1
    return failures == 1


def print_failure(message: str) -> None:
    """Print the error of the process that `claim_failure` chose, and let the others end."""
    print(message, file=sys.stderr, flush=True)
    if has_store():
        _ask_store(lambda: _store.set('printed', '1'))


def await_printing() -> None:
    """Before another process ends: wait a moment until the error is printed, because a launcher then kills the rest."""
    deadline = time.monotonic() + PRINTING
    while has_store() and time.monotonic() < deadline:
        if _ask_store(lambda: _store.check(['printed']), PRINTING) is not False:  # it is, or the store is lost
            return
        time.sleep(0.01)


def is_first_here() -> bool:
    """Whether this is the first of its machine's processes, by what the launcher says."""
    word = os.environ.get('LOCAL_RANK', '0')
    return word == '0' or not word.isdecimal()


def _ask_store(question: Callable[[], T], patience: float | None = None) -> T | int | None:
    """The answer of the store; 0 if its host ended, None if it does not answer in time."""
    answers = []

    def ask() -> None:
        try:
            answers.append(question())
        except RuntimeError:
            answers.append(0)

    asking = threading.Thread(target=ask, daemon=True)  # the store itself waits for ever
    with _without_stderr():  # torch's own report of a lost connection, with frames of C++
        asking.start()
        asking.join(_patience if patience is None else patience)
    return answers[0] if answers else None


def has_store() -> bool:
    """Whether the processes share a store, in which the first that fails leaves its mark."""
    return _store is not None


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what libraries write to file descriptor 2."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def choose_device(name: str) -> torch.device:
    """torch.device by the name of `--device`; among several GPUs the one of LOCAL_RANK."""
    match = re.fullmatch(r'cpu|cuda(?::(\d+))?', name)
    if not match:
        raise InputError(f'--device {name}: there is no such device; give cuda, cuda:N or cpu')
    if name == 'cpu' or not torch.cuda.is_available():
        return torch.device('cpu')
    index = int(match[1] or os.environ.get('LOCAL_RANK', 0))
    if index >= torch.cuda.device_count():
        raise InputError(
            f'GPU {index} is wanted, and this machine has only {torch.cuda.device_count()} GPU(s), counted from 0; '
            'start at most one process per GPU (--nproc_per_node), or give another --device'
        )
    device = torch.device('cuda', index)
    torch.cuda.set_device(device)
    return device


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def close() -> None:
    """Leave the process group."""
    global _hosts
    if is_initialized():
        dist.destroy_process_group()
    _hosts = None


def barrier() -> None:
    if is_initialized():
        dist.barrier()


def largest(number: int) -> int:
    """The largest of the ranks' numbers, on every rank. Between the hosts: no device waits."""
    if _hosts is None:
        return number
    numbers = torch.tensor(number)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_hosts)
    return int(numbers)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place; returns the tensor."""
    if is_initialized():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's values on every rank, in place; returns the tensor."""
    if is_initialized():
        dist.broadcast(tensor, 0)
    return tensor


def all_gather_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's tensor, in rank order; the first dimensions may differ, dtype and the other dimensions may not."""
    if not is_initialized():
        return [tensor]
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
    sizes = torch.cat(sizes).tolist()
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def all_gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Every rank's rows in rank order: [B, ...], of one shape on all ranks -> [W * B, ...]. The host does not wait."""
    if not is_initialized():
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_objects(value: T) -> list[T] | None:
    """Every rank's value, in rank order, on rank 0; None elsewhere. Values are pickled: no CUDA tensors."""
    if not is_initialized():
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def all_gather_objects(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    if not is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank."""
    if not is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def main_first(function: Callable[[], T]) -> T:
    """Run a function on rank 0 and return its result, or raise its error, on every rank. Not for heavy data."""
    if not is_initialized():
        return function()
    result = error = None
    if is_main():
        try:
            result = function()
        except Exception as caught:  # re-raised on all ranks below
            error = caught
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result


def failures(function: Callable[[], object]) -> list[Exception]:
    """Run a function on every rank -> the errors of those on which it failed, in rank order, on every rank."""
    error = None
    try:
        function()
    except Exception as caught:
        error = caught
    return [error for error in all_gather_objects(error) if error is not None]
