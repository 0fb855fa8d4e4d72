"""Real processes: forked from the test, which is cheap, and killed on request; or started with an interpreter of their
own.
"""

import importlib
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from utils import distributed

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


def _import_once(world_size):
    """Import here, for all forked processes, what DDP imports late and takes seconds."""
    if world_size > 1:
        importlib.import_module('torch._dynamo')


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
    _import_once(world_size)
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


class SignalAt:
    """Send a signal to the process at the n-th call of a function, before it runs; see `DieAt`."""

    def __init__(self, owner, name, n, number):
        self.owner, self.name, self.n, self.number = owner, name, n, number
        self.function = getattr(owner, name)

    def install(self):
        calls = [0]

        def signaling(*args, **kwargs):
            calls[0] += 1
            if calls[0] == self.n:
                os.kill(os.getpid(), self.number)
            return self.function(*args, **kwargs)

        setattr(self.owner, self.name, signaling)


class SmallFiles:
    """No file of the process may grow beyond some bytes, as on a disk without room."""

    def __init__(self, limit):
        self.limit = limit

    def install(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))


class SignalAfter:
    """Send a signal to the process some seconds after its start."""

    def __init__(self, seconds, number):
        self.seconds, self.number = seconds, number

    def install(self):
        timer = threading.Timer(self.seconds, os.kill, (os.getpid(), self.number))
        timer.daemon = True
        timer.start()


def _script(script, argv, environment, paths, fault):
    for number, path in zip((1, 2), paths, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, 'w', buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a script sets it while its modules load
    sys.argv = [script, *argv]
    if fault is not None:
        fault.install()
    runpy.run_path(str(ROOT / script), run_name='__main__')


def run_script(script, argv, folder, world_size=1, seconds=120, faults=None, stopped=None):
    """Run a script as a program in `world_size` forked processes, each to its end -> [(exit code, stdout, stderr)].

    Modules that the test has imported are not imported again. folder: for the outputs. faults: {rank: a fault to
    install, such as `SignalAt`}. stopped: a rank that is killed when the others have ended.
    """
    _import_once(world_size)
    context = multiprocessing.get_context('fork')
    port, children, outputs = free_port(), [], []
    for rank in range(world_size):
        environment = group_environment(rank, world_size, port) if world_size > 1 else {}
        outputs.append([Path(folder, f'std{name}.{rank}') for name in ('out', 'err')])
        fault = (faults or {}).get(rank)
        children.append(context.Process(target=_script, args=(script, argv, environment, outputs[rank], fault)))
        children[rank].start()
    deadline = time.monotonic() + seconds
    for rank in sorted(range(world_size), key=lambda rank: rank == stopped):
        children[rank].join(0 if rank == stopped else max(0, deadline - time.monotonic()))
        if children[rank].is_alive():
            children[rank].kill()
            children[rank].join()
    codes = [child.exitcode for child in children]
    return [(code, *(path.read_text() for path in paths)) for code, paths in zip(codes, outputs, strict=True)]


def run_python(command, seconds=120):
    """Run Python in an interpreter of its own, in the repository's folder with one thread -> (code, stdout, stderr)."""
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=seconds
    )
    return done.returncode, done.stdout, done.stderr


def launch(script, argv, processes=2):
    """Run a script with the launcher of the README's command lines; it must succeed. Returns what it printed."""
    launcher = ['-m', 'torch.distributed.launch', f'--nproc_per_node={processes}', f'--master_port={free_port()}']
    code, out, err = run_python([*launcher, '--use_env', script, *argv], seconds=500)
    assert code == 0, out[-1000:] + err[:4000]
    return out


def run_function(function, folder, processes):
    """Call a function in several processes of one group -> their exit codes; what they print is in folder/log.RANK."""

    def main(_):
        distributed.init(SimpleNamespace(device='cpu', distributed=True, dist_url='env://'), minutes=0.5)
        function()
        distributed.close()

    return run(main, None, folder / 'log', processes)
