"""Whether a file in another folder is the image that a path names, or another image with the same name.

Some names identify an image: those of COCO, NLVR2, Visual Genome, and most that people give. A number does not, if it
counts the files of a folder: 0000/005.jpg and 0001/005.jpg are two images. If 0000/005.jpg is missing while other
images of 0000 are where their paths say, then it was never downloaded, and 0001/005.jpg does not replace it.
"""

import itertools
import os
import re
import unicodedata
from collections import defaultdict

from dataset.prepare.checking.rebase import Paths
from dataset.prepare.exclude import COCO_NAME, VISUAL_GENOME
from dataset.prepare.images import without_extension

IDENTITY = re.compile('[1-9][0-9]{7,}')  # of Flickr, for example: no folder has so many files
OTHER_EXTENSION = -2  # the rank of a file whose name has another extension, see `fit`
Folder = tuple[str, ...]


class Places:
    """The folders of an annotation file: in which of them images are where their paths say, and where others went."""

    def __init__(self, paths: Paths, missing: Paths):
        self.with_images: dict[str, set[Folder]] = {root: set() for root in paths}  # themselves
        self.above: dict[str, set[Folder]] = {root: set() for root in paths}  # or in a folder under them
        self.names: dict[str, set[str]] = {root: set() for root in paths}
        self.moves: dict[tuple[str, Folder], set[Folder]] = defaultdict(set)  # {folder of paths: of files found}
        self.repeated: set[str] = set()  # forms of names that are in several folders, so that they identify no image
        for root, known in paths.items():
            seen: dict[str, Folder] = {}
            for path, there in known.items():
                *folder, name = path_parts(there)
                folder = tuple(folder)
                self.names[root].update(folder[-1:])
                if seen.setdefault(key := name_key(name), folder) != folder:
                    self.repeated.add(_form(key))
                if path not in missing[root] and folder not in self.with_images[root]:
                    self.with_images[root].add(folder)
                    self.above[root].update(folder[:count] for count in range(len(folder) + 1))

    def add_move(self, root: str, path: str, file: str) -> None:
        """Remember where an image was found that has the name of its path."""
        self.moves[root, path_parts(path)[:-1]].add(path_parts(file)[:-1])

    def doubt(self, root: str, path: str, file: str, files: list[str]) -> str | None:
        """Why a file may not be the image that a path names; None if it certainly is. files: all of that name."""
        if is_certain(path, file):
            return None
        rank, shared = fit(path, file)
        folder, there = path_parts(path)[:-1], path_parts(file)[:-1]
        is_left, moves = folder in self.with_images[root], self.moves.get((root, folder), set())
        home = path_parts(os.path.abspath(os.path.join(root, path)))[:-1]
        if rank == OTHER_EXTENSION and there not in moves and (moves or is_left and there != home):
            return 'the only file of its name has another extension and is not in the folder of the other images'
        if not self._is_count(path):
            return None
        if is_left:
            return 'its name is a number and other images of its folder are where their paths say'
        before = folder[: len(folder) - shared]
        if shared and before and before in self.above[root]:
            return f'its name is a number and other images under {"/".join(before)} are where their paths say'
        if shared:
            return None
        is_elsewhere = bool(there) and there[-1] in self.names[root]
        is_alone = len(set(map(os.path.realpath, files))) == 1
        if self.with_images[root] or is_elsewhere or not is_alone or _form(name_key(path)) in self.repeated:
            return 'its name is a number and the only file of that number is in another folder'
        return None

    def _is_count(self, path: str) -> bool:
        """Whether the name of an image may be that of another image in another folder."""
        key = name_key(path)
        is_number = key.isdecimal() and not (IDENTITY.fullmatch(key) or COCO_NAME.fullmatch(key))
        return is_number or _form(key) in self.repeated


def is_certain(path: str, file: str) -> bool:
    """Whether the release of a dataset gives the names of a path and a file of the same key to one image only.

    They are COCO's, or numbers in the folders of Visual Genome.
    """
    for one, other in ((path, file), (file, path)):
        *folders, name = path_parts(one)
        if name.startswith('COCO_') and COCO_NAME.fullmatch(without_extension(name)):
            return True
        if folders and folders[-1].startswith(VISUAL_GENOME):
            return any(
                part.startswith(VISUAL_GENOME) or part.lower() in ('vg', 'visual_genome') for part in path_parts(other)
            )
    return False


def fit(path: str, file: str) -> tuple[int, int]:
    """How well a file fits a path, higher is better: how similar the names are, then how many folders are the same."""
    parts, others = path_parts(path), path_parts(file)
    forms = (str, fold, lambda name: fold(without_extension(name)), name_key)
    rank = next(rank for rank, form in enumerate(forms) if form(parts[-1]) == form(others[-1]))
    pairs = zip(parts[-2::-1], others[-2::-1], strict=False)
    return -rank, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def path_parts(path: str) -> tuple[str, ...]:
    """Folders and name of a path, which may be of Windows."""
    return tuple(part for part in re.split(r'[/\\]+', path) if part not in ('', '.')) or ('',)


def fold(name: str) -> str:
    """The name without its case, in one of the forms that Unicode has for accented letters."""
    return name.casefold() if name.isascii() else unicodedata.normalize('NFC', name).casefold()


def name_key(path: str) -> str:
    """What the names of one image share: the name without case and extension, or the number of a COCO image."""
    stem = without_extension(path.replace('\\', '/').rpartition('/')[2])
    match = COCO_NAME.fullmatch(stem)
    return match[1] if match else fold(stem)


def _form(key: str) -> str:
    """A name with every number replaced by 0: those of one sequence have the same form."""
    return re.sub('[0-9]+', '0', key)
