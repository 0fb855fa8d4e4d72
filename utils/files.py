"""Files that are complete or absent: written under a temporary name in the same folder, then renamed."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import InputError


def read_json(path: str | os.PathLike, name: str) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    name: of the key or option that names the file, for the InputError if it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8-sig'))
    except ValueError as error:
        raise InputError(f'{name}: {path} is not valid JSON: {error}') from None


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'w', sync: bool = False, unique: bool = False) -> Iterator[IO]:
    """Open a file to write; it appears under its own name when the block ends without an error.

    A reader never sees half a file, and a crash leaves the earlier file as it was. The folder is created if needed.

    mode: 'w' for UTF-8 text, 'wb' or 'w+b' for bytes. sync: flush to the disk before renaming, so that a power failure
    cannot leave an empty file under the final name. unique: several processes may write the same file at the same time,
    each under a temporary name of its own.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f'{path} is a folder; give the name of a file')
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = f'{os.getpid()}-{secrets.token_hex(4)}.tmp' if unique else 'tmp'
    temporary = path.with_name(f'.{path.name.removeprefix(".")}.{suffix}')
    try:
        with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
