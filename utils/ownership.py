"""The output folder belongs to one run at a time."""

import errno
import os
from pathlib import Path

import filelock

from utils.errors import InputError
from utils.files import remove_temporaries

LOCK = '.lock'
WAIT = 10.0  # seconds for the processes of a run that was killed to disappear
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_held: filelock.BaseFileLock | None = None


def own_folder(folder: str | os.PathLike) -> None:
    """Take the folder until `release_folder` or the end of the process, and remove what a killed run left half written.

    The lock is the system's (flock), which a crash releases. On a file system without it, a file names the owner; it is
    stale, and replaced, if that process no longer exists on this machine. InputError if another run has the folder.
    """
    global _held
    release_folder()
    path = Path(folder, LOCK)
    for kind in (filelock.FileLock, filelock.SoftFileLock):
        lock = kind(path, timeout=WAIT)
        try:
            lock.acquire()
            break
        except filelock.Timeout:
            remedy = 'give another --output_dir, or wait for its end'
            if path.stat().st_size:  # only a lock of the second kind has content, and may survive its owner
                remedy += f'; if it ran on another machine and was killed, remove {path}'
            raise InputError(f'--output_dir {folder}: another run is using this folder; {remedy}') from None
        except OSError as error:
            if kind is filelock.SoftFileLock or error.errno not in WITHOUT_LOCKS:
                raise
    _held = lock
    remove_temporaries(folder)


def release_folder() -> None:
    """Give the folder back, if this process has one."""
    global _held
    if _held is not None:
        _held.release()
        _held = None
