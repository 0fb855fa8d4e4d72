"""Files of benchmarks in which a model chooses a caption: SugarCrepe, ARO, Winoground, and a plain layout of our own.

layout       a row
sugarcrepe   {filename, caption, negative_caption}, in one JSON object {"0": row, ...}; the kind is the file's name
aro          {image_path, or image_id of IMAGE_ID.jpg; bbox_x, bbox_y, bbox_w, bbox_h; true_caption, false_caption;
             relation_name or attributes: the kind}; the picture is cropped to (x, y, x + w, y + h)
order        {image or image_path, caption_options: [true, false, ...]}, ARO's shuffled captions
winoground   {image_0, image_1, caption_0, caption_1, collapsed_tag: the kind}; the files are IMAGE.png
choices      {image, captions: [true, false, ...]}; optional kind: str

Files of rows are JSON lists or JSON Lines. A row without a kind has the name of its file as its kind.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dataset.annotations.json_reader import layout as form_of
from dataset.annotations.json_reader import open_annotations, read_rows, short
from dataset.annotations.schema import BadRow
from dataset.text import pre_caption
from utils.errors import InputError, MissingFileError
from utils.files import read_json

WORDS = 30  # of a caption; a row whose captions have no word is refused


class Picture(NamedTuple):
    """An image file, and the box to crop it to: (left, top, right, bottom) in pixels, or None."""

    path: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Choice:
    """A row: one picture, whose true caption is the first; or two pictures, each with the caption of its number."""

    file: str
    row: str  # its number, counted from 0, or its key
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]
    kind: str

    @property
    def place(self) -> str:
        return f'{self.file}, row {self.row}'


def read_choices(file: str, image_root: str, layout: str | None = None, limit: int | None = None) -> list[Choice]:
    """The rows of a file, at most `limit`, all checked, and that all their images exist.

    layout: one of `LAYOUTS`; by default that of the first row. InputError names file, row and remedy.
    """
    choices: list[Choice] = []
    known: set[str] = set()
    for name, row in islice(_rows(file), limit):
        layout = layout or _layout_of(row, file)
        place = f'{file}, row {name}'
        try:
            if not isinstance(row, dict):
                raise BadRow(f'is a {type(row).__name__}, where every row must be a JSON object')
            pictures, captions, kind = LAYOUTS[layout].read(row, image_root)
        except BadRow as error:
            raise InputError(
                f'{place}, {short(row)}: {error}; correct or drop the row, or name another layout than {layout} with '
                '--layout'
            ) from None
        choices.append(Choice(file, name, pictures, captions, Path(file).stem if kind is None else kind))
        for path in (picture.path for picture in pictures):
            if path not in known and not os.path.isfile(path):
                raise MissingFileError(f'{place}: there is no image {path}; {LAYOUTS[layout].remedy}')
            known.add(path)
    if not choices:
        raise InputError(f'{file} contains no rows; download or write the file again')
    return choices


def _rows(file: str) -> Iterator[tuple[str, Any]]:
    """(number or key, row) of each row of a file."""
    with open_annotations(file) as handle:
        if form_of(handle, file) != 'object':
            yield from ((str(number), row) for number, row in enumerate(read_rows(handle, file)))
            return
    content = read_json(file, 'FILE')
    if isinstance(content, dict) and any(isinstance(value, dict) for value in content.values()):
        yield from content.items()
    else:
        yield '0', content  # JSON Lines with one row


def _layout_of(row: Any, file: str) -> str:
    """The layout whose key a row has."""
    found = [name for name, layout in LAYOUTS.items() if isinstance(row, dict) and layout.key in row]
    if len(found) != 1:
        keys = ', '.join(f'{name} ({layout.key})' for name, layout in LAYOUTS.items())
        raise InputError(
            f'{file}: its first row, {short(row)}, has the keys of {len(found)} known layouts; the layouts are {keys}; '
            'give a file of one of them, or name it with --layout'
        )
    return found[0]


# ---- layouts: each reads a row -> (pictures, captions, kind or None); BadRow says what is wrong ----

Read = Callable[[Mapping[str, Any], str], tuple[tuple[Picture, ...], tuple[str, ...], str | None]]


class Layout(NamedTuple):
    """key: only rows of this layout have it. remedy: for an image that does not exist."""

    key: str
    read: Read
    remedy: str


def _text(row: Mapping[str, Any], *keys: str) -> str:
    """The string under the first of the keys that the row has."""
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        raise BadRow(f'has no {" and no ".join(map(repr, keys))}')
    if not isinstance(row[key], str) or not row[key]:
        raise BadRow(f"'{key}' must be a non-empty string")
    return row[key]


def _captions(texts: Any, key: str) -> tuple[str, ...]:
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise BadRow(f"'{key}' must be a list of two or more strings, the true caption first")
    for text in texts:
        if not pre_caption(text, WORDS).strip():
            raise BadRow(f"'{key}': the caption {text!r} has no word in it")
    return tuple(texts)


def _pair(row: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    return _captions([_text(row, key) for key in keys], ' and '.join(keys))


def _sugarcrepe(row: Mapping[str, Any], root: str):
    picture = Picture(os.path.join(root, _text(row, 'filename')))
    return (picture,), _pair(row, 'caption', 'negative_caption'), None


def _aro(row: Mapping[str, Any], root: str):
    number = row.get('image_id')
    path = f'{number}.jpg' if row.get('image_path') is None and number is not None else _text(row, 'image_path')
    left, top, width, height = (_pixels(row, f'bbox_{side}') for side in 'xywh')
    if width < 1 or height < 1:
        raise BadRow(f'its box is {width} x {height} pixels')
    attributes = row.get('attributes')
    is_list = isinstance(attributes, list) and all(isinstance(word, str) for word in attributes)
    kind = ' / '.join(attributes) if is_list else row.get('relation_name')
    picture = Picture(os.path.join(root, path), (left, top, left + width, top + height))
    return (picture,), _pair(row, 'true_caption', 'false_caption'), kind if isinstance(kind, str) else None


def _pixels(row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise BadRow(f"'{key}' must be a number of pixels" if key in row else f"has no '{key}'")
    return round(value)


def _order(row: Mapping[str, Any], root: str):
    picture = Picture(os.path.join(root, _text(row, 'image', 'image_path')))
    return (picture,), _captions(row.get('caption_options'), 'caption_options'), None


def _winoground(row: Mapping[str, Any], root: str):
    names = [_text(row, key) for key in ('image_0', 'image_1')]
    pictures = tuple(Picture(os.path.join(root, f'{name.removesuffix(".png")}.png')) for name in names)
    kind = row.get('collapsed_tag')
    return pictures, _pair(row, 'caption_0', 'caption_1'), kind if isinstance(kind, str) else None


def _choices(row: Mapping[str, Any], root: str):
    kind = row.get('kind')
    if kind is not None and not isinstance(kind, str):
        raise BadRow("'kind' must be a string; leave it out if unknown")
    return (Picture(os.path.join(root, _text(row, 'image'))),), _captions(row.get('captions'), 'captions'), kind


REMEDY = 'set --image_root to the folder that the paths start from'
LAYOUTS = {
    'sugarcrepe': Layout('negative_caption', _sugarcrepe, 'set --image_root to the folder val2017 of COCO'),
    'aro': Layout('true_caption', _aro, 'set --image_root to the folder of the images of Visual Genome'),
    'order': Layout('caption_options', _order, REMEDY),
    'winoground': Layout('caption_0', _winoground, 'set --image_root to the folder images of Winoground'),
    'choices': Layout('captions', _choices, REMEDY),
}
