"""Whether the images that annotation files name are where the configuration says, before any work is done."""

import os
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from dataset.annotations import Annotations
from dataset.annotations.paths import leaves
from utils.errors import InputError, MissingFileError

SAMPLED_ROWS = 32  # rows whose images are looked for


def require_images(
    table: Annotations,
    paths_of: Callable[[dict], list[str]],
    config: Mapping[str, Any],
    key: str = 'image_root',
    source: str | None = None,
) -> None:
    """InputError if an image is outside its root, or if none of a sample exists: the root is wrong.

    paths_of: row -> paths of its images as the annotations have them. key: the configuration key that holds the root.
    source: only of rows with this `dataset`; all if None.
    """
    root = config[key]
    if root and not config['images_outside_root']:
        refuse_outside(table, paths_of, root, key, source)
    sample = range(0, len(table), max(1, len(table) // SAMPLED_ROWS))
    rows = [(index, table[index]) for index in sample]
    rows = [(index, row) for index, row in rows if source in (None, row.get('dataset'))]
    found = [(index, os.path.join(root, path)) for index, row in rows for path in paths_of(row)]
    if found and not any(os.path.exists(path) for _, path in found):
        (index, path), (file, row) = found[0], table.source(found[0][0])
        raise MissingFileError(
            f'{file}, row {row}: there is no image {path}, nor any other of {len(found)} looked for; '
            + _remedy(paths_of(table[index])[0], key)
        )


def _remedy(path: str, key: str) -> str:
    """What to do if the images of an annotation file are not where it says. path: of one of them, as it is written."""
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute():
        return (
            'the paths are absolute, perhaps of another machine: `python -m dataset.prepare check --rebase OLD=NEW` '
            'replaces their start, and `check --find FOLDER` finds the images by name'
        )
    return (
        f'set {key} to the folder that the paths of the annotations start from, or let `python -m dataset.prepare '
        'check --find FOLDER` find the images by name'
    )


def refuse_outside(
    table: Annotations, paths_of: Callable[[dict], list[str]], root: str, key: str, source: str | None
) -> None:
    """InputError for the first row with an image outside the root."""
    name = 'images' if table.kind == 'nlvr' else 'image'
    for index in table.may_leave(name, root).nonzero()[0].tolist():
        row = table[index]
        if source in (None, row.get('dataset')):
            for path in filter(lambda path: leaves(path, root), paths_of(row)):
                file, number = table.source(index)
                raise InputError(
                    f'{file}, row {number}: the image {path!r} is outside {key} {root!r}; correct the path (`python -m '
                    f'dataset.prepare check` does, with --rebase OLD=NEW or --find FOLDER), set {key} to a folder that '
                    'holds all images, or set images_outside_root: true if you trust the file'
                )
