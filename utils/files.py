"""Files that are complete or absent: written under a temporary name in the same folder, then renamed."""

import hashlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import InputError

TEMPORARY = re.compile(r'\..+(?<!\.arrow)\.\d+-[0-9a-f]{8}\.tmp')  # annotation caches have rules of their own


def read_json(path: str | os.PathLike, name: str) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    name: of the key or option that names the file, for the InputError if it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{name}: {path} is not valid JSON: {error}') from None


def digest_of(value: Any) -> str:
    """A digest of a JSON value in 16 letters."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'w', sync: bool = False) -> Iterator[IO]:
    """Open a file to write; it appears under its own name when the block ends without an error.

    A reader never sees half a file, and a crash leaves the earlier file as it was. Several processes may write the same
    file at the same time: each has a temporary name of its own (`temporary_name`). The folder is created if needed.

    mode: 'w' for UTF-8 text, 'wb' or 'w+b' for bytes. sync: flush to the disk before renaming, so that a power failure
    cannot leave an empty file under the final name. An OSError names `path`.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f'{path} is a folder; give the name of a file')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def temporary_name(path: Path) -> Path:
    """A hidden name in the same folder, different at each call."""
    return path.with_name(f'.{path.name.removeprefix(".")}.{os.getpid()}-{secrets.token_hex(4)}.tmp')


def remove_temporaries(folder: str | os.PathLike) -> None:
    """Remove what killed processes left of files they were writing. Only for a folder that this process owns."""
    for path in Path(folder).glob('.*'):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def archive_fault(path: str | os.PathLike) -> str | None:
    """What is wrong with a zip archive, as `torch.save` writes, by the checksum of every member; None if it is intact.

    Reads the whole file. Files of other formats have no checksums: None.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises almost any exception for a damaged directory
        return str(error) or type(error).__name__
    return f'the checksum of {damaged} is wrong' if damaged else None
