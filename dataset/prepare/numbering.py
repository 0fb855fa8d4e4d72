"""Images named by row number: `12.jpg`, `00000/000000012.jpg`, or `0001/012.jpg` with numbers anew in each folder.

A wrong reading pairs every image with another row's caption, so what the names do not say is refused.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from dataset.prepare.images import without_extension

MANY_FOLDERS = 20  # of which none has a file 0, if files are counted from 1
FULL = 0.9  # of the numbers that so many digits allow: the largest is beyond it, if folders hold as many files


@dataclass
class Numbered:
    """rows: {row: path}. files: how many files have a number. size: the number of rows per folder, 0 if numbers
    continue over folders. fault: why the numbering cannot be known, with the remedy. conflicts, beyond: how many files
    share a row with another, or are beyond the last row."""

    rows: dict[int, str] = field(default_factory=dict)
    files: int = 0
    size: int = 0
    fault: str | None = None
    conflicts: int = 0
    beyond: int = 0


def match_numbers(
    paths: Iterable[str], count: int, per_folder: int | None = None, first_row: int | None = None
) -> Numbered:
    """The row of each file whose name is a number. count: of rows.

    per_folder: how many rows a folder has, 0 if numbers continue over folders; by default the names show it.
    first_row: the number of the file of row 0; by default 0.
    """
    files = [(folder_of(path), stem, path) for path in paths if (stem := number_in(path)) is not None]
    numbers = [int(stem) for _, stem, _ in files]
    if not files:
        return Numbered()
    size, fault = (per_folder, None) if per_folder is not None else rows_per_folder(files, count)
    if size:
        unnumbered = next((folder for folder, _, _ in files if not folder.isdecimal()), None)
        if unnumbered is not None:
            return Numbered(
                files=len(files),
                size=size,
                fault=f'the folder {unnumbered!r} has no number: rename it, or use --naming',
            )
        numbers = [size * int(folder) + number for (folder, _, _), number in zip(files, numbers, strict=True)]
    if fault is None and first_row is None:
        fault = counted_from_one(numbers, count, size)
    found = Numbered(files=len(files), size=size, fault=fault)
    paths_of = defaultdict(list)
    for number, (_, _, path) in zip(numbers, files, strict=True):
        paths_of[number - (first_row or 0)].append(path)
    for row, same in sorted(paths_of.items()):
        if not 0 <= row < count:
            found.beyond += len(same)
        elif len(same) > 1:
            found.conflicts += len(same)
        else:
            found.rows[row] = same[0]
    return found


def number_in(path: str) -> str | None:
    """The name of a file without extension if it consists of digits."""
    stem = without_extension(os.path.basename(path))
    return stem if stem.isascii() and stem.isdecimal() else None


def folder_of(path: str) -> str:
    """The name of the folder that a file is in."""
    return os.path.basename(os.path.dirname(path))


def rows_per_folder(files: list[tuple[str, str, str]], count: int) -> tuple[int, str | None]:
    """How many rows each folder has, 0 if numbers continue over folders; and why that cannot be known, or None.

    files: (folder, digits, path). Numbers start anew if two folders have the same number, or if all have the same
    number of digits, too few to count the rows.
    """
    folders = {os.path.dirname(path) for _, _, path in files}
    numbered = all(folder.isdecimal() for folder, _, _ in files)
    widths = {len(stem) for _, stem, _ in files}
    digits = widths.pop() if len(widths) == 1 else None
    is_short = numbered and digits is not None and 10**digits < count
    where: dict[int, str] = {}
    twice = next(
        (
            (where[int(stem)], path)
            for _, stem, path in files
            if os.path.dirname(where.setdefault(int(stem), path)) != os.path.dirname(path)
        ),
        None,
    )
    largest = max(where)
    if twice is None and not is_short:
        if len(folders) > 1 and numbered and largest < count / 2 and overlap(files):
            return 0, (
                f'the folders have small numbers, up to {largest} of {count} rows, as if they started anew in each: '
                'give --per-folder N if each has N rows, or --per-folder 0 if the numbers continue'
            )
        return 0, None
    example = f' ({twice[0]}, {twice[1]})' if twice else ''
    if not numbered:
        return 0, (
            f'file numbers start anew in each folder{example}, and the folders have no numbers: '
            'rename the folders to 0, 1, 2, ..., or use --naming'
        )
    if digits is None or largest < FULL * 10**digits - 1:
        return 0, (
            f'file numbers start anew in each folder{example}, and their names do not show how many rows a folder has: '
            'give --per-folder N (row = N x folder + file)'
        )
    return 10**digits, None


def overlap(files: list[tuple[str, str, str]]) -> bool:
    """Whether the ranges of the numbers of two folders overlap."""
    ranges: dict[str, list[int]] = defaultdict(list)
    for _, stem, path in files:
        ranges[os.path.dirname(path)].append(int(stem))
    ordered = sorted((min(numbers), max(numbers)) for numbers in ranges.values())
    return any(second[0] <= first[1] for first, second in zip(ordered, ordered[1:], strict=False))


def counted_from_one(numbers: list[int], count: int, size: int) -> str | None:
    """Why the files seem to be counted from 1, or None. size: rows per folder, 0 if numbers continue over folders."""
    if (
        size
        and len({number // size for number in numbers}) >= MANY_FOLDERS
        and all(number % size for number in numbers)
    ):
        return (
            f'files seem to be counted from 1: no folder has a file 0; look at a pair, then give --per-folder {size} '
            '--first-row 1, or --first-row 0 if they are counted from 0'
        )
    if 0 not in numbers and max(numbers) >= count:
        return (
            f'files seem to be counted from 1: there is a file {max(numbers)} and none 0, where rows are 0 to '
            f'{count - 1}: look at a pair, then give --first-row 1, or --first-row 0 if they are counted from 0'
        )
    return None
