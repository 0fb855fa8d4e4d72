"""Checkpoints: a file is the whole run, written beside its place and moved there, and found again after any crash."""

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from utils import distributed
from utils.log import say, write_log
from utils.seeding import rng_state, set_rng_state

STEP_FILE = 'checkpoint_step.pth'
BEST_FILE = 'checkpoint_best.pth'


@dataclass
class Run:
    """Where a run stands: the next batch to train on is `step` of `epoch`.

    records: the lines of log.txt so far; best: the best validation figure so far; started: seconds since 1970, which tells
    the checkpoints of two runs in one folder apart.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    records: list = field(default_factory=list)
    started: float = field(default_factory=time.time)


def save_run(path, task, run, model, optimizer, config, parts, best=False):
    """Write the checkpoint of a run that stands at (run.epoch, run.step). A collective: all ranks call it, rank 0 writes.

    parts: {name: object with state_dict()}, each rank's own state (sampler, queues, averages); the states of the random
    generators are added. best: keep the file as checkpoint_best.pth, too. `epoch` in the file is the epoch last trained on,
    complete or not, as officially.
    """
    states = distributed.gather_objects({'rng': rng_state()} | {name: part.state_dict() for name, part in parts.items()})
    if distributed.is_main():
        write_checkpoint(path, {
            'model': unwrap(model).state_dict(), 'optimizer': optimizer.state_dict(),
            'lr_scheduler': dict(config['schedular']), 'config': config,
            'epoch': run.epoch if run.step else run.epoch - 1, 'position': [run.epoch, run.step],
            'task': task, 'best': run.best, 'records': run.records, 'started': run.started, 'ranks': states}, best)
    distributed.barrier()


def write_checkpoint(path, content, best=False):
    """torch.save to a temporary file, flushed to the disk, then moved into place: a reader never sees half a file.

    best: checkpoint_best.pth becomes the same file first, so that a crash between the two cannot leave an older best.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    with open(temporary, 'wb') as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    if best:
        twin = temporary.with_suffix('.best')
        twin.unlink(missing_ok=True)
        try:
            os.link(temporary, twin)
        except OSError:  # a file system without links
            shutil.copyfile(temporary, twin)
        os.replace(twin, path.with_name(BEST_FILE))
    os.replace(temporary, path)


def epoch_file(folder, epoch):
    return Path(folder, f'checkpoint_{epoch:02d}.pth')


def complete_epoch(folder, task, run, record, model, optimizer, config, parts, figure=None):
    """Close epoch `run.epoch`: its checkpoint, its line in log.txt, files that it makes superfluous (a collective).

    record: the line of log.txt. figure: the validation figure, larger is better; where it is the best so far,
    checkpoint_best.pth is this epoch's. Returns the Run at the beginning of the next epoch.
    """
    is_best = figure is not None and (run.best is None or figure > run.best)
    after = Run(run.epoch + 1, 0, figure if is_best else run.best, [*run.records, record], run.started)
    save_run(epoch_file(folder, run.epoch), task, after, model, optimizer, config, parts, is_best)
    if distributed.is_main():
        drop_superfluous(folder, config['keep_checkpoints'])
    write_log(folder, after.records)
    return after


def drop_superfluous(folder, keep):
    """Delete the checkpoint inside an epoch that is complete now, and all but the `keep` newest epochs' (None: keep all)."""
    Path(folder, STEP_FILE).unlink(missing_ok=True)
    numbered = sorted(Path(folder).glob('checkpoint_[0-9]*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    for path in numbered[:-keep] if keep else []:
        path.unlink()


def unwrap(model):
    """The model itself, without the wrapper that averages gradients over processes."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def open_run(path, task):
    """A checkpoint's content if `task`'s script wrote it completely, else None. Tensors stay on the disk until read."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # a damaged copy, or a foreign file
        return None
    return content if isinstance(content, dict) and content.get('task') == task and 'ranks' in content else None


def find_run(folder, task, checkpoint=''):
    """The file `--resume` goes on from: the folder's newest complete checkpoint, else `checkpoint` if it is one, else None.

    Newest by the run's start, then the position; never checkpoint_best.pth. Damaged files are named and passed over.
    """
    def find():
        newest, found = None, None
        for path in [*Path(folder).glob('checkpoint_[0-9]*.pth'), Path(folder, STEP_FILE)]:
            if not path.exists():
                continue
            content = open_run(path, task)
            if content is None:
                say(f'--resume: {path} is damaged or not a checkpoint of this script, and is passed over')
            elif newest is None or (content['started'], *content['position']) > newest:
                newest, found = (content['started'], *content['position']), str(path)
        if found is None and checkpoint and open_run(checkpoint, task) is not None:
            found = checkpoint
        return found
    return distributed.main_first(find)


def resume_run(path, task, model, optimizer, config, parts):
    """Put a run back exactly where its checkpoint was written: weights, optimizer, every rank's generators and parts.

    Returns the Run. ValueError where the number of processes differs; changed settings are named.
    """
    content = open_run(path, task)
    if content is None:
        raise ValueError(f'{path}: not a complete checkpoint of this script')
    if len(content['ranks']) != distributed.world_size():
        raise ValueError(f'{path} was written by {len(content["ranks"])} process(es) and can be resumed by as many, not by '
                         f'{distributed.world_size()}; to start anew from its weights give it as --checkpoint with another '
                         '--output_dir')
    for key in sorted(set(config) | set(content['config'])):
        if config.get(key) != content['config'].get(key):
            say(f'--resume: {key} was {content["config"].get(key)!r} and is now {config.get(key)!r}')
    unwrap(model).load_state_dict(content['model'])
    optimizer.load_state_dict(content['optimizer'])
    own = content['ranks'][distributed.rank()]
    for name, part in parts.items():
        part.load_state_dict(own[name])
    set_rng_state(own['rng'])
    epoch, step = content['position']
    say(f'resumed from {path} at epoch {epoch}, step {step}')
    return Run(epoch, step, content['best'], content['records'], content['started'])
