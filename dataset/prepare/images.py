"""The image files under a folder: none is left out without being counted."""

import functools
import os
from collections.abc import Iterable, Iterator

from PIL import Image

from dataset.prepare.common import Summary
from utils.errors import MissingFileError

# Formats that Pillow registers and training does not read: programs, videos, and files that need other software.
UNREADABLE = {'EPS', 'PDF', 'MPEG', 'HDF5', 'GRIB', 'BUFR', 'WMF', 'FITS'}
BESIDE = ('.txt', '.json', '.parquet', '.csv', '.tsv', '.jsonl')  # captions and tables of downloaders


@functools.cache
def image_extensions() -> tuple[str, ...]:
    """The extensions, in lower case, of the formats that training reads."""
    formats = Image.registered_extensions()
    return tuple(sorted(name for name, kind in formats.items() if kind in Image.OPEN and kind not in UNREADABLE))


def without_extension(name: str) -> str:
    """The name of an image file without its extension; a dot in a name without one stays."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in image_extensions() else name


def has_image_extension(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in image_extensions()


def files_under(folder: str, summary: Summary) -> Iterator[str]:
    """Sorted paths, relative to `folder`, of all files under it that are not hidden, nor in a hidden folder.

    Links to folders are followed, and each folder is read once. Broken links, and folders that are hidden or cannot be
    read, are counted.
    """
    if not os.path.isdir(folder):
        raise MissingFileError(f'the folder {folder} does not exist: give the folder of the images')

    def count_unreadable(error: OSError) -> None:
        summary.drop('folder that cannot be read', f'{error.filename}: {error.strerror}')

    seen = set()
    for here, folders, names in os.walk(folder, onerror=count_unreadable, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            summary.note('folder that a link names again', here)
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(filter(_is_hidden, folders)):
            summary.note('hidden folder, not read', os.path.join(here, name))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        start = '' if here == folder else f'{os.path.relpath(here, folder).replace(os.sep, "/")}/'
        for name in sorted(names):
            path = os.path.join(here, name)
            if os.path.islink(path) and not os.path.exists(path):
                summary.drop('broken link', path)
            elif not _is_hidden(name):
                yield f'{start}{name}'


def _is_hidden(name: str) -> bool:
    return name.startswith('.')


def image_files(files: Iterable[str], summary: Summary) -> Iterator[str]:
    """Those of the files that have the extension of an image, or none, as some downloaders write them.

    Other files are counted, except the texts and tables beside images.
    """
    for path in files:
        if has_image_extension(path) or '.' not in os.path.basename(path):
            yield path
        elif not path.lower().endswith(BESIDE):
            count_other(path, summary)


def count_other(path: str, summary: Summary) -> None:
    extension = os.path.splitext(path)[1].lower()
    summary.drop(f'file {extension or "without an extension"}, which training does not read as an image', path)


def is_utf8(path: str) -> bool:
    """Whether a path can be written to a file and read back (Linux allows any bytes in names)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
