"""Where a step of pre-training on the synthetic dataset spends its time: the real script, with a clock at each part.

    python -m dataset.shapes --out output/shapes
    python benchmarks/bench_phases.py                      # as `make demo` trains: batches of 20, no loader process
    python benchmarks/bench_phases.py --workers 1          # with a loader process
    OMP_NUM_THREADS=1 python benchmarks/bench_phases.py    # in one thread

`Pretrain.py` runs two epochs in a temporary folder, and the second one counts: images are in memory then. Milliseconds
per step. `load` is what the trainer waits for the loader; `other` is everything that has no clock of its own.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import Pretrain  # noqa: E402
from benchmarks.report import Report, add_arguments  # noqa: E402
from dataset.grit.batch_similarity import BatchSimilarity  # noqa: E402
from dataset.grit.collector import GritCollector  # noqa: E402
from demo import CONFIGS, DATA, SHORTER  # noqa: E402
from engine import TrainingRun  # noqa: E402
from models.model_pretrain import PretrainModel  # noqa: E402
from utils.arguments import Parser, positive_int  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import MissingFileError  # noqa: E402
from utils.log import Averages  # noqa: E402

PARTS = {
    'load': [(_BaseDataLoaderIter, '__next__')],
    'forward': [(PretrainModel, 'forward')],
    'backward': [(torch.Tensor, 'backward')],
    'norm': [(torch.nn.utils, 'get_total_norm')],
    'optimizer': [(torch.optim.AdamW, 'step')],
    'averages': [(Averages, 'update')],
    'GRIT': [(GritCollector, 'collect'), (BatchSimilarity, 'update')],
}
EPOCHS = 2


class Clocks:
    """Seconds of each part since the epoch began, and those of each complete epoch."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.epochs: list[dict[str, float]] = []
        self.began = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time counts for `part`."""

        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return call

    def count_epochs(self, batches: Callable[[TrainingRun], Iterator[Any]]) -> Callable[[TrainingRun], Iterator[Any]]:
        """`TrainingRun.batches`; the time of the inner loop is that of an epoch."""

        def iterate(run: TrainingRun) -> Iterator[Any]:
            self.seconds, began = dict.fromkeys(PARTS, 0.0), time.perf_counter()
            yield from batches(run)
            total = time.perf_counter() - began
            other = {'other': total - sum(self.seconds.values()), 'total': total}
            self.epochs.append({name: value / run.steps for name, value in (self.seconds | other).items()})

        return iterate


@contextmanager
def clocks() -> Iterator[Clocks]:
    """Inside the block every part has its clock."""
    taken = Clocks()
    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, taken.timed(part, getattr(owner, name))))
        stack.enter_context(patch.object(TrainingRun, 'batches', taken.count_epochs(TrainingRun.batches)))
        yield taken


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=f'{CONFIGS}/Pretrain.yaml', help='(default %(default)s)')
    parser.add_argument('--workers', type=int, default=0, help='loader processes (default %(default)s)')
    parser.add_argument('--rounds', type=positive_int, default=1, help='runs, of which the fastest counts')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='of the configuration')
    add_arguments(parser, 'phases', cpu_only=True)
    return parser.parse_args(argv)


def pretrain(args: argparse.Namespace, vocabulary: str) -> dict[str, float]:
    """Run the script -> {part: seconds per step} of the last epoch."""
    settings = [*SHORTER, f'num_workers={args.workers}', f'train_epochs={EPOCHS}', *args.set]
    changes = [word for setting in settings for word in ('--set', setting)]
    with tempfile.TemporaryDirectory() as folder, clocks() as taken:
        common = ['--text_encoder', vocabulary, '--device', 'cpu', '--output_dir', folder]
        Pretrain.main(['--config', args.config, *common, *changes])
    return taken.epochs[-1]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    vocabulary = DATA / 'vocab'
    if not vocabulary.is_dir():
        raise MissingFileError(
            f'{vocabulary}: there is no such folder; `python -m dataset.shapes --out {DATA}` makes it'
        )
    report = Report('phases', args, argv)
    runs = [pretrain(args, str(vocabulary)) for _ in range(args.rounds)]
    fastest = min(runs, key=lambda run: run['total'])
    for part, seconds in fastest.items():
        report.add({'part': part, 'ms per step': 1000 * seconds, 'share': seconds / fastest['total']})
    report.finish()


if __name__ == '__main__':
    run_main(main)
