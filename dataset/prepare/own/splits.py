"""Which splits of a dataset are read: training, validation and test examples are never mixed silently."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from dataset.prepare.common import Summary
from utils.errors import InputError

SPLIT = re.compile(r'(?<![a-z])(?:rest|mini)?(train|val|eval|dev|test)(?:val|id|idation|ing|[ab])?(?![a-z])')


def split_words(name: str) -> set[str]:
    """The splits that the name of a file mentions: of train, val, eval, dev, test."""
    return set(SPLIT.findall(name.lower()))


def split_of_path(path: str) -> str | None:
    """The first folder of a path whose name is that of a split, such as train, val2014 or test-dev."""
    folders = path.lower().split('/')[:-1]
    return next((name for name in folders if re.fullmatch(rf'(?:{SPLIT.pattern}[-_]?\d*)+', name)), None)


class Splits:
    """Selects the examples of the splits that the user chose (`--split`).

    If the user chose none and the examples are of several splits, they are refused: while they are read or, by
    `checked`, after the last one.
    """

    def __init__(self, source: str, wanted: list[str], summary: Summary):
        self.source, self.summary = source, summary
        self.wanted = [name.strip().lower() for name in wanted]
        self.seen: dict[str, None] = {}  # the splits of examples, in order of appearance
        self.of_files: set[str] = set()  # those that names of files say

    def see(self, value: Any) -> str:
        """Remember that there are examples of a split; returns its name, which is empty if `value` is none."""
        name = value.strip().lower() if isinstance(value, str) else ''
        if name:
            self.seen.setdefault(name)
        return name

    def takes(self, value: Any, place: str) -> bool:
        """Whether an example is read. value: its split; None if it has none but that of its file."""
        name = self.see(value)
        if not self.wanted or name in self.wanted or not name and self.of_files:
            return True
        self.summary.note('example of another split than --split, not read', place)
        return False

    def choose_files(self, names: dict[str, str]) -> list[str]:
        """The files whose names do not say that they are of another split. names: {path: name without extension}.

        InputError if they are of several splits and the user chose none.
        """
        words = {path: split_words(name) for path, name in names.items()}
        groups = sorted({' and '.join(sorted(found)) for found in words.values() if found})
        self.of_files = set().union(*(found for found in words.values() if len(found) == 1))
        if len(groups) < 2:
            return list(names)
        if not self.wanted:
            raise InputError(
                f'{self.source} has files of the splits {", ".join(groups)}: choose with --split NAME, or give those '
                "of one as a pattern in quotes, such as 'FOLDER/train-*.parquet'"
            )
        chosen = set().union(*map(split_words, self.wanted))
        return [path for path, found in words.items() if not found or found & chosen]

    def refuse_mixture(self) -> None:
        """InputError if the examples so far are of several splits and the user chose none."""
        splits = [name for name in self.seen if split_words(name)]
        if not self.wanted and len(splits) > 1:
            raise InputError(f'{self.source} has examples of the splits {", ".join(splits)}: choose with --split NAME')

    def check(self) -> None:
        """InputError if all examples are of several splits and the user chose none, or one that none of them has."""
        self.refuse_mixture()
        for name in self.wanted:
            if name not in self.seen and not split_words(name) & self.of_files:
                there = f'its splits are {", ".join(list(self.seen)[:10])}' if self.seen else 'it names no splits'
                raise InputError(f'--split {name}: {self.source} has no example of it; {there}: correct it')

    def checked(self, items: Iterable) -> Iterator:
        """The items, and after the last one `check`."""
        yield from items
        self.check()
