"""Shards: the state of each rank but the first in a file of its own, beside a checkpoint inside an epoch.

    checkpoint_step.pth                                          weights, optimizer, status, the state of rank 0
    checkpoint_step.e3s200.5f0c1a2b-9d3e4f60.rank1.pth           the state of rank 1 at epoch 3, step 200

The two numbers in the middle are the run's and the save's. They are in the main file and in every shard, so that shards
of two saves neither overwrite nor replace one another. Order of a save: shards, main file, removal of what no main file
names. Every file is on the disk before the next one depends on it, so at any moment the main file has its shards.
"""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils import distributed
from utils.checkpoint_files import BEST_FILE, SHARD, SHARD_FILE, STEP_FILE, open_run, run_files, write_checkpoint
from utils.errors import InputError
from utils.files import archive_fault, digest_of
from utils.log import print_rank0


@dataclass(frozen=True)
class Save:
    """One save of a run by several processes. name: of the run and of the save, on all ranks alike."""

    folder: Path
    position: tuple[int, int]
    name: str

    @classmethod
    def begin(cls, path: str | os.PathLike, position: tuple[int, int], started: float) -> 'Save':
        """A save that will be `path`, with a new name (a collective). Draws from no generator that a run restores."""
        name = distributed.broadcast_object(f'{_run_name(started)}-{secrets.token_hex(4)}')
        return cls(Path(path).parent, position, name)

    def shard(self, rank: int) -> Path:
        epoch, step = self.position
        return self.folder / f'{Path(STEP_FILE).stem}.e{epoch}s{step}.{self.name}.rank{rank}.pth'

    def write_shards(self, own: Mapping[str, Any]) -> None:
        """Write this rank's shard, on all ranks but the first (a collective). They fail alike, and leave no shard."""

        def write() -> None:
            rank = distributed.rank()
            if rank:
                write_checkpoint(self.shard(rank), {SHARD: {'save': self.name, 'rank': rank, 'state': dict(own)}})
                sync_folder(self.folder)

        errors = distributed.failures(write)
        if errors:  # not after an error of the meeting itself: then the first rank may have gone on
            self.shard(distributed.rank()).unlink(missing_ok=True)
            raise errors[0]

    def discard(self) -> None:
        """Delete all shards of this save, whose main file could not be written (rank 0)."""
        for name in self.entry()['files']:
            (self.folder / name).unlink(missing_ok=True)

    def entry(self) -> dict[str, Any]:
        """What the main file says of its shards."""
        return {'save': self.name, 'files': [self.shard(rank).name for rank in range(1, distributed.world_size())]}


def _run_name(started: float) -> str:
    return digest_of(started)[:8]


def sync_folder(folder: str | os.PathLike) -> None:
    """Flush the names of a folder to the disk, as far as the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---- reading ----


def shards_of(path: str | os.PathLike, content: Mapping[str, Any]) -> list[Path]:
    """The shards that a checkpoint names, of the ranks 1, 2, ...; none if all states are in the checkpoint."""
    return [Path(path).with_name(name) for name in content.get('shards', {}).get('files', ())]


def processes_of(content: Mapping[str, Any]) -> int:
    """How many processes wrote a checkpoint."""
    return len(content['ranks']) + len(content.get('shards', {}).get('files', ()))


def shard_fault(path: str | os.PathLike, content: Mapping[str, Any]) -> str | None:
    """What is wrong with the first shard of a checkpoint that cannot be used; None if all can. Reads all of them."""
    for rank, shard in enumerate(shards_of(path, content), start=1):
        if not shard.is_file():
            return f'its shard {shard.name} is missing'
        fault = archive_fault(shard)
        if fault is None:
            try:
                read_shard(shard, content['shards']['save'], rank, mmap=True)
            except InputError as error:
                fault = str(error)
        if fault:
            return f'its shard {shard.name} cannot be used: {fault}'
    return None


def read_shard(shard: Path, save: str, rank: int, mmap: bool = False) -> dict[str, Any]:
    """The state in the shard of a rank. InputError, without the file's name, if it is not that of this save."""
    try:
        content = torch.load(shard, map_location='cpu', weights_only=True, mmap=mmap)[SHARD]
        found, state = (content['save'], content['rank']), content['state']
    except Exception:  # torch raises almost any exception for a damaged file
        raise InputError('it is not a shard') from None
    if found != (save, rank):
        raise InputError(f'it is of rank {found[1]} in save {found[0]}, not of rank {rank} in save {save}')
    return state


def state_of(path: str | os.PathLike, content: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The state of a rank in a checkpoint. Its shard is read into memory, for a later save deletes the file.

    InputError if the shard cannot be used.
    """
    if rank < len(content['ranks']):
        return content['ranks'][rank]
    shard = shards_of(path, content)[rank - len(content['ranks'])]
    try:
        return read_shard(shard, content['shards']['save'], rank)
    except InputError as error:
        reason = str(error) if shard.is_file() else f'this process (rank {rank}) does not find it'
        raise InputError(
            f'{shard}: {reason}; all processes need the same folder, with the checkpoint and all of its shards'
        ) from None


def all_states(path: str | os.PathLike, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The states of all ranks in a checkpoint, wherever they are; see `state_of`."""
    return [state_of(path, content, rank) for rank in range(processes_of(content))]


# ---- removing ----


def shard_files(folder: str | os.PathLike) -> list[Path]:
    """All shards in a folder."""
    paths = Path(folder).iterdir() if os.path.isdir(folder) else []
    return sorted(path for path in paths if SHARD_FILE.fullmatch(path.name))


def remove_old_shards(folder: str | os.PathLike, started: float) -> None:
    """Delete the shards of the run of `started` that its checkpoint does not name (rank 0).

    A folder without a checkpoint may hold shards of a run that was killed before its first checkpoint was complete:
    they are deleted, too. Nothing is deleted beside a checkpoint inside an epoch that cannot be opened.
    """
    shards = shard_files(folder) if distributed.is_main() else []
    if not shards:
        return
    path = Path(folder, STEP_FILE)
    content = open_run(path)
    if content is None and path.exists():
        return
    sync_folder(folder)  # the checkpoint that took the place of theirs
    named = {shard.name for shard in shards_of(path, content)} if content else set()
    is_empty = not run_files(folder) and not Path(folder, BEST_FILE).exists()
    for shard in shards:
        is_own = SHARD_FILE.fullmatch(shard.name)[1] == _run_name(started)
        if shard.name not in named and (is_own or is_empty):
            shard.unlink(missing_ok=True)
            if not is_own:
                print_rank0(f'removed {shard}, of a checkpoint that was never complete')
