"""Opening files whose names come from data."""

import errno
import os
import stat
from typing import BinaryIO

from utils.errors import InputError
from utils.files import LFS_POINTER

PACKED = {
    b'\x1f\x8b': 'gzip data',
    b'PK\x03\x04': 'a zip archive or an Excel file',
    b'BZh': 'bzip2 data',
    b'\xfd7zXZ\x00': 'xz data',
    b'\x28\xb5\x2f\xfd': 'Zstandard data',
    b'\xd0\xcf\x11\xe0': 'an old Excel file',
}


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


def refuse_packed(head: bytes, name: str) -> None:
    """InputError if a text file, whose first bytes are `head`, is compressed or a pointer to a file not fetched.

    name: of the file, for the message.
    """
    for magic, what in PACKED.items():
        if head.startswith(magic):
            raise InputError(f'{name} is {what}, not text: unpack it, or save it as CSV or JSON')
    refuse_pointer(head, name)


def refuse_pointer(head: bytes, name: str) -> None:
    """InputError if a file, whose first bytes are `head`, is a pointer that git-lfs has not replaced by the file."""
    if head.startswith(LFS_POINTER):
        raise InputError(f'{name} is a pointer of git-lfs, not the file itself: fetch it with git lfs pull')
