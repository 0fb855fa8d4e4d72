"""The columns of tables and the fields of JSON objects: which has the images, which the captions."""

import ast
import io
import json
import tokenize
from collections.abc import Iterable
from typing import Any

from dataset.annotations.json_reader import short
from dataset.prepare.common import Summary
from utils.errors import InputError

IMAGE_COLUMNS = ('image', 'image_path', 'path', 'file', 'filename', 'file_name', 'filepath', 'image_name', 'img')
CAPTION_COLUMNS = ('caption', 'text', 'captions', 'sentence', 'description', 'title', 'comment')
SPLIT_COLUMNS = ('split', 'set', 'subset', 'partition')
LONGEST_SHOWN = 200  # characters
DELIMITERS = {'\t': 'tabs', ',': 'commas', ';': 'semicolons', '|': 'bars'}


def find_name(names: Iterable[str], known: tuple[str, ...]) -> str | None:
    """The first known name, in any case, that is among `names`, as it is written there."""
    lower = {name.lower(): name for name in reversed(list(names))}
    return next((lower[name] for name in known if name in lower), None)


def find_columns(names: list[str], wanted: list[str] | None) -> list[str] | None:
    """The names of the image and caption columns; None if they are not both there."""
    found = wanted or [find_name(names, IMAGE_COLUMNS), find_name(names, CAPTION_COLUMNS)]
    return found if all(name in names for name in found) else None


def choose_columns(names: list[str], wanted: list[str] | None, path: str) -> list[str]:
    """The names of the image and caption columns; InputError if they are not found, or twice."""
    found = find_columns(names, wanted)
    if found is None:
        is_text = path.lower().endswith(('.csv', '.tsv'))
        hint = '; if they are values, add a first line with the names, such as image,caption' if is_text else ''
        shown = ', '.join(names)
        shown = shown if len(shown) < LONGEST_SHOWN else f'{shown[:LONGEST_SHOWN]}...'
        raise InputError(f'{path} has the columns {shown}: choose those of images and captions with --columns{hint}')
    for name in found:
        if sum(name == other if wanted else name.lower() == other.lower() for other in names) > 1:
            raise InputError(f'{path} has several columns with the name {name}: give each a name of its own')
    return found


def captions_of(value: Any, summary: Summary) -> list:
    """The captions in a field: a list, also if it is written as text, or a single one."""
    if isinstance(value, list):
        return value
    items = written_list(value) if isinstance(value, str) else None
    if items is None:
        return [value]
    summary.note('caption field with a list written as text, taken as captions', short(value, 60))
    return items


def written_list(text: str) -> list[str] | None:
    """The strings of a list that is written as JSON, Python or NumPy write it; None for other text."""
    text = text.strip()
    if not (text.startswith('[') and text.endswith(']')):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = _python_list(text)
    return items if isinstance(items, list) and all(isinstance(item, str) for item in items) else None


def _python_list(text: str) -> list | None:
    """The literals of a list with commas, or without any between them, which Python would read as one string."""
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string.strip()]
        between = [token.string for token in tokens[1:-1] if token.type != tokenize.STRING]
        items = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    except (tokenize.TokenError, SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    with_commas = set(between) == {','} and len(between) in (len(items) - 1, len(items))
    return items if items and (with_commas or not between) else None
