"""Files that are complete or absent: written under a temporary name in the same folder, then renamed."""

import codecs
import hashlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import InputError

BYTE_ORDER_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}
WEIGHTS_FILE = 'model.safetensors'  # in a folder of weights, as Hugging Face names it
LFS_POINTER = b'version https://git-lfs'
TEMPORARY = re.compile(r'\..+(?<!\.arrow)\.\d+-[0-9a-f]{8}\.tmp')  # annotation caches have rules of their own


def read_head(path: str | os.PathLike) -> bytes:
    """The first bytes of a file, enough for byte order marks and the pointers of git-lfs."""
    with open(path, 'rb') as file:
        return file.read(64)


def marked_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark names at the beginning of a file; None if there is no mark."""
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)


def content_fault(path: str | os.PathLike) -> str | None:
    """Why a file has no content to read, with the remedy; None if it has some.

    It is empty, or a clone without git-lfs left a pointer in its place.
    """
    head = read_head(path)
    if not head:
        return 'it is empty; copy or download it again'
    if head.startswith(LFS_POINTER):
        return 'it is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`, or download it'
    return None


def read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, which is removed.

    InputError, to which the caller adds the name of the file, if it has another encoding or is a pointer of git-lfs.
    """
    content = Path(path).read_bytes()
    if content.startswith(LFS_POINTER):
        raise InputError(content_fault(path))
    encoding = marked_encoding(content) or 'utf-8'
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        name = encoding.upper().removesuffix('-SIG')
        raise InputError(f'it is not {name} text (line {line}: {error.reason}); save it as UTF-8') from None


def read_json(path: str | os.PathLike, name: str) -> Any:
    """The content of a JSON file, in an encoding of `read_text`.

    name: of the key or option that names the file, for the InputError if it is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except InputError as error:
        raise InputError(f'{name}: {path}: {error}') from None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{name}: {path} is not valid JSON: {error}') from None


def check_output(path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = (), option: str = '--out') -> None:
    """InputError, before any work, for a file to be written that is a folder or one of the inputs."""
    if os.path.isdir(path):
        raise InputError(f'{option} {path} is a folder; give the name of a file')
    refuse_input(path, inputs, option)


def refuse_input(path: str | os.PathLike, inputs: Iterable[str | os.PathLike], option: str = '--out') -> None:
    """InputError if a file to be written is one of the inputs."""
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise InputError(f'{option} {path} is an input of the command and would be overwritten; give another file')


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
