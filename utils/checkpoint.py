"""Checkpoints: a file, inside an epoch with its shards, is the complete run, and is found again after any crash."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import distributed
from utils.checkpoint_checks import refuse_diverged, refuse_other_identity, refuse_other_runs, refuse_other_shapes
from utils.checkpoint_files import BEST_FILE, STEP_FILE, epoch_file, open_run, run_files, write_checkpoint
from utils.checkpoint_shards import (
    Save,
    all_states,
    processes_of,
    remove_old_shards,
    shard_fault,
    shard_files,
    state_of,
    sync_folder,
)
from utils.config_differences import differences
from utils.errors import InputError
from utils.files import archive_fault
from utils.finite import not_finite
from utils.log import print_rank0, write_log
from utils.seeding import rng_state, seed_everything, set_rng_state
from utils.setup import unwrap


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
    """Write the checkpoint of a run that is at (status.epoch, status.step). A collective; all ranks fail alike.

    The states of the random generators are added. Rank 0 writes; inside an epoch the other ranks write their own state
    into shards beside the file, which hold GRIT's queues. best: write checkpoint_best.pth, too. `epoch` in the file is
    the epoch last trained on, complete or not, as officially. InputError if weights are not finite.
    """
    model = unwrap(parts.model).state_dict()
    inside = f'epoch {status.epoch}, step {status.step}'
    refuse_diverged(model, parts.optimizer, inside if status.step else f'the end of epoch {status.epoch - 1}')
    own = {'rng': rng_state()} | {name: part.state_dict() for name, part in parts.state.items()}
    save = None
    if status.step and distributed.world_size() > 1:
        save = Save.begin(path, (status.epoch, status.step), status.started)
        save.write_shards(own)
        shared = {'ranks': [own], 'shards': save.entry()}
    else:
        shared = {'ranks': distributed.gather_objects(own)}

    def write() -> None:
        content = _content(model, parts, status) | shared
        try:
            write_checkpoint(path, content, best)
        except Exception:
            if save:
                save.discard()
            raise
        if status.step:
            remove_old_shards(Path(path).parent, status.started)

    distributed.main_first(write)


def _content(model: Mapping[str, Any], parts: RunParts, status: Status) -> dict[str, Any]:
    """What a checkpoint holds besides the states of the ranks."""
    return {
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
    }


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

    Only files of this run: of the epochs that it recorded, and shards that no checkpoint names. Called after an epoch,
    and when a run begins again, for it may have been killed in between.
    """
    if not distributed.is_main():
        return
    path, position = Path(folder, STEP_FILE), [status.epoch, status.step]
    step = open_run(path)
    if step is not None and step['started'] == status.started and step['position'] < position:
        sync_folder(folder)  # the checkpoint that took its place
        path.unlink()
    remove_old_shards(folder, status.started)
    epochs = [record['epoch'] for record in status.records]
    for epoch in epochs[:-keep] if keep else []:
        epoch_file(folder, epoch).unlink(missing_ok=True)


# ---- finding ----


def refuse_earlier_run(folder: str) -> None:
    """InputError if a new run would overwrite the checkpoints of an earlier one (a collective)."""

    def refuse() -> None:
        found = [*shard_files(folder), *run_files(folder), *filter(Path.exists, [Path(folder, BEST_FILE)])]
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
        refuse_other_runs(task, opened)
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
    processes = processes_of(content)
    if elastic and content['position'][1] and processes != distributed.world_size():
        return f'it is inside an epoch, of {processes} process(es), and --elastic continues from the end of one'
    if fault := archive_fault(path):
        return f'damaged, {fault}'
    if fault := shard_fault(path, content):
        return fault
    broken = not_finite(content['model'])
    return f'{len(broken)} of its weights are not finite, such as {broken[0]}' if broken else None


# ---- resuming ----


def resume_run(path: str, parts: RunParts, force: bool = False, elastic: bool = False) -> Status:
    """Restore a run exactly as its checkpoint has it: weights, optimizer, every rank's random generators and state.

    InputError if the identity differs (unless `force`), if the model has other shapes, or if the number of processes
    differs (unless `elastic`); changed settings are printed.
    """
    content = open_run(path, parts.task)
    if content is None:
        raise InputError(f'{path}: not a complete checkpoint of this script')
    processes = processes_of(content)
    if processes != distributed.world_size() and not (elastic and content['position'][1] == 0):
        raise InputError(
            f'{path} was written by {processes} process(es), and there are {distributed.world_size()} now; start as '
            'many, or continue from the end of the last complete epoch with --elastic'
        )
    changed = differences(content['config'], parts.config)
    refuse_other_identity(path, content.get('identity', {}), parts.identity, force)
    refuse_other_shapes(path, content['model'], unwrap(parts.model).state_dict(), changed)
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
        _load_own_states(path, state_of(path, content, distributed.rank()), parts.state)
    else:
        _redistribute(path, content, parts)
        seed_everything(int(parts.identity.get('seed', 0)) + 1000 * epoch)
    print_rank0(f'resumed from {path} at epoch {epoch}, step {step}')
    return Status(epoch, step, content['best'], content['records'], content['started'])


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
        states = [own[name] for own in all_states(path, content) if name in own]
        if not states:
            print_rank0(f'--resume: {path} has no state of {name}, which starts anew')
        elif hasattr(part, 'redistribute'):
            part.redistribute(states)
        else:
            part.load_state_dict(states[0])
    print_rank0(
        f'--elastic: {processes_of(content)} processes before, {distributed.world_size()} now. The order of epoch '
        f'{content["position"][0]} is dealt anew, random numbers differ from here on; a step has batch_size examples '
        'of each process, at the same learning rate'
    )
