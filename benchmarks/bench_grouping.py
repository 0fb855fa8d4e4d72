"""Grouping one queue by `dataset.grit.group_queue` compared with step by step, or the plan of an epoch.

    python benchmarks/bench_grouping.py                                  # L 48,000, M 1,920, D 256
    python benchmarks/bench_grouping.py --search_space 7680 --rounds 1   # other sizes
    python benchmarks/bench_grouping.py --baseline false                 # `group_queue` only
    python benchmarks/bench_grouping.py --quantile 0.98                  # chains at a quantile, compared with 1
    python benchmarks/bench_grouping.py --grouping cuthill_mckee         # another grouping, compared with the chains
    python benchmarks/bench_grouping.py --pairs 400000000 --ranks 128    # instead: the plan of one rank for a dataset

Step by step is the paper's way with softmax tables; that both give the same order is checked first, on a shorter queue
of half the search space, and the share of equal positions is printed for the complete one. With `--quantile` or
`--grouping` the second way is `group_queue` as GRIT has it, whose order is another. The ways take turns, so that both
run under the same load; the times are the best of all rounds.

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
from benchmarks.report import Report, add_arguments, exact_products, take_turns  # noqa: E402
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


def peak_bytes() -> int:
    """The peak memory of this process on the host so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """By how much a call raises the memory: on a GPU its peak above what is allocated, on the host the peak so far."""
    if device.type == 'cpu':
        before = peak_bytes()
        call()
        return peak_bytes() - before
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def random_queue(length: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random features of a queue, those of a text near those of its image: two of [L, D], normalized."""
    generator = generator_for('benchmark', 0)
    image_feat = normalize(torch.randn(length, width, generator=generator), dim=1)
    text_feat = normalize(image_feat + torch.randn(length, width, generator=generator) / 16, dim=1)
    return image_feat.to(device), text_feat.to(device)


def check_equal(ways: Sequence[Callable[..., Tensor]], feats: tuple[Tensor, Tensor], args: argparse.Namespace) -> None:
    """InputError unless both ways give the same order of a short queue."""
    space = max(2, args.search_space // 2)
    short = [feat[: 2 * space] for feat in feats]
    with exact_products(feats[0].device):
        orders = [way(*short, space, generator_for('check')).cpu() for way in ways]
    if not torch.equal(*orders):
        raise InputError('group_queue and the step-by-step way give different orders: there is nothing to compare')


def bench_grouping(report: Report, args: argparse.Namespace) -> None:
    """Time and memory of grouping one queue of random features."""
    device, feats = report.device, random_queue(args.length, args.width, report.device)
    group = partial(group_queue, quantile=args.quantile, grouping=args.grouping)
    is_grit = (args.quantile, args.grouping) == (1, 'chain')
    name, baseline = ('step by step', group_queue_step_by_step) if is_grit else ("GRIT's chains", group_queue)
    group(*(feat[:64] for feat in feats), 32, generator_for('warm up'))
    orders: dict[str, Tensor] = {}

    def run(name: str, way: Callable[..., Tensor]) -> None:
        orders[name] = way(*feats, args.search_space, generator_for(0))

    ways = {'ours': partial(run, 'ours', group)}
    memory = extra_bytes(ways['ours'], device)  # first, for the host only knows the peak of all that ran
    if args.baseline and is_grit:
        check_equal((group, baseline), feats, args)
    if args.baseline:
        ways[name] = partial(run, name, baseline)
    seconds = {way: min(taken) for way, taken in take_turns(ways, args.rounds, device).items()}
    row = {'L': args.length, 'M': args.search_space, 'D': args.width, 'ours, s': seconds['ours']}
    if args.baseline:
        equal = (orders['ours'].cpu() == orders[name].cpu()).double().mean().item()
        row |= {f'{name}, s': seconds[name], 'ratio': seconds[name] / seconds['ours'], 'equal positions': equal}
    report.add({**row, 'MiB besides features': memory / 2**20})


def bench_plan(report: Report, args: argparse.Namespace) -> None:
    """Time and memory of planning a random and a grouped epoch, on one of `args.ranks` ranks."""
    plan = EpochPlan(
        args.pairs,
        BATCH_SIZE,
        world_size=args.ranks,
        gather=lambda left_out: [left_out] * args.ranks,  # of every rank nothing: no epoch came before
    )
    before = peak_bytes()
    for name, set_order in (
        ('random', lambda: plan.set_random_order(0)),
        ('grouped', lambda: plan.set_grit_order(1, plan.order.flip(0))),
    ):
        began = time.perf_counter()
        set_order()
        seconds = time.perf_counter() - began
        sizes = {'peak MiB': (peak_bytes() - before) / 2**20, 'stored MiB': plan.order.nbytes / 2**20}
        report.add({'pairs': args.pairs, 'ranks': args.ranks, 'epoch': name, 's': seconds, **sizes})


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
    add_arguments(parser, 'grouping')
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
    report = Report('grouping', args, argv)
    if args.pairs is not None:
        bench_plan(report, args)
    else:
        bench_grouping(report, args)
    report.finish()


if __name__ == '__main__':
    run_main(main)
