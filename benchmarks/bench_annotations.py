"""Memory and start-up time of annotations: the mapped cache against a list of dicts.

    python benchmarks/bench_annotations.py --pairs 4000000 --workers 2

Writes a file of made-up pairs to a temporary folder, which it removes at the end (1.5 GB for four million pairs), and
prints a table. `private` is what a process adds to the machine's use of memory, after the imports that any training
needs (Python, NumPy): private pages other than those of the mapped file. Those, `mapped`, are the system's page cache:
one copy for all processes, which the system drops when it needs the room. Workers are forked, and read random rows.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time

import numpy  # noqa: F401  so that it is part of what a process has before

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WORDS = 'a man woman dog cat red green street house on in with the of two riding standing holding plate train'.split()
MIB = 1 << 20


def write_pairs(path: str, count: int) -> None:
    """A pre-training file in the official layout: one caption a pair, of about 60 letters as in the web collections."""
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
            if '-' in name:  # the line that opens a mapping
                in_cache = line.rstrip().endswith('.arrow')
            elif in_cache and name == 'Rss:':
                mapped += int(values[0]) * 1024
            elif not in_cache and name in ('Private_Clean:', 'Private_Dirty:'):
                private += int(values[0]) * 1024
    return private, mapped


def read_at_random(rows, seed: int, count: int) -> float:
    """Microseconds a row."""
    draw = random.Random(seed).randrange
    begin = time.perf_counter()
    for _ in range(count):
        rows[draw(len(rows))]
    return (time.perf_counter() - begin) / count * 1e6


def worker(rows, seed: int, reads: int, results, together) -> None:
    pace = read_at_random(rows, seed, reads)
    together.wait()  # measured while all have read what they read
    private, mapped = memory()
    results.put((private, mapped, pace))
    together.wait()


def measure(how: str, path: str, workers: int, reads: int, pipe) -> None:
    """In a process of its own: open, read the first row, then let the workers read."""
    before = memory()[0]
    begin = time.perf_counter()
    if how == 'dicts':
        with open(path) as file:
            rows = json.load(file)
    else:
        from dataset.annotations import load_annotations

        rows = load_annotations(path, 'pretrain')
    assert len(rows[0]['image']) > 0
    start = time.perf_counter() - begin
    read_at_random(rows, 0, reads)
    after, mapped = memory()
    context = multiprocessing.get_context('fork')  # as the DataLoader's workers are
    results, together = context.Queue(), context.Barrier(workers)
    processes = [
        context.Process(target=worker, args=(rows, seed, reads, results, together)) for seed in range(1, workers + 1)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send((start, after - before, mapped, peak, found))


def in_process(context, *args) -> tuple:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(*args, sender))
    process.start()
    sender.close()  # so that a process that dies is an EOFError here
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pairs', type=int, default=4_000_000)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--reads', type=int, default=1_000_000, help='rows that each process reads at random')
    parser.add_argument('--skip-dicts', action='store_true', help='leave out the list of dicts, which takes gigabytes')
    args = parser.parse_args()
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
            f'{"private, worker":>16} {"us a row":>9}'
        )
        for title, how in runs:
            start, added, mapped, peak, found = in_process(context, how, path, args.workers, args.reads)
            private, _, pace = (max(values) for values in zip(*found, strict=True))
            print(
                f'{title:18} {start:8.1f} s {added / MIB:9,.0f} {peak / MIB:9,.0f} {mapped / MIB:8,.0f} '
                f'{private / MIB:16,.0f} {pace:9.1f}'
            )


if __name__ == '__main__':
    main()
