"""Real processes: forked from the test, which is cheap, and killed on request; or started with an interpreter of their
own.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

KILLED = -signal.SIGKILL
ROOT = Path(__file__).parent.parent


class DieAt:
    """Kill the process (SIGKILL: nothing is cleaned up) at the n-th call of a function, before or after it ran.

    The function is looked up at once: a name that does not exist is an AttributeError here, not a kill that never
    happens. Code that imported the function by name does not call the patched one, so `owner` must be where the code
    looks it up.
    """

    def __init__(self, owner, name, n, after=False):
        self.function = getattr(owner, name)
        self.owner, self.name, self.n, self.after = owner, name, n, after

    def install(self):
        calls = [0]

        def dying(*args, **kwargs):
            calls[0] += 1
            last = calls[0] == self.n
            if last and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = self.function(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(self.owner, self.name, dying)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def group_environment(rank, world_size, port):
    """What a launcher sets for one of several processes."""
    return {
        'RANK': str(rank),
        'LOCAL_RANK': str(rank),
        'WORLD_SIZE': str(world_size),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
    }


def _child(main, argv, rank, world_size, port, fault, log):
    sys.stdout = sys.stderr = open(f'{log}.{rank}', 'a', buffering=1)
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= group_environment(rank, world_size, port)
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


def check_run(main, argv, log, world_size=1):
    """`run` that must succeed."""
    assert run(main, argv, log, world_size) == [0] * world_size, tail(log)


def start(command, **environment):
    """Start Python in the repository's folder with one thread -> the process, its output readable as text."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1'} | environment,
    )


def finish(processes, seconds=120):
    """Wait for started processes -> [(exit code, stdout, stderr)]."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def run_group(command, world_size=1):
    """Run `python COMMAND` as each of `world_size` processes, as a launcher does -> [(exit code, stdout, stderr)]."""
    if world_size == 1:
        return finish([start(command)])
    port = free_port()
    return finish([start(command, **group_environment(rank, world_size, port)) for rank in range(world_size)])


def launch(script, argv, processes=2):
    """Run a script with the launcher of the README's command lines; it must succeed. Returns what it printed."""
    launcher = ['-m', 'torch.distributed.launch', f'--nproc_per_node={processes}', f'--master_port={free_port()}']
    [(code, out, err)] = finish([start([*launcher, '--use_env', script, *argv])], seconds=500)
    assert code == 0, out[-1000:] + err[:4000]
    return out
