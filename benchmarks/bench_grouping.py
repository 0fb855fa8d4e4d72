"""Seconds to group one queue, by `dataset.grit.group_queue` and step by step, and to plan an epoch.

    python benchmarks/bench_grouping.py                                  # L 48,000, M 1,920, D 256
    python benchmarks/bench_grouping.py --search_space 7680 --rounds 1   # other sizes
    python benchmarks/bench_grouping.py --baseline false                 # `group_queue` only
    python benchmarks/bench_grouping.py --quantile 0.98                  # chains at a quantile, compared with 1
    python benchmarks/bench_grouping.py --grouping cuthill_mckee         # another grouping, compared with the chains
    python benchmarks/bench_grouping.py --pairs 400000000 --ranks 128    # instead: the plan of one rank for a dataset

Grouping is timed on the CPU, and on a GPU if there is one. The two ways take turns, so that both run under the same
load; the times are the best of all rounds. With `--quantile` or `--grouping` the second way is `group_queue` as GRIT
has it.

Legend: L queue length, M search space, D feature width.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from dataset.grit import group_queue  # noqa: E402
from dataset.grit.cuthill_mckee import GROUPINGS, require_grouping  # noqa: E402
from dataset.grit.epoch_plan import EpochPlan  # noqa: E402
from dataset.grit.grouping import example_shuffle, generator_for  # noqa: E402
from utils.arguments import Parser, add_flag  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402

BATCH_SIZE = 128  # of the plan


def group_step_by_step(image_feat: Tensor, text_feat: Tensor, start: int, temperature: float = 0.07) -> list[int]:
    """The chain by softmax scores, as the paper describes it: image_feat [M, D], text_feat [M, D] -> order, M numbers.

    Each step sets the row and the column of the used example to 0 in both tables and takes the top of one row.
    """
    scores_i2t = torch.softmax(image_feat @ text_feat.t() / temperature, dim=1)  # [M, M]
    scores_t2i = torch.softmax(text_feat @ image_feat.t() / temperature, dim=1)
    tables = scores_i2t, scores_t2i
    order = [start]
    for step in range(len(image_feat) - 1):
        used = order[-1]
        row = tables[step % 2][used].clone()
        row[used] = 0
        for table in tables:
            table[used, :] = 0
            table[:, used] = 0
        order.append(row.topk(1).indices.item())
    return order


def group_queue_step_by_step(image_feat: Tensor, text_feat: Tensor, search_space: int, generator: Generator) -> Tensor:
    """The sub-queues one after another: the signature of `group_queue`, and at this temperature its result."""
    shuffled = example_shuffle(len(image_feat), generator)
    starts = torch.randint(search_space, (len(shuffled) // search_space,), generator=generator)
    grouped = []
    for members, start in zip(shuffled.split(search_space), starts.tolist(), strict=True):
        on_device = members.to(image_feat.device)
        grouped.append(members[group_step_by_step(image_feat[on_device], text_feat[on_device], start)])
    return torch.cat(grouped)


def timed(group: Callable[..., Tensor], image_feat: Tensor, *args) -> tuple[float, Tensor]:
    """Call `group` -> (seconds, its result); waits for a GPU."""
    wait = torch.cuda.synchronize if image_feat.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    result = group(image_feat, *args)
    wait()
    return time.perf_counter() - start, result


def peak_bytes(device: str) -> int:
    """The peak memory of this process so far, on the GPU or on the host."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bench_grouping(device: str, args: argparse.Namespace) -> None:
    """Time and memory of grouping one queue of random features."""
    generator = generator_for('benchmark', 0)
    image_feat = normalize(torch.randn(args.length, args.width, generator=generator), dim=1)
    text_feat = normalize(image_feat + torch.randn(args.length, args.width, generator=generator) / 16, dim=1)
    image_feat, text_feat = image_feat.to(device), text_feat.to(device)
    group = partial(group_queue, quantile=args.quantile, grouping=args.grouping)
    is_grit = (args.quantile, args.grouping) == (1, 'chain')
    name, baseline = ('step by step', group_queue_step_by_step) if is_grit else ("GRIT's chains", group_queue)
    group(image_feat[:64], text_feat[:64], 32, generator_for('warm up'))
    before = peak_bytes(device)
    fast, slow = [], []
    for turn in range(args.rounds):
        seconds, order = timed(group, image_feat, text_feat, args.search_space, generator_for(turn))
        fast.append(seconds)
        if turn == 0:
            memory = peak_bytes(device) - before
        if args.baseline:
            seconds, expected = timed(baseline, image_feat, text_feat, args.search_space, generator_for(turn))
            slow.append(seconds)
            agreement = (order.cpu() == expected.cpu()).float().mean()
            print(f'round {turn}: {fast[-1]:.2f} s, {name} {slow[-1]:.2f} s; equal positions {agreement:.2%}')
    print(
        f'{device}: L {args.length:,} M {args.search_space:,} D {args.width}, {torch.get_num_threads()} threads: '
        f'group_queue {min(fast):.3f} s, at most {memory / 2**20:,.0f} MiB in addition to the features'
    )
    if args.baseline:
        print(f'{device}: {name} {min(slow):.3f} s; ratio {min(slow) / min(fast):.2f}')


def bench_plan(args: argparse.Namespace) -> None:
    """Time and memory of planning a random and a grouped epoch, on one of `args.ranks` ranks."""
    plan = EpochPlan(
        args.pairs,
        BATCH_SIZE,
        world_size=args.ranks,
        gather=lambda left_out: [left_out] * args.ranks,  # of every rank nothing: no epoch came before
    )
    before = peak_bytes('cpu')
    for name, set_order in (
        ('random', lambda: plan.set_random_order(0)),
        ('grouped', lambda: plan.set_grit_order(1, plan.order.flip(0))),
    ):
        began = time.perf_counter()
        set_order()
        print(
            f'plan: {args.pairs:,} pairs, {args.ranks} ranks: {name} epoch {time.perf_counter() - began:.2f} s, '
            f'peak {(peak_bytes("cpu") - before) / 2**20:,.0f} MiB, stored {plan.order.nbytes / 2**20:,.0f} MiB'
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--length', type=int, default=48000, help='L (default %(default)s)')
    parser.add_argument('--search_space', type=int, default=1920, help='M (default %(default)s)')
    parser.add_argument('--width', type=int, default=256, help='D (default %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='turns of each way (default %(default)s)')
    add_flag(parser, '--baseline', True, 'also group the second way')
    parser.add_argument('--quantile', type=float, default=1.0, help='of the chains (default %(default)s)')
    parser.add_argument('--grouping', choices=GROUPINGS, default='chain', help='(default %(default)s)')
    parser.add_argument('--pairs', type=int, help='instead of grouping, plan epochs of a dataset of this size')
    parser.add_argument('--ranks', type=int, default=4, help='with --pairs (default %(default)s)')
    args = parser.parse_args(argv)
    for name in ('length', 'search_space', 'width', 'rounds', 'ranks'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name} {getattr(args, name)}: must be at least 1')
    if not 0 <= args.quantile <= 1:
        raise InputError(f'--quantile {args.quantile}: must be from 0 to 1')
    require_grouping(args.grouping)
    if args.baseline and args.pairs is None and args.length % args.search_space:
        raise InputError(
            f'--length {args.length}: the baseline needs a multiple of --search_space {args.search_space}; change one '
            'of them, or give --baseline false'
        )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.pairs is not None:
        return bench_plan(args)
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        bench_grouping(device, args)


if __name__ == '__main__':
    run_main(main)
