"""What a run says: lines and a progress bar for people, log.txt for programs."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from utils import distributed


def say(*words):
    """Print on rank 0, above a progress bar where one is shown."""
    if distributed.is_main():
        tqdm.write(' '.join(str(word) for word in words))
        sys.stdout.flush()


def memory_used(device):
    """Peak memory in words: of the GPU where there is one, else of the process."""
    if device.type == 'cuda':
        return f'{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GB gpu'
    return f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB'


class Averages:
    """Means over the steps of an epoch, summed on the device in float64: nothing waits for it until it is read."""

    def __init__(self, names, device):
        self.names = tuple(names)
        self.sums = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=device)
        self.seen = self.sums.clone()

    def update(self, **values):
        """Add one step's values, tensors without dimensions or numbers, one for each name."""
        row = [torch.as_tensor(values[name], dtype=torch.float64, device=self.sums.device).detach() for name in self.names]
        self.sums += torch.stack(row + [torch.ones_like(row[0])])

    def recent(self):
        """Means since the last call of this rank, as a dict. ValueError where one is not finite: the run has diverged."""
        since, self.seen = self.sums - self.seen, self.sums.clone()
        return self._means(since)

    def epoch(self):
        """Means over the epoch and all ranks (a collective), as a dict."""
        return self._means(distributed.all_reduce_sum(self.sums.clone()))

    def _means(self, sums):
        *sums, steps = sums.tolist()
        means = {name: value / max(steps, 1) for name, value in zip(self.names, sums, strict=True)}
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise ValueError(f'{", ".join(broken)} is no longer finite: the training diverged. The checkpoints of before are '
                             'intact; go on from one with a lower optimizer.lr, with clip_grad_norm, or with precision: fp32')
        return means

    def reset(self):
        self.sums.zero_()
        self.seen.zero_()

    def state_dict(self):
        return {'sums': self.sums.cpu(), 'seen': self.seen.cpu()}

    def load_state_dict(self, state):
        self.sums.copy_(state['sums'])
        self.seen.copy_(state['seen'])


class Progress:
    """A bar on a terminal, a line every `every` steps elsewhere; silent on ranks other than 0.

    title: such as 'epoch 3'; total: steps; start: steps done before; unit_size: items a step over all ranks, named `unit`.
    """

    def __init__(self, title, total, start=0, every=50, unit_size=1, unit='pairs', device=None):
        self.title, self.total, self.every = title, total, every
        self.unit_size, self.unit, self.device = unit_size, unit, device or torch.device('cpu')
        self.start, self.done, self.began = start, start, time.perf_counter()
        self.bar = None
        if distributed.is_main() and sys.stdout.isatty():
            self.bar = tqdm(total=total, initial=start, desc=title, file=sys.stdout, dynamic_ncols=True, leave=False)

    def due(self, step):
        """Whether step (from 0) is one to report after: every `every` steps and the last."""
        return (step + 1) % self.every == 0 or step + 1 == self.total

    def report(self, step, **values):
        """Show the values after a step (from 0); numbers in full precision where they are learning rates."""
        self.done = step + 1
        if not distributed.is_main():
            return
        words = '  '.join(f'{name} {value!r}' if name == 'lr' else f'{name} {value:.4f}' for name, value in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(words, refresh=False)
            self.bar.update(self.done - self.bar.n)
            return
        rate = (self.done - self.start) / max(time.perf_counter() - self.began, 1e-9)
        left = time.strftime('%H:%M:%S', time.gmtime((self.total - self.done) / rate))
        say(f'{self.title} [{self.done}/{self.total}]  {words}  {rate * self.unit_size:.1f} {self.unit}/s  left {left}  '
            f'{memory_used(self.device)}')

    def close(self):
        if self.bar is not None:
            self.bar.close()


def start_log(folder):
    """A fresh run's log.txt: that of an earlier run in the folder is kept beside it under a number (rank 0)."""
    path = Path(folder, 'log.txt')
    if distributed.is_main() and path.exists() and path.stat().st_size:
        number = 1
        while (kept := Path(folder, f'log.{number}.txt')).exists():
            number += 1
        os.replace(path, kept)
        say(f'{path} of an earlier run is kept as {kept.name}')


def write_log(folder, records):
    """Write log.txt anew, one JSON object a record, beside its place first (rank 0)."""
    if distributed.is_main():
        path = Path(folder, 'log.txt')
        temporary = path.with_suffix('.txt.tmp')
        temporary.write_text(''.join(json.dumps(record) + '\n' for record in records))
        os.replace(temporary, path)


def append_log(folder, record):
    """Add one record to log.txt, for runs without checkpoints such as --evaluate (rank 0)."""
    if distributed.is_main():
        with open(Path(folder, 'log.txt'), 'a') as file:
            file.write(json.dumps(record) + '\n')
