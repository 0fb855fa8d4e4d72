"""Workers of data loaders: they end with the main process, however it ends, and leave signals to it."""

import os
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

from dataset.loader import create_loader, die_with_parent
from tests.dataset.groups import CONTEXT, check_gone, members
from tests.processes import run_python

KEPT = []  # what is not to be collected before the end of a process


class Slow(Dataset):
    """An example takes some seconds; it is the process that made it, its threads, and the signals that it ignores."""

    def __init__(self, seconds=0.0, begun=None):
        self.seconds, self.begun = seconds, begun

    def __getitem__(self, index):
        if self.begun:
            self.begun.release()
        time.sleep(self.seconds)
        ignored = {number for number in signal.Signals if signal.getsignal(number) is signal.SIG_IGN}
        return os.getpid(), torch.get_num_threads(), ignored

    def collate(self, examples):
        return examples[0]


def two_workers(seconds=0.0, begun=None):
    """A loader of four batches with two persistent workers; `begun`, a semaphore, counts the examples begun."""
    return create_loader(Slow(seconds, begun), [[0], [1], [2], [3]], 2, torch.device('cpu'))


# ---- signals ----


def test_a_worker_computes_in_one_thread_and_leaves_signals_to_the_main_process():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        examples = list(two_workers())
    finally:
        torch.set_num_threads(threads)
    assert len({pid for pid, _, _ in examples}) == 2
    assert all(number == 1 and {signal.SIGINT, signal.SIGUSR1} <= ignored for _, number, ignored in examples)


def signal_all(connection, pids):
    for pid in pids:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)


def test_workers_outlive_the_signals_of_a_scheduler(start):
    """It signals all processes of a run, and the main process finishes its step with its workers."""
    loader = two_workers()
    pids = {pid for pid, _, _ in loader}
    sender, _ = start(signal_all, pids)
    sender.join()
    time.sleep(0.1)
    assert {pid for pid, _, _ in loader} == pids


# ---- a killed main process ----


def begin_an_epoch(connection):
    begun = CONTEXT.Semaphore(0)
    loader = two_workers(60, begun)  # a worker that waits for work would notice by itself, after five seconds
    connection.send('workers start')
    KEPT.append(iter(loader))
    begun.acquire()
    begun.acquire()
    connection.send('in two examples')
    time.sleep(60)


@pytest.mark.parametrize('seconds', [0, 0.002, 0.005, 0.01, 0.02, 0.05, None])
def test_no_worker_survives_a_killed_main_process(start, seconds):
    """While the workers start, and (None) while they are in an example."""
    child, connection = start(begin_an_epoch)
    assert connection.poll(20)
    time.sleep(seconds or 0)
    while seconds is None and connection.poll(20) and connection.recv() != 'in two examples':
        pass
    assert len(members(child.pid)) == 3 or seconds is not None
    child.kill()
    child.join()
    check_gone(child.pid, 1)


def begin_late(connection):
    """What a worker does that is slow to start: the main process dies before."""
    parent = os.getppid()
    connection.send('started')
    while os.getppid() == parent:
        time.sleep(0.001)
    die_with_parent()
    connection.send('alive')


def start_a_late_worker(connection):
    CONTEXT.Process(target=begin_late, args=(connection,)).start()
    time.sleep(60)


def test_a_worker_that_starts_after_the_death_of_the_main_process_ends_at_once(start):
    """The system tells only of deaths to come."""
    child, connection = start(start_a_late_worker)
    assert connection.recv() == 'started'
    child.kill()
    child.join()
    check_gone(child.pid, 1)
    with pytest.raises(EOFError):
        connection.recv()


# ---- a normal end ----


def end_with_workers(connection, seconds):
    begun = CONTEXT.Semaphore(0)
    loader = two_workers(seconds, begun)
    workers = iter(loader)
    if seconds:
        begun.acquire()
        begun.acquire()
    else:
        list(workers)
    KEPT.append(workers)
    connection.send('ends')


@pytest.mark.parametrize('seconds', [0, 60])
def test_a_main_process_that_ends_takes_its_workers_with_it(start, seconds):
    """multiprocessing sends SIGTERM and waits, also for workers that are in an example."""
    child, connection = start(end_with_workers, seconds)
    assert connection.poll(20)
    child.join(2)
    assert child.exitcode == 0
    check_gone(child.pid, 0)


PROGRAM = """
import multiprocessing, sys, time
sys.path.insert(0, '.')
from tests.dataset.test_loader import two_workers

if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[1])
    loader = two_workers()
    for _ in range(2):
        print(len({pid for pid, _, _ in loader}), flush=True)
    print(time.time(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_workers_of_every_start_method_live_until_the_interpreter_ends(tmp_path, method):
    (tmp_path / 'program.py').write_text(PROGRAM)
    code, out, err = run_python([str(tmp_path / 'program.py'), method])
    assert (code, err) == (0, '')
    first, second, end = out.split()
    assert first == second == '2' and time.time() - float(end) < 4
