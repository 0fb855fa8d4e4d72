"""The files of checkpoints: their names in an output folder, how one is written, how one is opened."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.files import atomic_write, temporary_name

STEP_FILE = 'checkpoint_step.pth'
BEST_FILE = 'checkpoint_best.pth'
EPOCH_FILE = re.compile(r'checkpoint_(\d{2}|[1-9]\d{2,})\.pth')
SHARD_FILE = re.compile(r'checkpoint_step\.e\d+s\d+\.([0-9a-f]{8})-[0-9a-f]{8}\.rank[1-9]\d*\.pth')
SHARD = 'shard of a checkpoint'  # the only key of a shard's content
CONTENT = {'model', 'optimizer', 'config', 'position', 'task', 'best', 'records', 'started', 'ranks'}


def epoch_file(folder: str | os.PathLike, epoch: int) -> Path:
    """The path of the checkpoint after an epoch."""
    return Path(folder, f'checkpoint_{epoch:02d}.pth')


def epoch_files(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints after an epoch that are in a folder, in the order of the epochs."""
    paths = Path(folder).iterdir() if os.path.isdir(folder) else []
    found = [(int(match[1]), path) for path in paths if (match := EPOCH_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def run_files(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder that a run can be resumed from, never checkpoint_best.pth, never a shard."""
    step = Path(folder, STEP_FILE)
    return [*epoch_files(folder), *([step] if step.exists() else [])]


def open_run(path: str | os.PathLike, task: str | None = None) -> dict[str, Any] | None:
    """A checkpoint's content if a script (that of `task`) wrote it, else None. Tensors are read on first use."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # a damaged copy, or a file of another program
        return None
    if not isinstance(content, dict) or not CONTENT <= content.keys() or not _names_shards(content):
        return None
    return content if task in (None, content['task']) else None


def _names_shards(content: Mapping[str, Any]) -> bool:
    """Whether `shards` is absent, or names a save and files of the checkpoint's own folder."""
    match content.get('shards', {'save': '', 'files': []}):
        case {'save': str(), 'files': list(names)}:
            return all(isinstance(name, str) and SHARD_FILE.fullmatch(name) for name in names)
    return False


def write_checkpoint(path: str | os.PathLike, content: Mapping[str, Any], best: bool = False) -> None:
    """Write a checkpoint, or a shard of one, atomically, flushed to the disk.

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
