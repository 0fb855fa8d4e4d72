"""A folder belongs to one process at a time, which writes in it."""

import errno
import os
import warnings
from pathlib import Path

import filelock

from utils.errors import InputError
from utils.files import remove_temporaries

LOCK, SOFT_LOCK = '.lock', '.lock.owner'
WAIT = 10.0  # seconds for the processes of a run that was killed to disappear
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_held: filelock.BaseFileLock | None = None


def own_folder(folder: str | os.PathLike, option: str = '--output_dir') -> None:
    """Take the folder until `release_folder` or the end of the process, and remove what a killed run left half written.

    The lock is the system's (flock), which a crash releases. On a file system without it, a file names the owner; it is
    stale, and replaced, if that process no longer exists on this machine. option: the flag that names the folder, for
    the InputError if another process has it.
    """
    global _held
    release_folder()
    _held = _locked(Path(folder), option)
    for place in (folder, Path(folder, 'result')):
        remove_temporaries(place)


def _locked(folder: Path, option: str) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / LOCK, timeout=WAIT)
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # that filelock itself takes the second kind of lock
                lock.acquire()
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            lock = filelock.SoftFileLock(folder / SOFT_LOCK, timeout=WAIT)
            lock.acquire()
        return lock
    except filelock.Timeout:
        path, remedy = Path(lock.lock_file), f'give another {option}, or wait for its end'
        # Only a lock of the second kind has content, and may survive its owner.
        if path.exists() and path.stat().st_size:
            remedy += f'; if it ran on another machine and was killed, remove {path}'
        raise InputError(f'{option} {folder}: another run is using this folder; {remedy}') from None


def release_folder() -> None:
    """Give the folder back, if this process has one."""
    global _held
    if _held is not None:
        _held.release()
        _held = None
