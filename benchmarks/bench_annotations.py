"""Memory and start-up time of annotations: the mapped cache compared with a list of dicts.

    python benchmarks/bench_annotations.py --pairs 4000000 --workers 2

It writes a file of random pairs to a temporary folder, which it removes at the end (1.5 GB for four million pairs), and
prints a table. `private` is the memory that a process needs after the imports that every training run needs (Python,
NumPy): private pages except those of the mapped file. `mapped` are the pages of that file. They are in the system's
page cache: one copy for all processes, which the system drops when it needs the memory. Workers are forked, and read
random rows.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import NamedTuple

import numpy  # noqa: F401  so that its memory is part of what a process has before

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WORDS = 'a man woman dog cat red green street house on in with the of two riding standing holding plate train'.split()
MIB = 1 << 20


class Reading(NamedTuple):
    """What a worker measured."""

    private: int  # bytes
    mapped: int  # bytes
    microseconds: float  # per row


class Measurement(NamedTuple):
    """What the process that opens the annotations measured; memory in bytes."""

    seconds: float  # to the first row
    private: int  # added since before the annotations were opened
    mapped: int
    peak: int  # resident
    workers: list[Reading]


def write_pairs(path: str, count: int) -> None:
    """A pre-training file in the official format: one caption per pair, of about 60 letters as in web data."""
    draw = random.Random(0)
    with open(path, 'w') as out:
        for i in range(count):
            caption = ' '.join(draw.choices(WORDS, k=draw.randint(6, 18)))
            row = json.dumps({'image': f'/datasets/conceptual/train/{i // 1000:05d}/{i:09d}.jpg', 'caption': caption})
            out.write(f'{"," if i else "["}\n{row}')
        out.write('\n]\n')


def memory() -> tuple[int, int]:
    """(private bytes outside mapped caches, resident bytes of mapped caches) of this process."""
    private = mapped = 0
    in_cache = False
    with open('/proc/self/smaps') as lines:
        for line in lines:
            name, *values = line.split()
            if '-' in name:  # the first line of a mapping
                in_cache = line.rstrip().endswith('.arrow')
            elif in_cache and name == 'Rss:':
                mapped += int(values[0]) * 1024
            elif not in_cache and name in ('Private_Clean:', 'Private_Dirty:'):
                private += int(values[0]) * 1024
    return private, mapped


def peak_resident() -> int:
    """The peak resident bytes of this process; getrusage would count its parent's before exec."""
    with open('/proc/self/status') as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:'))


def read_at_random(rows: Sequence[dict], seed: int, count: int) -> float:
    """Read `count` random rows -> microseconds per row."""
    draw = random.Random(seed).randrange
    begin = time.perf_counter()
    for _ in range(count):
        rows[draw(len(rows))]
    return (time.perf_counter() - begin) / count * 1e6


def work(rows: Sequence[dict], seed: int, reads: int, results, barrier) -> None:
    """Read random rows, then measure while all workers still have what they read."""
    microseconds = read_at_random(rows, seed, reads)
    barrier.wait()
    results.put(Reading(*memory(), microseconds))
    barrier.wait()


def measure(how: str, path: str, workers: int, reads: int, pipe: Connection) -> None:
    """In a process of its own: open the annotations (`how`: cache or dicts), read the first row, start the workers."""
    before = memory()[0]
    begin = time.perf_counter()
    if how == 'dicts':
        with open(path) as file:
            rows = json.load(file)
    else:
        from dataset.annotations import load_annotations

        rows = load_annotations(path, 'pretrain')
    assert len(rows[0]['image']) > 0
    seconds = time.perf_counter() - begin
    read_at_random(rows, 0, reads)
    after, mapped = memory()
    context = multiprocessing.get_context('fork')  # as DataLoader workers are
    results, barrier = context.Queue(), context.Barrier(workers)
    processes = [
        context.Process(target=work, args=(rows, seed, reads, results, barrier)) for seed in range(1, workers + 1)
    ]
    for process in processes:
        process.start()
    readings = [results.get() for _ in processes]
    for process in processes:
        process.join()
    pipe.send(Measurement(seconds, after - before, mapped, peak_resident(), readings))


def in_process(context: BaseContext, how: str, path: str, workers: int, reads: int) -> Measurement:
    """`measure` in a new process."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(how, path, workers, reads, sender))
    process.start()
    sender.close()  # so that a process that dies is an EOFError here
    result = receiver.recv()
    process.join()
    return result


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from utils.arguments import Parser
    from utils.errors import InputError

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=4_000_000, help='rows of the file (default %(default)s)')
    parser.add_argument('--workers', type=int, default=2, help='processes that read (default %(default)s)')
    parser.add_argument(
        '--reads', type=int, default=1_000_000, help='rows that each process reads at random (default %(default)s)'
    )
    parser.add_argument('--skip-dicts', action='store_true', help='skip the list of dicts, which takes gigabytes')
    args = parser.parse_args(argv)
    for name in ('pairs', 'workers', 'reads'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name} {getattr(args, name)}: must be at least 1')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    context = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'pairs.json')
        write_pairs(path, args.pairs)
        runs = [('cache, first time', 'cache'), ('cache, later', 'cache'), ('list of dicts', 'dicts')]
        if args.skip_dicts:
            runs.pop()
        print(
            f'{args.pairs:,} pairs, {os.path.getsize(path) / MIB:,.0f} MiB of JSON, {args.workers} workers, '
            f'{args.reads:,} reads each; memory in MiB'
        )
        print(
            f'{"":18} {"first row":>10} {"private":>9} {"peak RSS":>9} {"mapped":>8} '
            f'{"private, worker":>16} {"us per row":>11}'
        )
        for title, how in runs:
            run = in_process(context, how, path, args.workers, args.reads)
            private, _, microseconds = (max(values) for values in zip(*run.workers, strict=True))
            print(
                f'{title:18} {run.seconds:8.1f} s {run.private / MIB:9,.0f} {run.peak / MIB:9,.0f} '
                f'{run.mapped / MIB:8,.0f} {private / MIB:16,.0f} {microseconds:11.1f}'
            )


if __name__ == '__main__':
    from utils.entry import run_main  # here, because it imports torch, which the measured processes do not have

    run_main(main)
