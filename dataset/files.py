"""Opening files whose names come from data."""

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike, buffering: int = -1) -> BinaryIO:
    """Open a file to read its bytes. OSError if it is a folder, a pipe, a socket or a device: reading may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer does not block here
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, 'it is a pipe or a device, not a file', os.fspath(path))
        return open(handle, 'rb', buffering)
    except BaseException:
        os.close(handle)
        raise
