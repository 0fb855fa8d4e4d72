"""Measure a checkpoint inside an epoch of several processes: seconds, sizes, and the memory of rank 0.

    python -m benchmarks.bench_checkpoint --processes 4 --queue 48000

The processes are on the CPU of this machine, with a small model and GRIT's queues full of random features.
"""

import multiprocessing
import os
import resource
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from dataset.grit.collector import GritCollector
from utils import distributed
from utils.arguments import Parser, positive_int
from utils.checkpoint import RunParts, Status, save_run
from utils.entry import run_main
from utils.errors import InputError


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def save(rank: int, processes: int, port: int, folder: str, queue: int, width: int, saves: int) -> None:
    """One process: fill a queue, save, and on rank 0 print what it took."""
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(processes)}
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    torch.set_num_threads(1)
    distributed.init(SimpleNamespace(device='cpu', distributed=True, dist_url='env://'))
    torch.manual_seed(rank)
    collector = GritCollector(queue, queue, seed=0, rank=rank)
    collector.add(torch.arange(queue - 1), torch.randn(queue - 1, width), torch.randn(queue - 1, width))
    model = torch.nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    parts = RunParts('pretrain', model, optimizer, {'schedular': {}}, {'collector': collector}, {}, {})
    before, seconds = peak(), []
    for step in range(1, saves + 1):
        distributed.barrier()
        start = time.perf_counter()
        save_run(f'{folder}/checkpoint_step.pth', parts, Status(0, step, started=1.0))
        distributed.barrier()
        seconds.append(time.perf_counter() - start)
    if distributed.is_main():
        sizes = sorted((path.stat().st_size / 1e6 for path in Path(folder).glob('*.pth')), reverse=True)
        print(f'{processes} processes, queue of {queue} x {width}: {min(seconds):.2f} to {max(seconds):.2f} s')
        print(f'files of {", ".join(f"{size:.1f}" for size in sizes)} MB')
        print(f'memory of rank 0: {before:.0f} MB before, {peak():.0f} MB at most, {peak() - before:.0f} MB more')
    distributed.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog='python -m benchmarks.bench_checkpoint', description=__doc__.splitlines()[0])
    parser.add_argument('--processes', type=positive_int, default=4, help='how many')
    parser.add_argument('--queue', type=positive_int, default=48000, help='queue_size, per process')
    parser.add_argument('--width', type=positive_int, default=256, help='embed_dim')
    parser.add_argument('--saves', type=positive_int, default=3, help='how often to save')
    args = parser.parse_args(argv)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory(prefix='checkpoint-') as folder:
        shared = (args.processes, port, folder, args.queue, args.width, args.saves)
        children = [context.Process(target=save, args=(rank, *shared)) for rank in range(args.processes)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    if any(child.exitcode for child in children):
        raise InputError(
            f'--processes {args.processes}: one of them failed, see above; give fewer or a shorter --queue'
        )


if __name__ == '__main__':
    run_main(main)
