"""Which fields a row of an annotation file has, and what they may contain. Rows of each kind (any further field is
allowed):

pretrain         {image, caption: str or [str]}; optional also_true_of: [str], other images of which all captions of
                 the row are true, written as in their `image`
retrieval_train  {image, caption: str, image_id: int or str}
retrieval_eval   {image, caption: str or [str]}; optional image_id: int or str, caption_ids: [int], as many as captions:
                 those of COCO, for the metrics of ECCV-Caption and CxC
nlvr             {images: [left, right], sentence}; optional label: true, false, "True" or "False", identifier: int or
                 str, kind: str
vqa              {question, image, dataset: vqa or vg, question_id: int or str}; optional answer: str or [str],
                 answer_type, question_type and kind: str
"""

from collections.abc import Iterator

from dataset.annotations.json_reader import short
from utils.errors import InputError


class BadRow(InputError):
    """What is wrong with one row; the caller adds the file and the row number."""


def _path(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRow(f"'{name}' must be the path of an image, a non-empty string")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"'{name}' must be one string; give each of several texts a row of its own")
    return value


def _texts(value: object, name: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRow(f"'{name}' must be a string or a list of strings")
    if not value:
        raise BadRow(f"'{name}' is an empty list; give it at least one string or take the row out")
    return value


def _pair(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(path, str) and path for path in value):
        raise BadRow(f"'{name}' must be a list of two paths, the left image and the right one")
    return value


def _paths(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(path, str) and path for path in value):
        raise BadRow(f"'{name}' must be a list of the paths of images, non-empty strings; leave it out if unknown")
    return value


def _identity(value: object, name: str) -> int | str:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise BadRow(f"'{name}' must be an integer or a string")
    return value


def _numbers(value: object, name: str) -> list[int]:
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        raise BadRow(f"'{name}' must be a list of integers, one for each caption")
    return value


def _label(value: object, name: str) -> bool:
    if value is True or value == 'True':
        return True
    if value is False or value == 'False':
        return False
    raise BadRow(f"""'{name}' must be "True", "False" or a JSON boolean""")


def _vqa_source(value: object, name: str) -> str:
    if value not in ('vqa', 'vg'):
        raise BadRow(f"""'{name}' must be "vqa" or "vg", which selects the root folder of the image""")
    return value


def _answer(value: object, name: str) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else _texts(value, name)


def _group(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(
            f"'{name}' must be a string, because accuracy is given for each of its values; leave it out if unknown"
        )
    return value


REQUIRED = {
    'pretrain': {'image': _path, 'caption': _texts},
    'retrieval_train': {'image': _path, 'caption': _text, 'image_id': _identity},
    'retrieval_eval': {'image': _path, 'caption': _texts},
    'nlvr': {'images': _pair, 'sentence': _text},
    'vqa': {'question': _text, 'image': _path, 'dataset': _vqa_source, 'question_id': _identity},
}
OPTIONAL = {
    'pretrain': {'also_true_of': _paths},
    'retrieval_eval': {'image_id': _identity, 'caption_ids': _numbers},
    'nlvr': {'label': _label, 'identifier': _identity, 'kind': _group},
    'vqa': {'answer': _answer, 'answer_type': _group, 'question_type': _group, 'kind': _group},
}


def clean_row(row: object, kind: str) -> dict:
    """The fields of `row` that a `kind` of annotation has, in one form. BadRow says what is wrong.

    Captions become a list of strings (retrieval_train: one string), labels booleans. An optional field that is absent
    or null is omitted; unknown fields are dropped.
    """
    if not isinstance(row, dict):
        raise BadRow(f'is a {type(row).__name__}, where every row must be a JSON object')
    clean = {}
    for name, check in REQUIRED[kind].items():
        if name not in row:
            remedy = (
                '; `python -m dataset.prepare folder --kind retrieval_train` writes it' if name == 'image_id' else ''
            )
            raise BadRow(f"has no '{name}'; a row of kind {kind} needs {', '.join(REQUIRED[kind])}{remedy}")
        clean[name] = check(row[name], name)
    for name, check in OPTIONAL.get(kind, {}).items():
        if row.get(name) is not None:
            clean[name] = check(row[name], name)
    return clean


def checked_rows(rows: Iterator[object], file: str, kind: str) -> Iterator[dict]:
    """`clean_row` of each row. InputError names the file, the number and the content of a bad row."""
    for number, row in enumerate(rows):
        try:
            yield clean_row(row, kind)
        except BadRow as error:
            raise InputError(f'{file}: row {number}, {short(row)}: {error}') from None
