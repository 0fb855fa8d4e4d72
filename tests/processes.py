"""Real processes without the cost of a launcher: forked from the test, in a group of one or more, killed on request."""

import multiprocessing
import os
import signal
import socket
import sys
import time

import torch

KILLED = -signal.SIGKILL


class DieAt:
    """Kill the process (SIGKILL: nothing is cleaned up) at the n-th call of a function, before or after it ran."""

    def __init__(self, owner, name, n, after=False):
        self.owner, self.name, self.n, self.after = owner, name, n, after

    def install(self):
        function, calls = getattr(self.owner, self.name), [0]

        def dying(*args, **kwargs):
            calls[0] += 1
            last = calls[0] == self.n
            if last and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(self.owner, self.name, dying)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _child(main, argv, rank, world_size, port, fault, log):
    sys.stdout = sys.stderr = open(f'{log}.{rank}', 'a', buffering=1)
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {
            'RANK': str(rank),
            'LOCAL_RANK': str(rank),
            'WORLD_SIZE': str(world_size),
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(port),
        }
    if fault is not None:
        fault.install()
    main(argv)


def run(main, argv, log, world_size=1, fault=None, seconds=120):
    """Run main(argv) in `world_size` forked processes; returns their exit codes (KILLED for a process that was).

    fault: a DieAt that rank 0 installs. When one process ends badly the others are killed, as a launcher does.
    log: the processes' output goes to `log.RANK`.
    """
    context = multiprocessing.get_context('fork')
    port = free_port()
    children = [
        context.Process(target=_child, args=(main, argv, rank, world_size, port, fault if rank == 0 else None, log))
        for rank in range(world_size)
    ]
    for child in children:
        child.start()
    deadline = time.monotonic() + seconds
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        if any(child.exitcode not in (None, 0) for child in children):
            break
        time.sleep(0.02)
    for child in children:
        if child.is_alive():
            child.kill()
        child.join()
    return [child.exitcode for child in children]


def tail(log, rank=0, lines=15):
    with open(f'{log}.{rank}') as file:
        return ''.join(file.readlines()[-lines:])
