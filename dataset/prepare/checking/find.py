"""Images found by name wherever they lie (`check --find`), if it is certain which file is meant.

A path whose file does not exist is looked up by name, by name in any case, by name without extension, and for COCO
names by the number. Of several files the one is taken that shares most folders with the path, counted from the end.
A file that fits several paths belongs to the one that it fits best: numbering often starts anew in each folder, and
then the same name does not mean the same image. `places.py` decides whether a folder was moved, or only lacks an image.
"""

import functools
import os
from collections import defaultdict
from collections.abc import Iterable

from dataset.prepare.checking.places import OTHER_EXTENSION, Places, fit, is_certain, name_key, path_parts
from dataset.prepare.checking.rebase import Paths
from dataset.prepare.common import Summary, progress_bar
from dataset.prepare.images import files_under
from utils.errors import MissingFileError

FOUND = 'image found elsewhere by its name'
FOUND_AS_OTHER = 'image found with another extension'
OUTSIDE = 'image found outside its root: training needs images_outside_root: true, or a root that holds all images'


def find_by_name(paths: Paths, folders: list[str], summary: Summary) -> None:
    """Replace the values of `paths` that do not exist by files under `folders` that have their names."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise MissingFileError(f'--find {folder}: there is no such folder')
    missing = {}
    for root, known in paths.items() if folders else ():
        bar = progress_bar(known.items(), 'looking for images', len(known))
        missing[root] = {path: new for path, new in bar if not os.path.exists(os.path.join(root, new))}
    keys = {name_key(path) for known in missing.values() for path in known.values()}
    if not keys:
        return
    files = index_files(keys, folders, summary)
    found = find_files(missing, files, summary)
    owners, places = find_owners(found, missing, paths), Places(paths, missing)
    for root, pairs in found.items():
        for path, file in pairs.items():
            if fit(missing[root][path], file)[0] > OTHER_EXTENSION:
                places.add_move(root, missing[root][path], file)
    for root, pairs in found.items():
        for path, file in pairs.items():
            wanted = missing[root][path]
            doubt = places.doubt(root, wanted, file, files[name_key(wanted)])
            if file in owners and owners[file] != {(root, path_parts(wanted))} and not is_certain(wanted, file):
                doubt = 'the only file of its name fits another path as well or better'
            if doubt:
                summary.note(f'image not replaced, because {doubt}', f'{wanted!r}: {file!r}')
                continue
            new = paths[root][path] = path_from_root(file, root)
            what = FOUND_AS_OTHER if fit(wanted, file)[0] == OTHER_EXTENSION else FOUND
            summary.changed[what] += 1
            summary.first.setdefault(what, f'{wanted!r} is now {new!r}')
            if root and os.path.isabs(new):
                summary.note(OUTSIDE, repr(new))


def index_files(wanted: set[str], folders: Iterable[str], summary: Summary) -> dict[str, list[str]]:
    """{key of the name: absolute paths} of the files under the folders that have a wanted key."""
    files = defaultdict(list)
    for folder in map(os.path.abspath, folders):
        for path in progress_bar(files_under(folder, summary), f'files in {folder}'):
            if (key := name_key(path)) in wanted:
                files[key].append(os.path.join(folder, path))
    return files


def find_files(missing: Paths, files: dict[str, list[str]], summary: Summary) -> Paths:
    """{root: {path: the file that it finds}} of missing images. Those that find several are counted.

    files: by the key of the name.
    """
    found: Paths = {root: {} for root in missing}
    for root, known in missing.items():
        for path, wanted in known.items():
            best = best_files(wanted, files.get(name_key(wanted), []))
            if len(best) == 1:
                found[root][path] = best[0]
            elif best:
                example = f'{wanted!r}: {best[0]!r} and {best[1]!r}'
                summary.note('image found in several places, not replaced', example)
    return found


def best_files(path: str, files: list[str]) -> list[str]:
    """The files of the same key that fit a path best; several if that is not certain."""
    if len(files) < 2:
        return files
    fits = {file: fit(path, file) for file in files}
    best = [file for file in files if fits[file] == max(fits.values())]
    # Folders that overlap, and links, name a file twice.
    return list({os.path.realpath(file): file for file in best[::-1]}.values())[::-1]


def find_owners(found: Paths, missing: Paths, paths: Paths) -> dict[str, set[tuple[str, tuple[str, ...]]]]:
    """{file: the images, as (root, parts of the path), that it fits best} of the found files that several paths name.

    An image that is where its path says owns its file.
    """
    finders: dict[str, tuple[str, str]] = {}
    claims: dict[str, list[tuple[tuple[int, int], tuple]]] = {}

    def claim(file: str, root: str, path: str, rank: tuple[int, int]) -> None:
        claims.setdefault(file, []).append((rank, (root, path_parts(path))))

    for root, files in found.items():
        for path, file in files.items():
            wanted = missing[root][path]
            first = finders.setdefault(file, (root, wanted))
            if first != (root, wanted):
                claim(file, *first, fit(first[1], file))
                claim(file, root, wanted, fit(wanted, file))
    for root, known in paths.items():
        for path, there in known.items():
            if path not in missing[root] and (file := os.path.abspath(os.path.join(root, there))) in finders:
                claim(file, *finders[file], fit(finders[file][1], file))
                claim(file, root, there, (1, 0))
    best = {file: max(rank for rank, _ in some) for file, some in claims.items()}
    return {file: {image for rank, image in some if rank == best[file]} for file, some in claims.items()}


def path_from_root(file: str, root: str) -> str:
    """The path of a file as a row names it: relative to `root` if it is under it, otherwise absolute."""
    folder, name = os.path.split(file)
    start = _folder_from_root(folder, root)
    return file if start is None else f'{start}{name}'


@functools.cache
def _folder_from_root(folder: str, root: str) -> str | None:
    """A folder relative to a root, empty or with a slash at the end; None if it is not under it."""
    if root:
        for here, start in ((folder, os.path.abspath(root)), (os.path.realpath(folder), os.path.realpath(root))):
            relative = os.path.relpath(here, start).replace(os.sep, '/')
            if relative.split('/')[0] != os.pardir:
                return '' if relative == os.curdir else f'{relative}/'
    return None
