"""Images named by row number: `12.jpg`, `00001/000010012.jpg`, or `0001/012.jpg` with numbers anew in each folder.

A wrong reading pairs every image with another row's caption, so what the names do not show with certainty is refused.

Legend: a folder's number is F, a file's number in its folder is n, a folder has `size` rows: row = size x F + n.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dataset.prepare.images import without_extension

MANY_FOLDERS = 20  # of which none has a file 0, if files are counted from 1
SPREAD = 0.9  # of the rows: numbers that continue over the folders come that far
BEYOND_SHARE = 0.01  # of the files may have a number that is beyond the last row
LOOK = 'look at a pair, then give'


class File(NamedTuple):
    path: str
    directory: str  # that it is in
    folder: str  # the name of the directory
    digits: str  # its own name


@dataclass
class Numbered:
    """rows: {row: path}. files: how many files have a number. size: the number of rows per folder, 0 if numbers
    continue over the folders. fault: why the rows cannot be known, with the remedy. conflicts, beyond: how many files
    share a row with another, or are beyond the last row."""

    rows: dict[int, str] = field(default_factory=dict)
    files: int = 0
    size: int = 0
    fault: str | None = None
    conflicts: int = 0
    beyond: int = 0


class Uncertain(Exception):
    """Why the rows cannot be known, with the remedy."""


def match_numbers(
    paths: Iterable[str], count: int, per_folder: int | None = None, first_row: int | None = None
) -> Numbered:
    """The row of each file whose name is a number. count: of rows.

    per_folder: how many rows a folder has, 0 if numbers continue over the folders; by default the names must show it.
    first_row: the number of the image of row 0; by default 0, unless the names show that it is another.
    """
    files = [file for path in paths if (file := read_name(path)).digits]
    found = Numbered(files=len(files))
    if not files:
        return found
    try:
        found.size = rows_per_folder(files, count) if per_folder is None else per_folder
        numbers = numbers_of(files, found.size)
        if first_row is None:
            refuse_other_start(files, numbers, found.size, count)
        assign_rows(found, files, numbers, first_row or 0, count)
    except Uncertain as error:
        found.fault = str(error)
    return found


def read_name(path: str) -> File:
    """The parts of a path; no digits if the file's name without extension has anything else."""
    stem = without_extension(os.path.basename(path))
    directory = os.path.dirname(path)
    digits = stem if stem.isascii() and stem.isdecimal() else ''
    return File(path, directory, os.path.basename(directory), digits)


def assign_rows(found: Numbered, files: list[File], numbers: list[int], first_row: int, count: int) -> None:
    """Fill in the rows. Uncertain if too many files are beyond the last row."""
    paths_of = defaultdict(list)
    for number, file in zip(numbers, files, strict=True):
        paths_of[number - first_row].append(file.path)
    example = None
    for row, same in sorted(paths_of.items()):
        if not 0 <= row < count:
            found.beyond += len(same)
            example = example or same[0]
        elif len(same) > 1:
            found.conflicts += len(same)
        else:
            found.rows[row] = same[0]
    if found.beyond > max(1, BEYOND_SHARE * len(files)):
        raise Uncertain(
            f'{found.beyond} of {len(files)} files are not of rows 0 to {count - 1}, such as {example}: give the list '
            'with which these images were downloaded, all of it'
        )


def numbers_of(files: list[File], size: int) -> list[int]:
    """The number of each file over all folders. Uncertain if two folders have the same numbers.

    size: rows per folder, 0 if numbers continue over the folders.
    """
    if not size:
        if twice := same_number(files):
            raise Uncertain(
                f'two folders have the same number ({twice[0]}, {twice[1]}), as if they were of two downloads: give '
                'the folder of one of them with --images'
            )
        return [int(file.digits) for file in files]
    directory_of: dict[int, str] = {}
    for file in files:
        if not file.folder.isdecimal():
            raise Uncertain(f'the folder {file.directory!r} has no number: rename it, or use --naming')
        other = directory_of.setdefault(int(file.folder), file.directory)
        if other != file.directory:
            raise Uncertain(
                f'the folders {other} and {file.directory} have the same number: give the folder of one download with '
                '--images'
            )
    continues = follows_folder(files)  # the digits repeat the number of the folder
    return [size * int(file.folder) + int(file.digits[len(file.folder) if continues else 0 :]) for file in files]


def rows_per_folder(files: list[File], count: int) -> int:
    """How many rows each folder has; 0 if numbers continue over the folders. Uncertain if the names do not show it.

    The size is that of all numbers with as many digits, and only if the last of them is there: folders of 960 rows look
    like folders of 1,000 otherwise.
    """
    numbered = all(file.folder.isdecimal() for file in files)
    if numbered and follows_folder(files):  # img2dataset: shard and number in one name
        if all(int(file.folder) == 0 for file in files):
            return 0
        return full_size([file.digits[len(file.folder) :] for file in files], '(10000, if img2dataset was not told)')
    widths = {len(file.digits) for file in files}
    is_short = numbered and len(widths) == 1 and 10 ** max(widths) < count
    twice = same_number(files)
    if twice or is_short:
        if not numbered:
            raise Uncertain(
                f'file numbers start anew in each folder ({twice[0]}, {twice[1]}), and the folders have no numbers: '
                'rename the folders to 0, 1, 2, ..., or use --naming'
            )
        return full_size([file.digits for file in files], '(row = N x folder + file)')
    if len({file.directory for file in files}) > 1 and not continues_over_folders(files, count):
        raise Uncertain(
            f'the folders have numbers up to {max(int(file.digits) for file in files)} of {count} rows, and nothing '
            'shows whether they start anew in each folder: give --per-folder N if each has N rows, or --per-folder 0 '
            'if the numbers continue'
        )
    return 0


def full_size(digits: list[str], hint: str) -> int:
    """10 ** (number of digits) if the last number of so many digits is there."""
    widths = {len(number) for number in digits}
    if len(widths) > 1 or 10 ** max(widths) - 1 != max(map(int, digits)):
        raise Uncertain(
            f'file numbers start anew in each folder, and up to {max(map(int, digits))} they do not show how many '
            f'rows a folder has: give --per-folder N {hint}'
        )
    return 10 ** max(widths)


def follows_folder(files: list[File]) -> bool:
    """Whether the name of each file is that of its folder with further digits, as many in all."""
    further = {len(file.digits) - len(file.folder) for file in files}
    return len(further) == 1 and min(further) > 0 and all(file.digits.startswith(file.folder or '-') for file in files)


def same_number(files: list[File]) -> tuple[str, str] | None:
    """Two paths with the same number in different folders."""
    first: dict[int, File] = {}
    for file in files:
        other = first.setdefault(int(file.digits), file)
        if other.directory != file.directory:
            return other.path, file.path
    return None


def continues_over_folders(files: list[File], count: int) -> bool:
    """Whether different numbers in the folders are surely rows: F = number // B, or number % B, or almost all rows."""
    numbers = [int(file.digits) for file in files]
    if max(numbers) >= SPREAD * count:
        return True
    if not all(file.folder.isdecimal() for file in files):
        return False
    folders = [int(file.folder) for file in files]
    pairs = list(zip(folders, numbers, strict=True))
    low = max(number // (folder + 1) + 1 for folder, number in pairs)  # number // B < F + 1
    high = min((number // folder for folder, number in pairs if folder), default=0)  # number // B >= F
    if low <= high:
        return True
    sizes = {max(folders) + 1, 10, 100, 1000, 16, 32, 64, 128, 256, 512, 1024}
    return any(all(number % size == folder for folder, number in pairs) for size in sizes)


def refuse_other_start(files: list[File], numbers: list[int], size: int, count: int) -> None:
    """Uncertain if files or folders seem to be counted from 1."""
    if size or files[0].folder.isdecimal() and follows_folder(files):
        step = size or 10 ** (len(files[0].digits) - len(files[0].folder))
        folders = {int(file.folder) for file in files}
        if min(folders) > 0:
            raise Uncertain(
                f'there is no folder 0, as if folders were counted from 1: {LOOK} --first-row {step}, or --first-row 0 '
                'if they are counted from 0'
            )
        if len(folders) >= MANY_FOLDERS and all(number % step for number in numbers):
            per_folder = f'--per-folder {size} ' if size else ''
            raise Uncertain(
                f'no folder has a file 0, as if files were counted from 1: {LOOK} {per_folder}--first-row 1, or '
                '--first-row 0 if they are counted from 0'
            )
    if 0 not in numbers and max(numbers) >= count:
        raise Uncertain(
            f'files seem to be counted from 1: there is a file {max(numbers)} and none 0, where rows are 0 to '
            f'{count - 1}: {LOOK} --first-row 1, or --first-row 0 if they are counted from 0'
        )
