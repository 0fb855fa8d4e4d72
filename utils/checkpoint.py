"""Checkpoints: a file is the complete run, written atomically, and found again after any crash."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import distributed
from utils.config_differences import differences
from utils.config_keys import KEYS
from utils.errors import InputError
from utils.files import archive_fault, atomic_write, temporary_name
from utils.finite import not_finite
from utils.log import print_rank0, write_log
from utils.seeding import rng_state, seed_everything, set_rng_state
from utils.setup import unwrap

STEP_FILE = 'checkpoint_step.pth'
BEST_FILE = 'checkpoint_best.pth'
EPOCH_FILE = re.compile(r'checkpoint_(\d{2}|[1-9]\d{2,})\.pth')
SHAPING = {name for name, key in KEYS.items() if key.shapes_model}
CONTENT = {'model', 'optimizer', 'config', 'position', 'task', 'best', 'records', 'started', 'ranks'}


@dataclass
class Status:
    """How far a run is: the next batch to train on is `step` of `epoch`; after the last batch it is evaluated.

    records: the lines of log.txt so far. best: the best validation metric so far. started: seconds since 1970, which
    distinguishes the checkpoints of two runs.
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
    (sampler, queues, averages). identity: {name: words}, what a resumed run must have in common with this one besides
    the configuration: the seed, digests of the vocabulary and the data. tokenizer: as `pack_tokenizer` packs it, so
    that the checkpoint can be used without the files of its vocabulary.
    """

    task: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: Mapping[str, Any]
    state: Mapping[str, Any]
    identity: Mapping[str, str]
    tokenizer: Mapping[str, Any]


# ---- writing ----


def save_run(path: str | os.PathLike, parts: RunParts, status: Status, best: bool = False) -> None:
    """Write the checkpoint of a run that is at (status.epoch, status.step). A collective; rank 0 writes.

    The states of the random generators are added. best: write checkpoint_best.pth, too. `epoch` in the file is the
    epoch last trained on, complete or not, as officially. InputError if weights are not finite.
    """
    model = unwrap(parts.model).state_dict()
    refuse_diverged(model, parts.optimizer, status)
    own = {'rng': rng_state()} | {name: part.state_dict() for name, part in parts.state.items()}
    states = distributed.gather_objects(own)
    if distributed.is_main():
        content = {
            'model': model,
            'optimizer': parts.optimizer.state_dict(),
            'lr_scheduler': dict(parts.config['schedular']),
            'config': parts.config,
            'epoch': status.epoch if status.step else status.epoch - 1,
            'position': [status.epoch, status.step],
            'task': parts.task,
            'identity': dict(parts.identity),
            'tokenizer': dict(parts.tokenizer),
            'best': status.best,
            'records': status.records,
            'started': status.started,
            'ranks': states,
        }
        write_checkpoint(path, content, best)
    distributed.barrier()


def refuse_diverged(model: Mapping[str, Any], optimizer: torch.optim.Optimizer, status: Status) -> None:
    """InputError if weights or the optimizer's state are not finite; every rank has the same."""
    moments = {
        f'optimizer state {number}.{name}': value
        for number, state in enumerate(optimizer.state.values())
        for name, value in state.items()
    }
    faults = not_finite(dict(model)) or not_finite(moments)
    if faults:
        place = f'epoch {status.epoch}, step {status.step}' if status.step else f'the end of epoch {status.epoch - 1}'
        raise InputError(
            f'{faults[0]} and {len(faults) - 1} others are not finite at {place}: the training diverged. They were not '
            'saved; --resume continues from the checkpoint before, with a lower optimizer.lr or clip_grad_norm'
        )


def write_checkpoint(path: str | os.PathLike, content: Mapping[str, Any], best: bool = False) -> None:
    """Write a checkpoint atomically, flushed to the disk.

    best: checkpoint_best.pth becomes the same file first, so that a crash between the two cannot leave an older best.
    """
    with atomic_write(path, 'wb', sync=True) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, about the archive, while it handles the error of the disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        if best:
            file.flush()
            os.fsync(file.fileno())
            _link(Path(file.name), Path(path).with_name(BEST_FILE))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, replacing the file that has it."""
    twin = temporary_name(target)
    try:
        try:
            os.link(source, twin)
        except OSError:  # a file system without links
            shutil.copyfile(source, twin)
        os.replace(twin, target)
    except BaseException:
        twin.unlink(missing_ok=True)
        raise


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
    prune_checkpoints(folder, after, parts.config['keep_checkpoints'])
    write_log(folder, after.records)
    return after


def prune_checkpoints(folder: str | os.PathLike, status: Status, keep: int | None) -> None:
    """Delete the checkpoint inside a completed epoch, and all but the `keep` newest epochs' (None: keep all) (rank 0).

    Only files of this run: of the epochs that it recorded. Called after an epoch, and when a run begins again, for it
    may have been killed in between.
    """
    if not distributed.is_main():
        return
    path, position = Path(folder, STEP_FILE), [status.epoch, status.step]
    step = open_run(path)
    if step is not None and step['started'] == status.started and step['position'] < position:
        path.unlink()
    epochs = [record['epoch'] for record in status.records]
    for epoch in epochs[:-keep] if keep else []:
        epoch_file(folder, epoch).unlink(missing_ok=True)


# ---- finding ----


def epoch_file(folder: str | os.PathLike, epoch: int) -> Path:
    """The path of the checkpoint after an epoch."""
    return Path(folder, f'checkpoint_{epoch:02d}.pth')


def epoch_files(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints after an epoch that are in a folder, in the order of the epochs."""
    paths = Path(folder).iterdir() if os.path.isdir(folder) else []
    found = [(int(match[1]), path) for path in paths if (match := EPOCH_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def run_files(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder that a run can be resumed from, never checkpoint_best.pth."""
    step = Path(folder, STEP_FILE)
    return [*epoch_files(folder), *([step] if step.exists() else [])]


def open_run(path: str | os.PathLike, task: str | None = None) -> dict[str, Any] | None:
    """A checkpoint's content if a script (that of `task`) wrote it, else None. Tensors are read on first use."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # a damaged copy, or a file of another program
        return None
    if not isinstance(content, dict) or not CONTENT <= content.keys():
        return None
    return content if task in (None, content['task']) else None


def refuse_earlier_run(folder: str) -> None:
    """InputError if a new run would overwrite the checkpoints of an earlier one (a collective)."""

    def refuse() -> None:
        found = [*run_files(folder), *filter(Path.exists, [Path(folder, BEST_FILE)])]
        if found:
            raise InputError(
                f'--output_dir {folder} holds {found[-1].name} of an earlier run; --resume continues it, and a new run '
                'needs another --output_dir'
            )

    distributed.main_first(refuse)


def find_run(folder: str, task: str, checkpoint: str = '', elastic: bool = False) -> str | None:
    """The file that `--resume` continues from: the folder's newest intact checkpoint, else `checkpoint` if it is one.

    Newest by position; never checkpoint_best.pth. Damaged files, and those whose weights are not finite, are named and
    skipped. elastic: one inside an epoch, by another number of processes, is skipped, too. None if there is nothing to
    resume. InputError if the folder holds another task's run, two runs, or damaged files only.
    """

    def find() -> str | None:
        opened, unusable = [], []
        for path in run_files(folder):
            content = open_run(path)
            if content is None:
                unusable.append(f'{path}: damaged, or not a checkpoint of a run')
            else:
                opened.append((path, content))
        _refuse_others(task, opened)
        opened.sort(key=lambda pair: pair[1]['position'], reverse=True)
        found = None
        for path, content in opened:
            fault = _fault(path, content, elastic)
            if fault is None:
                found = str(path)
                break
            unusable.append(f'{path}: {fault}')
        for line in unusable:
            print_rank0(f'skipped {line}')
        if unusable and not found:
            raise InputError(
                f'no checkpoint in {folder} can be resumed, such as {unusable[-1]}; copy it again, or move it away to '
                'start anew'
            )
        content = open_run(checkpoint, task) if checkpoint and not found else None
        if content is not None:
            if fault := _fault(checkpoint, content, elastic):
                raise InputError(f'--checkpoint {checkpoint}: {fault}; give another one')
            found = checkpoint
        return found

    return distributed.main_first(find)


def _fault(path: str | os.PathLike, content: Mapping[str, Any], elastic: bool) -> str | None:
    """Why a run cannot be resumed from a checkpoint, None if it can."""
    processes = len(content['ranks'])
    if elastic and content['position'][1] and processes != distributed.world_size():
        return f'it is inside an epoch, of {processes} process(es), and --elastic continues from the end of one'
    if fault := archive_fault(path):
        return f'damaged, {fault}'
    broken = not_finite(content['model'])
    return f'{len(broken)} of its weights are not finite, such as {broken[0]}' if broken else None


def _refuse_others(task: str, opened: list[tuple[Path, dict[str, Any]]]) -> None:
    """InputError if one of the checkpoints is another task's, or they are of several runs."""
    for path, content in opened:
        if content['task'] != task:
            raise InputError(
                f'{path} is a checkpoint of {content["task"]}, not of {task}; give the --output_dir of this run'
            )
        first, other = opened[0]
        if content['started'] != other['started']:
            raise InputError(
                f'{first} and {path.name} are of two different runs; move the checkpoints of one of them away'
            )


# ---- resuming ----


def resume_run(path: str, parts: RunParts, force: bool = False, elastic: bool = False) -> Status:
    """Restore a run exactly as its checkpoint has it: weights, optimizer, every rank's random generators and state.

    InputError if the identity differs (unless `force`), if the model has other shapes, or if the number of processes
    differs (unless `elastic`); changed settings are printed.
    """
    content = open_run(path, parts.task)
    if content is None:
        raise InputError(f'{path}: not a complete checkpoint of this script')
    processes = len(content['ranks'])
    if processes != distributed.world_size() and not (elastic and content['position'][1] == 0):
        raise InputError(
            f'{path} was written by {processes} process(es), and there are {distributed.world_size()} now; start as '
            'many, or continue from the end of the last complete epoch with --elastic'
        )
    changed = differences(content['config'], parts.config)
    _refuse_other_identity(path, content.get('identity', {}), parts.identity, force)
    _refuse_other_shapes(path, content['model'], unwrap(parts.model).state_dict(), changed)
    for line in changed.values():
        print_rank0(f'--resume: {line}')
    unwrap(parts.model).load_state_dict(content['model'])
    try:
        parts.optimizer.load_state_dict(content['optimizer'])
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f'{path}: the optimizer of the run had other parameters ({" ".join(str(error).split())}); resume with the '
            'settings of the config.yaml beside it, above all optimizer.no_decay'
        ) from None
    epoch, step = content['position']
    if processes == distributed.world_size():
        _load_own_states(path, content['ranks'][distributed.rank()], parts.state)
    else:
        _redistribute(path, content, parts)
        seed_everything(int(parts.identity.get('seed', 0)) + 1000 * epoch)
    print_rank0(f'resumed from {path} at epoch {epoch}, step {step}')
    return Status(epoch, step, content['best'], content['records'], content['started'])


def _refuse_other_identity(path: str, before: Mapping[str, str], now: Mapping[str, str], force: bool) -> None:
    lines = [
        f'{name} was {before[name]} and is now {now.get(name)}' for name in before if before[name] != now.get(name)
    ]
    if lines and not force:
        raise InputError(
            f'{path} is of a run with other input: {"; ".join(lines)}; give the same as before, or --force to continue '
            'with what is given now'
        )
    for line in lines:
        print_rank0(f'--force: {line}')


def _refuse_other_shapes(
    path: str, before: Mapping[str, Any], now: Mapping[str, Any], changed: Mapping[str, str]
) -> None:
    """InputError if weights are missing, superfluous, or of another shape, with the settings that may be the cause."""
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (before, now)]
    names = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if names:
        one, two = (shape.get(names[0], 'absent') for shape in shapes)
        causes = [line for name, line in changed.items() if name.split('.')[0] in SHAPING]
        raise InputError(
            f'{path} does not fit this model: {names[0]} was {one} and is now {two}, and {len(names) - 1} others differ'
            + ''.join(f'; {line}' for line in causes)
            + '; resume with the settings of the config.yaml beside it, or start a new run from its weights with '
            '--checkpoint and another --output_dir'
        )


def _load_own_states(path: str, own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    for name, part in state.items():
        if name in own:
            part.load_state_dict(own[name])
        else:
            print_rank0(f'--resume: {path} has no state of {name}, which starts anew')
    set_rng_state(own['rng'])


def _redistribute(path: str, content: Mapping[str, Any], parts: RunParts) -> None:
    """Continue at the beginning of an epoch with another number of processes.

    A part of the state has `redistribute(states of all ranks)` if its states differ between ranks then.
    """
    for name, part in parts.state.items():
        states = [own[name] for own in content['ranks'] if name in own]
        if not states:
            print_rank0(f'--resume: {path} has no state of {name}, which starts anew')
        elif hasattr(part, 'redistribute'):
            part.redistribute(states)
        else:
            part.load_state_dict(states[0])
    print_rank0(
        f'--elastic: {len(content["ranks"])} processes before, {distributed.world_size()} now. The order of epoch '
        f'{content["position"][0]} is dealt anew, random numbers differ from here on; a step has batch_size examples '
        'of each process, at the same learning rate'
    )
