"""What the benchmarks share: timing that waits for a GPU, the measured peak of a device, one table and one JSON file.

    parser = Parser(...)
    add_arguments(parser, 'step')                       # --out and --device
    args = parser.parse_args(argv)
    report = Report('step', args, argv)                 # checks --out and --device
    seconds = take_turns({'plain': f, 'ours': g}, rounds=3, device=report.device)
    report.add({'task': 'vqa', 'ratio': 2.1}, loss=...) # a row; keywords are in the JSON file only
    report.finish()                                     # prints the table

The JSON file has the device, versions, threads and the command, no date, and the rows. It is written with every row,
`complete` is true at the end.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from utils.errors import InputError
from utils.files import atomic_write, check_output

PACKAGES = ('torch', 'timm', 'transformers')
PEAK_SIZE = {'cpu': 2048, 'cuda': 8192}  # rows and columns of the matrices that `matrix_peak` multiplies


def add_arguments(parser: argparse.ArgumentParser, name: str, cpu_only: bool = False) -> None:
    """Add --out and, unless the benchmark runs on the CPU only, --device; name: of the benchmark."""
    parser.add_argument('--out', default=f'output/benchmarks/{name}.json', help='a JSON file (default %(default)s)')
    if cpu_only:
        parser.set_defaults(device='cpu')
        return
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), help='(default: cuda if there is a GPU; it decides the default sizes)'
    )


def require_device(name: str | None) -> torch.device:
    """The device of --device, by default the GPU if there is one. On a GPU TF32 is on, as in the training scripts."""
    available = torch.cuda.is_available()
    if name == 'cuda' and not available:
        raise InputError('--device cuda: there is no GPU here; omit --device')
    device = torch.device(name or ('cuda' if available else 'cpu'))
    set_tf32(device, True)
    return device


def set_tf32(device: torch.device, on: bool) -> None:
    """On a GPU, compute float32 products in TF32 or exactly; no effect on the CPU."""
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Inside the block float32 products are exact, so that two ways can be compared; then TF32 is on again."""
    set_tf32(device, False)
    try:
        yield
    finally:
        set_tf32(device, True)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the model of the CPU if the system tells it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as lines:
            return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def take_turns(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    warmup: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call each way once per round, one after another -> {way: its seconds, one per round}.

    So all ways run under the same load. warmup: rounds before them that do not count. The results are dropped before
    the next way begins.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + rounds):
        for name, call in ways.items():
            wait(device)
            began = clock()
            call()
            wait(device)
            if turn >= warmup:
                seconds[name].append(clock() - began)
    return seconds


def matrix_peak(
    device: torch.device,
    dtype: torch.dtype,
    size: int | None = None,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measured FLOP/s of a product of two large square matrices, the best of several: the peak that a step can reach.

    size: rows and columns; by default `PEAK_SIZE` of the device. On a GPU float32 uses TF32 if it is on. clock: that of
    the times which are compared with it; `time.process_time` adds up all threads, so it gives the peak of one of them.
    """
    size = size or PEAK_SIZE[device.type]
    one, two = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    repeats = 10 if device.type == 'cuda' else 1  # so that the launch does not count

    def multiply() -> None:
        for _ in range(repeats):
            one @ two

    seconds = take_turns({'product': multiply}, rounds, device, warmup=1, clock=clock)['product']
    return 2 * size**3 * repeats / min(seconds)


class Report:
    """The rows of a benchmark, its JSON file and its table.

    name: of the benchmark. args: with what `add_arguments` adds. argv: of `main`; None for the command line. facts:
    what the file and the head of the table say once, such as peaks; a benchmark adds to it.
    """

    def __init__(self, name: str, args: argparse.Namespace, argv: Sequence[str] | None = None):
        check_output(args.out)
        self.name, self.out, self.device = name, args.out, require_device(args.device)
        argv = sys.argv[1:] if argv is None else argv
        self.command = shlex.join(['python', f'benchmarks/bench_{name}.py', *argv])
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.details: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any], **details: Any) -> None:
        """Add a row of the table, and write the file. details: values of it that only the file has."""
        self.rows.append(dict(row))
        self.details.append(details)
        self.write(complete=False)

    def finish(self) -> None:
        """Write the file, print the head and the table."""
        self.write(complete=True)
        print(
            f'{self.name}: {device_name(self.device)}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}'
        )
        for key, value in self.facts.items():
            print(f'{key}: {shown(value)}')
        print(table(self.rows))
        print(f'written to {os.fspath(self.out)}')

    def write(self, complete: bool) -> None:
        """Write the JSON file atomically. complete: whether it has all rows."""
        content = {
            'benchmark': self.name,
            'command': self.command,
            'device': {'type': self.device.type, 'name': device_name(self.device)},
            'tf32': self.device.type == 'cuda' and torch.backends.cuda.matmul.allow_tf32,
            'threads': torch.get_num_threads(),
            'versions': {'python': platform.python_version(), **{name: version(name) for name in PACKAGES}},
            'complete': complete,
            **self.facts,
            'rows': [{**row, **details} for row, details in zip(self.rows, self.details, strict=True)],
        }
        with atomic_write(self.out) as file:
            json.dump(content, file, indent=1)
            file.write('\n')


def shown(value: Any) -> str:
    """A value of a table: integers with commas, other numbers with four significant digits, None as '-'."""
    if value is None:
        return '-'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f'{value:,.0f}'
    return f'{value:.3g}' if abs(value) < 1 else f'{value:.4g}'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as lines with aligned columns, in the order in which their keys first occur; words left, numbers right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [any(isinstance(row.get(name), str) for row in rows) for name in names]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in cells
    )
