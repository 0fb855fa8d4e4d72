"""Where the images of an annotation file are: the roots of its rows, and paths that `check --rebase` rewrites."""

import os
from collections.abc import Iterable

from dataset.prepare.common import Summary
from utils.errors import InputError

Paths = dict[str, dict[str, str]]  # {root: {path as the annotation file has it: path as it will be written}}


class ImagePaths:
    """The images of rows, from which root they start, and the paths that replace others (`moves`)."""

    def __init__(self, image_root: str, vg_root: str):
        self.image_root, self.vg_root = image_root, vg_root
        self.moves: Paths = {}

    def root_of(self, row: dict) -> str:
        return self.vg_root if row.get('dataset') == 'vg' else self.image_root

    def full_paths(self, row: dict) -> list[str]:
        """The paths of a row's images, joined to its root."""
        root = self.root_of(row)
        return [os.path.join(root, path) for path in image_paths(row)]

    def replace(self, paths: Paths) -> None:
        """From now on `move_row` writes the values of `paths` for its keys."""
        self.moves = {root: {old: new for old, new in known.items() if new != old} for root, known in paths.items()}

    def move_row(self, row: object) -> object:
        """The row with replaced paths."""
        moves = self.moves.get(self.root_of(row)) if isinstance(row, dict) else None
        if not moves:
            return row
        row = dict(row)
        if 'image' in row:
            row['image'] = _replaced(row['image'], moves)
        for name in ('images', 'also_true_of'):
            if isinstance(row.get(name), list):
                row[name] = [_replaced(path, moves) for path in row[name]]
        return row


def image_paths(row: dict) -> list[str]:
    """The paths of a row's images as it has them."""
    paths = row['images'] if isinstance(row.get('images'), list) else [row.get('image')]
    return [path for path in paths if isinstance(path, str) and path]


def _replaced(path: object, moves: dict[str, str]) -> object:
    return moves.get(path, path) if isinstance(path, str) else path


def parse_rules(words: Iterable[str]) -> list[tuple[str, str]]:
    """(OLD, NEW) of each OLD=NEW."""
    rules = [tuple(word.split('=', 1)) for word in words]
    for rule in rules:
        if len(rule) < 2:
            raise InputError(f'--rebase {rule[0]}: give OLD=NEW')
    return rules


def rebase_paths(paths: Paths, rules: list[tuple[str, str]], summary: Summary) -> None:
    """Replace OLD at the start of paths by NEW.

    If several rules fit a path, the first whose result exists is taken, or the first if no result exists. InputError if
    a rule fits no path.
    """
    unused = dict.fromkeys(old for old, _ in rules)
    for root, known in paths.items():
        for path in known:
            fitting = [rule for rule in rules if path.startswith(rule[0])]
            if fitting:
                results = [new + path[len(old) :] for old, new in fitting]
                known[path] = _first_existing(results, root) if len(results) > 1 else results[0]
                summary.changed['image with a path that --rebase rewrites'] += 1
                for old, _ in fitting:
                    unused.pop(old, None)
    for old in unused:
        example = next((f' (the first path is {path!r})' for known in paths.values() for path in known), '')
        raise InputError(f'--rebase {old}=...: no path starts with {old}{example}: correct it or leave it out')


def _first_existing(paths: list[str], root: str) -> str:
    return next((path for path in paths if os.path.exists(os.path.join(root, path))), paths[0])
