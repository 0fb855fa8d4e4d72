"""Training metrics for TensorBoard or Weights & Biases, besides log.txt: the key `report_to`.

    python Pretrain.py ... --set report_to=tensorboard      # then: tensorboard --logdir OUTPUT_DIR/tensorboard
    python Pretrain.py ... --set report_to=wandb            # WANDB_PROJECT, WANDB_MODE and the like as everywhere

Two kinds of rows, of rank 0. `step/...`: what a line of progress shows, every `print_freq` steps. `epoch/...`: all
numbers of the epoch's record in log.txt. The axis is the global step, counted from 0: epoch * steps + step for a line
of progress, and for a record that of the step after the epoch, (epoch + 1) * steps.

A resumed run continues at a step P. Rows from P on, of steps that are now trained again, may exist; rows just before P
may not have left a process that was killed. So the checkpoint holds the last rows, which are sent again:

- TensorBoard hides everything from the first of them on (`purge_step`), and gets them and what follows once more.
- wandb only appends. Each row has a number of its own, which is wandb's step (the axis is the metric `global_step`). A
  row below the step from which wandb continues the run is not sent again: it is the same row, because a resumed run
  repeats its numbers. Offline, wandb does not know that step, and the last rows are then in two of its folders.
"""

import contextlib
import os
import re
from collections import deque
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import InputError

if TYPE_CHECKING:  # `python -m evaluation table` needs `flatten`, not torch
    from utils.checkpoint import Status

LAST_ROWS = 100  # that the checkpoint holds; wandb sends what it has every few seconds
PROJECT = 'grit-vlp'
NEEDED = {'tensorboard': ('torch.utils.tensorboard', 'SummaryWriter'), 'wandb': ('wandb', 'init')}


def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    """Nested metrics by dotted keys: {'val_perAnswerType': {'number': 1}} -> {'val_perAnswerType.number': 1}."""
    flat = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update({f'{key}.{inner}': metric for inner, metric in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def require_package(report_to: str) -> None:
    """InputError if `report_to` names a package that cannot be imported."""
    if report_to == 'none':
        return
    module, name = NEEDED[report_to]
    try:
        getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:  # the second: a folder of this name
        reason = ' '.join(str(error).split())
        raise InputError(
            f'report_to: {report_to} cannot be imported ({reason}); `pip install {report_to}`, or set report_to: none'
        ) from None


class Report:
    """Sends the rows of a run to what `report_to` names; nothing with none, and on other ranks than 0.

    steps: per epoch. It is an entry of the run's `state`, if anything is reported: see the module's docstring.
    """

    def __init__(self, config: Mapping[str, Any], folder: str | os.PathLike, steps: int):
        self.config, self.folder, self.steps = config, Path(folder), steps
        self.name = config['report_to']
        self.first: int | None = None  # the global step of the epoch's first step
        self.rows: deque = deque(maxlen=LAST_ROWS)  # [kind, global step, {name: value}]
        self.sink: TensorBoard | Wandb | None = None

    def begin(self, status: 'Status') -> None:
        """Open the report of a new run, or continue that of a resumed one (a collective). InputError if it fails."""
        from utils import distributed

        if self.first is None:
            self.first = status.epoch * self.steps
        if self.name != 'none':
            distributed.main_first(partial(self._open, status))

    def _open(self, status: 'Status') -> None:
        require_package(self.name)
        rows = [*self.rows]
        if status.step == 0 and status.records:  # its checkpoint is written before it is reported
            rows.append(['epoch', self.first, status.records[-1]])
        start = min([self.first + status.step, *(step for _, step, _ in rows)])
        make = {'tensorboard': TensorBoard, 'wandb': Wandb}[self.name]
        self.rows.clear()
        self.sink = make(self.folder, self.config, status.started, start)
        for row in rows:
            self._send(*row)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Report the values of a line of progress after a step (from 0) of the epoch."""
        if self.sink:
            self._send('step', self.first + step, values)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Report the record of an epoch that is complete and saved: call it after `reset`."""
        if self.sink:
            self._send('epoch', self.first, record)

    def _send(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        numbers = {
            f'{kind}/{name}': value
            for name, value in flatten(values).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.rows.append([kind, step, dict(values)])
        self.sink.send(kind, step, numbers)

    def close(self, complete: bool) -> None:
        """Flush and close. complete: whether the run reached its end; if not, its error is the one to show."""
        sink, self.sink = self.sink, None
        if sink:
            with contextlib.nullcontext() if complete else contextlib.suppress(Exception):
                sink.close(complete)

    def reset(self) -> None:
        """The end of an epoch."""
        self.first += self.steps

    def state_dict(self) -> dict[str, Any]:
        return {'first': self.first, 'rows': [*self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first = state['first']
        self.rows.extend(state['rows'])


class TensorBoard:
    """An event file in FOLDER/tensorboard. Whatever earlier files have from global step `start` on is hidden."""

    def __init__(self, folder: Path, config: Mapping[str, Any], started: float, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / 'tensorboard'), purge_step=start)

    def send(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write a row to the file, so that no end of the process loses it."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, complete: bool) -> None:
        self.writer.close()


class Wandb:
    """A run at wandb, whose id is made of the run's `started` and its folder's name, so that a resumed run finds it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], started: float, start: int):
        import wandb

        name = folder.resolve().name
        try:
            self.run = wandb.init(
                dir=str(folder),
                project=os.environ.get('WANDB_PROJECT') or PROJECT,
                id=f'{re.sub("[^A-Za-z0-9_-]", "-", name)[:64]}-{int(started * 1000)}',
                name=name,
                resume='allow',
                config=dict(config),
                allow_val_change=True,
            )
        except wandb.Error as error:
            reason = ' '.join(str(error).split())
            raise InputError(
                f'report_to: wandb does not start ({reason}); log in with `wandb login`, set the environment variable '
                'WANDB_MODE=offline, or set report_to: none'
            ) from None
        self.run.define_metric('global_step')
        self.run.define_metric('*', step_metric='global_step')

    def send(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Log a row, unless wandb has it. A record comes before the line of progress with the same global step."""
        number = 2 * step + (kind == 'step')
        if number >= self.run.starting_step:
            self.run.log({'global_step': step, **values}, step=number, commit=True)

    def close(self, complete: bool) -> None:
        """Wait until everything is sent."""
        self.run.finish(exit_code=0 if complete else 1)
