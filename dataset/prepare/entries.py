"""The objects of a release's JSON files: reading a field checks its type, and an error says where it is."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from dataset.annotations.json_reader import short
from utils.errors import InputError

REMEDY = 'correct it, or give the file of the release'


class Entry:
    """A JSON object of a file. `get` and the methods after it are its fields; a field that is null counts as absent.

    path: of the file. name: what the object is, such as 'image 3'; '' is the top level. InputError if it is no object.
    """

    __slots__ = ('_fields', '_name', '_parent', 'path')

    def __init__(self, value: object, path: str, name: str = '', parent: 'Entry | None' = None):
        self._fields, self._name, self._parent, self.path = value, name, parent, path
        if not isinstance(value, dict):
            raise InputError(f'{path}: {self.place} is {short(value, 40)}, not an object: {REMEDY}')

    @property
    def place(self) -> str:
        """Where it is in the file."""
        above = f'{self._parent.place}, ' if self._parent and self._parent._name else ''
        return f'{above}{self._name or "its top level"}'

    def __contains__(self, key: str) -> bool:
        return self._fields.get(key) is not None

    def get(self, key: str) -> Any:
        """The value of a field as it is; None if there is none."""
        return self._fields.get(key)

    def text(self, *keys: str) -> str:
        """A non-empty string, under the first of the keys that the object has."""
        key, value = self._find(keys)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, value, 'a non-empty string')
        return value

    def integer(self, *keys: str) -> int:
        """An integer of at least 0, also if it is written as a string."""
        key, value = self._find(keys)
        if isinstance(value, str) and re.fullmatch('[0-9]{1,20}', value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, value, 'an integer of at least 0')
        return value

    def identity(self, *keys: str) -> int | str:
        """An integer or a non-empty string."""
        key, value = self._find(keys)
        if not isinstance(value, int | str) or isinstance(value, bool) or not str(value).strip():
            raise self._wrong(key, value, 'an integer or a non-empty string')
        return value

    def list(self, *keys: str) -> list:
        """A list."""
        key, value = self._find(keys)
        if not isinstance(value, list):
            raise self._wrong(key, value, 'a list')
        return value

    def entries(self, key: str, name: str) -> Iterator['Entry']:
        """The objects of a list. name: what each of them is, such as 'image'."""
        return entries(self.list(key), self.path, name, self)

    def _find(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        """The first key that the object has, and its value."""
        for key in keys:
            if self._fields.get(key) is not None:
                return key, self._fields[key]
        for key in keys:
            if key in self._fields:
                raise InputError(f"{self.path}: '{key}' in {self.place} is null: {REMEDY}")
        raise InputError(f"{self.path} has no '{keys[0]}' in {self.place}: {REMEDY}")

    def _wrong(self, key: str, value: object, wanted: str) -> InputError:
        return InputError(f"{self.path}: '{key}' in {self.place} is {short(value, 40)}, not {wanted}: {REMEDY}")


def entries(values: Iterable, path: str, name: str, parent: Entry | None = None) -> Iterator[Entry]:
    """Each of the values as an Entry named by its number, counted from 0."""
    for number, value in enumerate(values):
        yield Entry(value, path, f'{name} {number}', parent)
