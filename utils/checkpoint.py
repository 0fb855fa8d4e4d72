"""Checkpoints: a file is the complete run, written atomically, and found again after any crash."""

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import distributed
from utils.errors import InputError
from utils.files import atomic_write
from utils.log import print_rank0, write_log
from utils.seeding import rng_state, set_rng_state
from utils.setup import unwrap

STEP_FILE = 'checkpoint_step.pth'
BEST_FILE = 'checkpoint_best.pth'


@dataclass
class Status:
    """How far a run is: the next batch to train on is `step` of `epoch`.

    records: the lines of log.txt so far. best: the best validation metric so far. started: seconds since 1970, which
    distinguishes the checkpoints of two runs in one folder.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)


@dataclass(frozen=True)
class RunParts:
    """What the checkpoints of a run save besides its status.

    model: may be wrapped. config: resolved. state: {name: object with state_dict and load_state_dict}, each rank's own
    (sampler, queues, averages).
    """

    task: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: Mapping[str, Any]
    state: Mapping[str, Any]


def save_run(path: str | os.PathLike, parts: RunParts, status: Status, best: bool = False) -> None:
    """Write the checkpoint of a run that is at (status.epoch, status.step). A collective; rank 0 writes.

    The states of the random generators are added. best: write checkpoint_best.pth, too. `epoch` in the file is the
    epoch last trained on, complete or not, as officially.
    """
    own = {'rng': rng_state()} | {name: part.state_dict() for name, part in parts.state.items()}
    states = distributed.gather_objects(own)
    if distributed.is_main():
        content = {
            'model': unwrap(parts.model).state_dict(),
            'optimizer': parts.optimizer.state_dict(),
            'lr_scheduler': dict(parts.config['schedular']),
            'config': parts.config,
            'epoch': status.epoch if status.step else status.epoch - 1,
            'position': [status.epoch, status.step],
            'task': parts.task,
            'best': status.best,
            'records': status.records,
            'started': status.started,
            'ranks': states,
        }
        write_checkpoint(path, content, best)
    distributed.barrier()


def write_checkpoint(path: str | os.PathLike, content: Mapping[str, Any], best: bool = False) -> None:
    """Write a checkpoint atomically, flushed to the disk.

    best: checkpoint_best.pth becomes the same file first, so that a crash between the two cannot leave an older best.
    """
    with atomic_write(path, 'wb', sync=True) as file:
        torch.save(content, file)
        if best:
            file.flush()
            os.fsync(file.fileno())
            _link(Path(file.name), Path(path).with_name(BEST_FILE))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, replacing the file that has it."""
    twin = source.with_suffix('.best')
    twin.unlink(missing_ok=True)
    try:
        os.link(source, twin)
    except OSError:  # a file system without links
        shutil.copyfile(source, twin)
    os.replace(twin, target)


def epoch_file(folder: str | os.PathLike, epoch: int) -> Path:
    """The path of the checkpoint after an epoch."""
    return Path(folder, f'checkpoint_{epoch:02d}.pth')


def complete_epoch(
    folder: str, parts: RunParts, status: Status, record: dict[str, Any], metric: float | None = None
) -> Status:
    """End epoch `status.epoch`: write its checkpoint and its line of log.txt, prune older checkpoints (a collective).

    record: the line of log.txt. metric: the validation metric, larger is better; if it is the best so far,
    checkpoint_best.pth becomes this epoch's. Returns the status at the beginning of the next epoch.
    """
    is_best = metric is not None and (status.best is None or metric > status.best)
    after = Status(status.epoch + 1, 0, metric if is_best else status.best, [*status.records, record], status.started)
    save_run(epoch_file(folder, status.epoch), parts, after, is_best)
    if distributed.is_main():
        prune_checkpoints(folder, parts.config['keep_checkpoints'])
    write_log(folder, after.records)
    return after


def prune_checkpoints(folder: str | os.PathLike, keep: int | None) -> None:
    """Delete the checkpoint inside the completed epoch, and all but the `keep` newest epochs' (None: keep all)."""
    Path(folder, STEP_FILE).unlink(missing_ok=True)
    numbered = sorted(Path(folder).glob('checkpoint_[0-9]*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    for path in numbered[:-keep] if keep else []:
        path.unlink()


def open_run(path: str | os.PathLike, task: str) -> dict[str, Any] | None:
    """A checkpoint's content if the script of `task` wrote it completely, else None. Tensors are read on first use."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # a damaged copy, or a file of another program
        return None
    return content if isinstance(content, dict) and content.get('task') == task and 'ranks' in content else None


def find_run(folder: str, task: str, checkpoint: str = '') -> str | None:
    """The file that `--resume` continues from: the folder's newest complete checkpoint, else `checkpoint` if it is one.

    Newest by the start of the run, then by position; never checkpoint_best.pth. Damaged files are named and skipped.
    None if there is nothing to resume.
    """

    def find() -> str | None:
        newest, found = None, None
        for path in [*Path(folder).glob('checkpoint_[0-9]*.pth'), Path(folder, STEP_FILE)]:
            if not path.exists():
                continue
            content = open_run(path, task)
            if content is None:
                print_rank0(f'skipped {path}: damaged, or not a checkpoint of this script')
            elif newest is None or (content['started'], *content['position']) > newest:
                newest, found = (content['started'], *content['position']), str(path)
        if found is None and checkpoint and open_run(checkpoint, task) is not None:
            found = checkpoint
        return found

    return distributed.main_first(find)


def resume_run(path: str, parts: RunParts) -> Status:
    """Restore a run exactly as its checkpoint has it: weights, optimizer, every rank's random generators and state.

    InputError if the number of processes differs; changed settings are printed.
    """
    content = open_run(path, parts.task)
    if content is None:
        raise InputError(f'{path}: not a complete checkpoint of this script')
    if len(content['ranks']) != distributed.world_size():
        raise InputError(
            f'{path} was written by {len(content["ranks"])} process(es) and can be resumed only by as many, not by '
            f'{distributed.world_size()}; to start a new run from its weights give it as --checkpoint with another '
            '--output_dir'
        )
    before, now = content['config'], parts.config
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            print_rank0(f'--resume: {key} was {before.get(key)!r} and is now {now.get(key)!r}')
    try:
        unwrap(parts.model).load_state_dict(content['model'])
        parts.optimizer.load_state_dict(content['optimizer'])
    except (RuntimeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(
            f'{path} does not fit this model ({reason}); resume with the settings of the config.yaml beside it, or '
            'start a new run from its weights with --checkpoint and another --output_dir'
        ) from None
    own = content['ranks'][distributed.rank()]
    for name, part in parts.state.items():
        if name in own:
            part.load_state_dict(own[name])
        else:
            print_rank0(f'--resume: {path} has no state of {name}, which starts anew')
    set_rng_state(own['rng'])
    epoch, step = content['position']
    print_rank0(f'resumed from {path} at epoch {epoch}, step {step}')
    return Status(epoch, step, content['best'], content['records'], content['started'])
