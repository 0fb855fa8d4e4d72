"""Seconds to group one queue, `dataset.grit.group_queue` against the step-by-step way in one run, and to plan an epoch.

    python benchmarks/bench_grouping.py                                  # L 48,000, M 1,920, D 256
    python benchmarks/bench_grouping.py --search_space 7680 --rounds 1   # other sizes
    python benchmarks/bench_grouping.py --baseline false                 # the fast way alone
    python benchmarks/bench_grouping.py --pairs 400000000 --ranks 128    # instead: one rank's plan of so many pairs

Grouping is timed on the CPU, and on a GPU where there is one. The two ways take turns, so that both meet the same
machine; the figures are the best of all rounds.
"""

import argparse
import os
import resource
import sys
import time

import torch
from torch.nn.functional import normalize

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from dataset.grit import example_shuffle, generator_for, group_queue  # noqa: E402
from dataset.samplers import EpochPlan  # noqa: E402


def group_step_by_step(image_feat, text_feat, start, temperature=0.07):
    """image_feat [M, D], text_feat [M, D] -> order [M], as a list: the chain by softmax scores, as the paper puts it.

    Each step sets the used example's row and column to 0 in both tables and asks for the top of one row.
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


def group_queue_step_by_step(image_feat, text_feat, search_space, generator):
    """The queue's sub-queues one after another: the signature of `group_queue`, and at this temperature its result."""
    shuffled = example_shuffle(len(image_feat), generator)
    starts = torch.randint(search_space, (len(shuffled) // search_space,), generator=generator)
    grouped = []
    for members, start in zip(shuffled.split(search_space), starts.tolist(), strict=True):
        where = members.to(image_feat.device)
        grouped.append(members[group_step_by_step(image_feat[where], text_feat[where], start)])
    return torch.cat(grouped)


def seconds(function, *args):
    """function(*args) -> its seconds, its result; waits for a GPU."""
    wait = torch.cuda.synchronize if args[0].is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    result = function(*args)
    wait()
    return time.perf_counter() - start, result


def peak_bytes(device):
    """The most memory that this process has had so far, of the GPU or of the host."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bench(device, args):
    generator = generator_for('benchmark', 0)
    image_feat = normalize(torch.randn(args.length, args.width, generator=generator), dim=1)
    text_feat = normalize(image_feat + torch.randn(args.length, args.width, generator=generator) / 16, dim=1)
    image_feat, text_feat = image_feat.to(device), text_feat.to(device)
    group_queue(image_feat[:64], text_feat[:64], 32, generator_for('warm up'))
    before = peak_bytes(device)
    fast, slow = [], []
    for turn in range(args.rounds):
        took, order = seconds(group_queue, image_feat, text_feat, args.search_space, generator_for(turn))
        fast.append(took)
        if turn == 0:
            memory = peak_bytes(device) - before
        if args.baseline:
            took, expected = seconds(
                group_queue_step_by_step, image_feat, text_feat, args.search_space, generator_for(turn)
            )
            slow.append(took)
            print(
                f'round {turn}: {fast[-1]:.2f} s against {slow[-1]:.2f} s; places that agree '
                f'{(order.cpu() == expected).float().mean():.2%}'
            )
    print(
        f'{device}: L {args.length:,} M {args.search_space:,} D {args.width}, {torch.get_num_threads()} threads: '
        f'group_queue {min(fast):.3f} s, at most {memory / 2**20:,.0f} MiB more than the features'
    )
    if args.baseline:
        print(f'{device}: step by step {min(slow):.2f} s; ratio {min(slow) / min(fast):.1f}')


def bench_plan(args):
    """Time and memory of one rank among `args.ranks` in laying out a random and a grouped epoch."""
    plan = EpochPlan(args.pairs, batch_size=128, world_size=args.ranks)
    before = peak_bytes('cpu')
    for name, start, *inputs in (
        ('random', plan.start_random, 0, lambda left_out: [left_out] * args.ranks),  # nobody has been left out yet
        ('grouped', lambda epoch: plan.start_grit(epoch, plan.order.flip(0)), 1),
    ):
        began = time.perf_counter()
        start(*inputs)
        print(
            f'plan: {args.pairs:,} pairs, {args.ranks} ranks: {name} epoch {time.perf_counter() - began:.2f} s, '
            f'peak {(peak_bytes("cpu") - before) / 2**20:,.0f} MiB, kept {plan.order.nbytes / 2**20:,.0f} MiB'
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--length', type=int, default=48000, help='L')
    parser.add_argument('--search_space', type=int, default=1920, help='M')
    parser.add_argument('--width', type=int, default=256, help='D')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--baseline', type=lambda word: word == 'true', default=True, metavar='true|false')
    parser.add_argument('--pairs', type=int, help='plan epochs of a dataset of this size')
    parser.add_argument('--ranks', type=int, default=4)
    args = parser.parse_args(argv)
    if args.pairs:
        return bench_plan(args)
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        bench(device, args)


if __name__ == '__main__':
    main()
