"""How a run grows: the largest batch of a GPU, what the processes exchange in a step, what depends on the dataset.

    python benchmarks/growth.py                                             # all tables, in less than a minute
    python benchmarks/growth.py --tables communication --gpus 16 256 --device-tflops 989
    python benchmarks/growth.py --tables batch --reserve 0.05 --context 2   # other assumptions

Nothing is measured. FLOPs and bytes are counted on tensors without values, with the official configurations.

    batch      fixed + slope x B = capacity x (1 - reserve) - context. Fixed and slope of the line through the bytes of
               a step, counted at two batches (`BATCHES`).
    all-reduce 2 (W - 1) / W x 4 bytes for each trainable parameter, what a rank sends in a ring. DDP starts with the
               first full bucket, so the backward pass hides it if the link sends so much in the backward pass's time.
    time       FLOPs / (TFLOP/s x utilization)

Legend: B examples of a GPU in a step, W processes (ranks), D pairs, L queue length, M search space, E embedding.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.cost import GB, SETTINGS, add_device, check_device  # noqa: E402
from benchmarks.counting import FLOAT, FakeStep, Weights, backward_flops, training_flops  # noqa: E402
from utils.arguments import Parser  # noqa: E402
from utils.config import resolve  # noqa: E402
from utils.config_files import find_file, read_yaml  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402

CAPACITIES = 11, 24, 40, 80, 141  # GB of 10^9 bytes
BATCHES = 8, 64
LEAST = 2  # ITM needs another example
MIB = 2**20
INTEGER = 8  # bytes of an int64
STEPS = {  # {name: (task, configuration)}
    'pre-training': ('pretrain', 'Pretrain'),
    "ALBEF's pre-training": ('pretrain', 'Pretrain_ALBEF'),
    'retrieval': ('retrieval', 'Retrieval_coco'),
    'NLVR2': ('nlvr', 'NLVR'),
    'VQA': ('vqa', 'VQA'),
}
RESOLUTIONS = {'pre-training': (256, 384), "ALBEF's pre-training": (256, 384), 'retrieval': (384,)}
SIZES = [(4_000_000, 4), (14_000_000, 16), (400_000_000, 128)]  # pairs of 4M, 14M, 400M datasets; processes


def read_config(name: str) -> dict[str, Any]:
    """The official configuration of a row of `STEPS`."""
    task, file = STEPS[name]
    path = find_file(f'configs/{file}.yaml')
    return resolve(task, read_yaml(path), path)[0]


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, whose first column is words and whose others are numbers."""
    lines = ['| ' + ' | '.join(map(str, line)) + ' |' for line in (heads, *rows)]
    return '\n'.join([lines[0], '|---|' + '---:|' * (len(heads) - 1), *lines[1:]])


# ---- the largest batch ----


class MemoryLine(NamedTuple):
    """Bytes of a GPU in a step: fixed + slope x B."""

    fixed: float
    slope: float

    @classmethod
    def count(cls, step: FakeStep, precision: str, recompute: bool) -> 'MemoryLine':
        """The line through two counts."""
        low, high = (step.activation_bytes(batch, precision, recompute) for batch in BATCHES)
        slope = (high - low) / (BATCHES[1] - BATCHES[0])
        return cls(sum(step.weights) + low - slope * BATCHES[0], slope)

    def largest(self, capacity: float) -> int:
        """The largest batch in `capacity` bytes; 0 if not even two examples fit."""
        batch = int((capacity - self.fixed) // self.slope)
        return batch if batch >= LEAST else 0


def usable(gb: float, reserve: float, context: float) -> float:
    """Bytes of a GPU of `gb` GB for what is counted. reserve: a share, for fragmentation. context: GB, for CUDA."""
    return (gb * (1 - reserve) - context) * GB


def batch_table(reserve: float, context: float) -> str:
    """The largest batch for each step, resolution, setting and capacity."""
    heads = ['largest batch of a GPU', 'px', 'setting', 'GB + MB x B', *(f'{gb} GB' for gb in CAPACITIES)]
    rows = []
    for name, sizes in RESOLUTIONS.items():
        config = read_config(name)
        for size in sizes:
            step = FakeStep(STEPS[name][0], {**config, 'image_res': size})
            for precision, recompute in SETTINGS:
                line = MemoryLine.count(step, precision, recompute)
                largest = [line.largest(usable(gb, reserve, context)) or '-' for gb in CAPACITIES]
                words = f'{precision}, recomputed' if recompute else precision
                rows.append([name, size, words, f'{line.fixed / GB:.1f} + {line.slope / 1e6:.0f} B', *largest])
    return table(heads, rows)


# ---- communication in a step ----


def bucket_bytes(model: nn.Module) -> list[int]:
    """Bytes of DDP's buckets of gradients, in the order in which they are reduced.

    DDP's limits are 1 MiB for the first and 25 MiB; a bucket is full when it reaches its limit. `fix_buckets`
    (utils/setup.py) arranges them in the reverse order of the parameters.
    """
    sizes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad][::-1]
    gradients = [torch.empty(size, device='meta') for size in sizes]
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 * MIB]
    buckets = dist._compute_bucket_assignment_by_size(gradients, limits)[0]
    return [sum(gradients[i].nbytes for i in bucket) for bucket in buckets]


def gathered_bytes(task: str, config: Mapping[str, Any], batch: int) -> int:
    """Bytes of a rank that an all-gather gives to all ranks in a step: the features that enter the queue."""
    if not config.get('use_momentum') or task not in ('pretrain', 'retrieval'):
        return 0
    labels = INTEGER if task == 'retrieval' else 0  # which image each belongs to
    return batch * (2 * FLOAT * config['embed_dim'] + labels)


def sent_bytes(size: int, processes: int) -> float:
    """What a rank sends in a ring all-reduce of `size` bytes."""
    return 2 * (processes - 1) / processes * size


def communication_tables(gpus: Sequence[int], tflops: float, utilization: float) -> str:
    """What a step exchanges, and the bandwidth at which the backward pass hides it."""
    exchanged, hidden = [], []
    for name, (task, _) in STEPS.items():
        step = FakeStep(task, read_config(name))
        counts = step.count_flops(step.batch)
        flops, backward = training_flops(counts), backward_flops(counts)
        buckets, seconds = bucket_bytes(step.model), backward / (tflops * 1e12 * utilization)
        features = gathered_bytes(task, step.config, step.batch)
        megabytes = [f'{size / 1e6:.1f}' for size in (sum(buckets), max(buckets), buckets[-1])]
        exchanged.append([name, megabytes[0], len(buckets), *megabytes[1:], f'{features / 1e3:.0f}'])
        milliseconds = [f'{1e3 * seconds * part / backward:.0f}' for part in (flops, backward)]
        rates = [f'{sent_bytes(sum(buckets), count) / seconds / GB:.1f}' for count in gpus]
        hidden.append([name, step.batch, f'{flops / 1e12:.1f}', *milliseconds, *rates])
    heads = ['a step', 'MB of gradients', 'buckets', 'largest, MB', 'last, MB', 'KB of features']
    rates = [f'GB/s, W = {count}' for count in gpus]
    return '\n\n'.join(
        [
            table(heads, exchanged),
            table(['a step', 'batch', 'TFLOP', 'ms', 'of them backward', *rates], hidden),
        ]
    )


# ---- growth with the dataset ----


def grouping_flops(config: Mapping[str, Any]) -> int:
    """FLOPs of GRIT's grouping for each pair: its similarities with the M pairs of its sub-queue."""
    return 2 * config['search_space'] * config['embed_dim']


class Growth(NamedTuple):
    """Bytes that depend on the number of pairs and of processes, as upper bounds."""

    order: float  # of a rank's plan, for the examples that it sees or leaves out
    queue: float  # of a rank's features
    epoch_file: float  # a checkpoint between two epochs, with the orders of all ranks
    step_file: float  # one inside an epoch, with the state of the first rank
    shard: float  # the state of another rank beside it

    @classmethod
    def of(cls, weights: Weights, config: Mapping[str, Any], pairs: int, processes: int) -> 'Growth':
        """weights: of the model. pairs: D. processes: W. Without the random generators' states, 10 KB of a rank."""
        saved = weights.trained + weights.moments + weights.frozen + weights.buffers
        order = INTEGER * pairs / processes
        queue = 2 * FLOAT * config['embed_dim'] * min(config['queue_size'], pairs / processes)
        shard = 2 * order + queue  # this epoch's order, the next one's so far, and the queue just before it is full
        return cls(order, queue, saved + order * processes, saved + shard, shard)


def growth_table() -> str:
    """Sizes for some numbers of pairs and processes."""
    config = read_config('pre-training')
    weights = FakeStep('pretrain', config).weights
    heads = ['pairs, processes', 'steps', 'queues of a rank', 'TFLOP of grouping', 'MB of order', 'MB of queue']
    heads += ['epoch file, GB', 'step file, GB', 'a shard, MB', 'all shards, GB']
    rows = []
    for pairs, processes in SIZES:
        growth = Growth.of(weights, config, pairs, processes)
        shard = pairs / processes
        row = [f'{pairs / 1e6:.0f} M, {processes}', f'{int(shard // config["batch_size"]):,}']
        row += [f'{shard / config["queue_size"]:.1f}', f'{grouping_flops(config) * shard / 1e12:.2f}']
        row += [f'{size / 1e6:.1f}' for size in (growth.order, growth.queue)]
        row += [f'{size / GB:.2f}' for size in (growth.epoch_file, growth.step_file)]
        rows.append([*row, f'{growth.shard / 1e6:.0f}', f'{growth.shard * (processes - 1) / GB:.2f}'])
    return table(heads, rows)


# ---- command line ----

TABLES: dict[str, Callable[[argparse.Namespace], str]] = {
    'batch': lambda args: batch_table(args.reserve, args.context),
    'communication': lambda args: communication_tables(args.gpus, args.device_tflops, args.utilization),
    'growth': lambda args: growth_table(),
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', nargs='+', choices=TABLES, default=list(TABLES), help='(default: all)')
    parser.add_argument('--gpus', nargs='+', type=int, default=[4, 8, 64], help='W, some numbers (default: 4 8 64)')
    add_device(parser)
    parser.add_argument('--reserve', type=float, default=0.1, help='share of memory left free (default %(default)s)')
    parser.add_argument('--context', type=float, default=1.0, help='GB for CUDA, besides (default %(default)s)')
    args = parser.parse_args(argv)
    check_device(args)
    for count in args.gpus:
        if count < 2:
            raise InputError(f'--gpus {count}: must be at least 2; one process exchanges nothing')
    if not 0 <= args.reserve < 1:
        raise InputError(f'--reserve {args.reserve}: must be at least 0, below 1')
    if not 0 <= args.context < float('inf'):
        raise InputError(f'--context {args.context}: must be at least 0')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    print(
        f'Computed, not measured: GPUs of {args.device_tflops:g} TFLOP/s, of which {args.utilization:.0%} are used; '
        f'{args.reserve:.0%} of their memory and {args.context:g} GB are left free.'
    )
    for name in args.tables:
        print(f'\n{TABLES[name](args)}')


if __name__ == '__main__':
    run_main(main)
