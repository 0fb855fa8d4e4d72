"""What a run reports: lines and a progress bar for people, log.txt for programs."""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils import distributed
from utils.config_files import holds_yaml
from utils.errors import InputError
from utils.files import atomic_write


def print_rank0(*words: object) -> None:
    """Print on rank 0, above the progress bar if one is shown."""
    if distributed.is_main():
        tqdm.write(' '.join(str(word) for word in words))
        sys.stdout.flush()


def memory_used(device: torch.device) -> str:
    """Peak memory as a string: the GPU's on a GPU, else the process's."""
    if device.type == 'cuda':
        return f'{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GB gpu'
    return f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB'


class Averages:
    """Means over the steps of an epoch, summed on the device in float64; only reading them waits for the device."""

    def __init__(self, names: Iterable[str], device: torch.device):
        self.names = tuple(names)
        self.sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)  # of values, of steps
        self.seen = self.sums.clone()

    def update(self, *, counts: Tensor | None = None, **values: Tensor | float) -> None:
        """Add one step's values, tensors without dimensions or numbers, one for each name.

        counts: [] bool, whether the step counts (default: it does).
        """
        row = [
            torch.as_tensor(values[name], dtype=torch.float64, device=self.sums.device).detach() for name in self.names
        ]
        row = torch.stack(row)
        row = torch.stack([row, torch.ones_like(row)])  # [2, names]
        self.sums += row if counts is None else torch.where(counts, row, 0.0)

    def recent(self) -> dict[str, float]:
        """Means since the last call on this rank; none if no step counted. InputError if one is not finite."""
        since, self.seen = self.sums - self.seen, self.sums.clone()
        return self._means(since)

    def epoch(self) -> dict[str, float]:
        """Means over the epoch and all ranks (a collective). InputError if no step counted, or one is not finite."""
        means = self._means(distributed.all_reduce_sum(self.sums.clone()))
        if not means:
            raise InputError(
                'no step of the epoch was finite: the training diverged, and nothing of the epoch is saved'
            )
        return means

    def _means(self, sums: Tensor) -> dict[str, float]:
        """{name: mean} of those that were counted."""
        rows = zip(self.names, *sums.tolist(), strict=True)
        means = {name: value / steps for name, value, steps in rows if steps}
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise InputError(
                f'{", ".join(broken)} is no longer finite: the training diverged. Earlier checkpoints are intact; '
                'continue from one with a lower optimizer.lr, with clip_grad_norm, or with precision: fp32'
            )
        return means

    def reset(self) -> None:
        self.sums.zero_()
        self.seen.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {'names': list(self.names), 'sums': self.sums.cpu(), 'seen': self.seen.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The mean of a metric that the state does not have begins here; those that are not here are dropped."""
        saved = state.get('names', self.names)
        for sums, values in ((self.sums, state['sums']), (self.seen, state['seen'])):
            if values.ndim == 1:  # of an earlier version: the last entry is the number of steps of all metrics
                values = torch.stack([values[:-1], values[-1].expand(len(values) - 1)])
            columns = dict(zip(saved, values.t().tolist(), strict=False))
            rows = [columns.get(name, [0.0, 0.0]) for name in self.names]
            sums.copy_(torch.tensor(rows, dtype=torch.float64).t())


class Progress:
    """A bar on a terminal, elsewhere a line every `every` steps; only rank 0 shows it.

    title: such as 'epoch 3'. total: steps. start: steps done before. unit_size: items per step over all ranks, called
    `unit`.
    """

    def __init__(
        self,
        title: str,
        total: int,
        start: int = 0,
        every: int = 50,
        unit_size: int = 1,
        unit: str = 'pairs',
        device: torch.device | None = None,
    ):
        self.title, self.total, self.every = title, total, every
        self.unit_size, self.unit, self.device = unit_size, unit, device or torch.device('cpu')
        self.start, self.done, self.started = start, start, time.perf_counter()
        self.bar = None
        if distributed.is_main() and sys.stdout.isatty():
            self.bar = tqdm(total=total, initial=start, desc=title, file=sys.stdout, dynamic_ncols=True, leave=False)

    def due(self, step: int) -> bool:
        """Whether to report after a step (from 0): every `every` steps and after the last."""
        return (step + 1) % self.every == 0 or step + 1 == self.total

    def report(self, step: int, **values: float) -> None:
        """Show values after a step (from 0); learning rates in full precision."""
        self.done = step + 1
        if not distributed.is_main():
            return
        words = '  '.join(
            f'{name} {value!r}' if name == 'lr' else f'{name} {value:.4f}' for name, value in values.items()
        )
        if self.bar is not None:
            self.bar.set_postfix_str(words, refresh=False)
            self.bar.update(self.done - self.bar.n)
            return
        rate = (self.done - self.start) / max(time.perf_counter() - self.started, 1e-9)
        remaining = time.strftime('%H:%M:%S', time.gmtime((self.total - self.done) / rate))
        print_rank0(
            f'{self.title} [{self.done}/{self.total}]  {words}  {rate * self.unit_size:.1f} {self.unit}/s  '
            f'remaining {remaining}  {memory_used(self.device)}'
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def set_aside(folder: str, config: Mapping[str, Any]) -> None:
    """Rename log.txt and config.yaml of an earlier run to log.N.txt and config.N.yaml, before a new one (rank 0).

    N is the first number that both have free. A config.yaml without a log that is equal to `config` stays.
    """
    log, settings = Path(folder, 'log.txt'), Path(folder, 'config.yaml')
    old = [log] if log.exists() and log.stat().st_size else []
    if settings.exists() and (old or not holds_yaml(settings, config)):
        old.append(settings)
    number = 1
    while any(path.with_suffix(f'.{number}{path.suffix}').exists() for path in (log, settings)):
        number += 1
    for path in old:
        numbered = path.with_suffix(f'.{number}{path.suffix}')
        os.replace(path, numbered)
        print_rank0(f'{path} of an earlier run was renamed to {numbered.name}')


def write_log(folder: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Write the complete log.txt, one JSON object per record (rank 0)."""
    if distributed.is_main():
        with atomic_write(Path(folder, 'log.txt')) as file:
            file.writelines(json.dumps(record) + '\n' for record in records)


def append_log(folder: str, record: Mapping[str, Any]) -> None:
    """Append one record to log.txt, for runs without checkpoints such as --evaluate (rank 0)."""
    if distributed.is_main():
        path = Path(folder, 'log.txt')
        before = path.read_text(encoding='utf-8') if path.exists() else ''
        with atomic_write(path) as file:
            file.write(before + json.dumps(record) + '\n')
