"""The checks of configuration keys: each returns the value to use, or raises ValueError "must be ..."."""

import sys
from collections.abc import Callable
from typing import Any

NEGATIVES = ('uniform', 'sampled', 'hard', 'auto')
MOST = 2**31 - 1  # of an integer: more is a slip, and too much for the libraries
MOST_RATIO = 1000  # building a model with more would take hours, or all memory
EXAMPLE_SCHEDULE = '{0: uniform, 2: sampled, 5: hard}'
Check = Callable[[Any], Any]


def _check(test: Callable[[Any], Any], words: str) -> Check:
    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(f'must be {words}')
        return value

    return check


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and 0 < value[0] <= value[1] <= 1


def _are_betas(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_fraction, value))


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != '' and '\0' not in value


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def one_of(*choices: Any) -> Check:
    return _check(lambda value: value in choices, 'one of ' + ', '.join(map(str, choices)))


def optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def integer(least: int, most: int = MOST) -> Check:
    """An integer of at least `least`, at most `most`."""

    def check(value: Any) -> int:
        if not _is_int(value) or value < least:
            raise ValueError(f'must be an integer of at least {least}')
        if value > most:
            raise ValueError(f'must be at most {most}')
        return value

    return check


def files(value: Any) -> list[str]:
    """A path or a list of paths -> a list of paths."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(map(_is_path, value)):
        raise ValueError('must be a path or a list of paths')
    return value


count, count0 = integer(1), integer(0)
positive = _check(lambda value: _is_number(value) and value > 0, 'a finite number above 0')
nonnegative = _check(lambda value: _is_number(value) and value >= 0, 'a finite number of at least 0')
minutes = _check(lambda value: _is_number(value) and 0.01 <= value <= 1e5, 'a number from 0.01 to 100,000')
ratio = _check(lambda value: _is_number(value) and 0 < value <= MOST_RATIO, f'a number above 0, at most {MOST_RATIO}')
dropout = _check(_is_fraction, 'a number from 0 to below 1')
fraction = _check(_is_share, 'a number from 0 to 1')
count0_or_auto = _check(
    lambda value: value == 'auto' or _is_int(value) and 0 <= value <= MOST, 'an integer of at least 0, or auto'
)
fraction_or_auto = _check(lambda value: value == 'auto' or _is_share(value), 'a number from 0 to 1, or auto')
# "no match" for every pair is right two times of three
itm_accuracy = _check(lambda value: _is_number(value) and 2 / 3 < value < 1, 'a number between 0.667 and 1')
boolean = _check(lambda value: isinstance(value, bool), 'true or false')
string = _check(lambda value: isinstance(value, str), 'a string')
path = _check(_is_path, 'a path')
optional_path, optional_files = optional(path), optional(files)
path_or_mapping = _check(lambda value: isinstance(value, dict) or _is_path(value), 'a path or a mapping')
boolean_or_path = _check(lambda value: isinstance(value, bool) or _is_path(value), 'true, false or a path')
boolean_or_names = _check(
    lambda value: isinstance(value, bool) or value and _are_strings(value), 'true, false or a list of names'
)
scale = _check(_is_range, 'two numbers [low, high] with 0 < low <= high <= 1')
betas = _check(_are_betas, 'two numbers from 0 to below 1')
names = _check(_are_strings, 'a list of names')
mapping = _check(lambda value: isinstance(value, dict), 'a mapping')


def scheduled(test: Callable[[Any], Any], words: str, entry: str, example: str) -> Check:
    """A value that passes `test`, or {first epoch: value} -> {first epoch: value}."""

    def check(value: Any) -> dict[int, Any]:
        schedule = dict(value) if isinstance(value, dict) else {0: value}
        if not all(_is_int(epoch) and epoch >= 0 for epoch in schedule):
            raise ValueError(f'must name epochs from 0 on, as in {example}')
        if not all(map(test, schedule.values())):
            raise ValueError(f'must be {words}, or a schedule of them like {example}')
        if 0 not in schedule:
            raise ValueError(f'must name a {entry} for epoch 0, as in {example}')
        return schedule

    return check


policies = scheduled(NEGATIVES.__contains__, f'one of {", ".join(NEGATIVES)}', 'policy', EXAMPLE_SCHEDULE)
fractions = scheduled(_is_fraction, 'a number from 0 to below 1', 'number', '{0: 0, 1: 0.5}')


# Checks of keys that hold paths or names, of which --set takes the value as it is written; those that take null, lists.
NULLABLE = {optional_path, optional_files}
LISTS = {files, optional_files, names, boolean_or_names}
TEXT = {string, path, boolean_or_path, path_or_mapping} | NULLABLE | LISTS
