"""What the tests of dataset.shapes share."""

import json
import re
from pathlib import Path
from typing import Any

from dataset.shapes.scene import COLORS, SHAPES, SIZES

SCENE_COUNTS = {'train': 60, 'val': 20, 'test': 40}
VQA = ('vqa_train.json', 'vqa_val.json', 'vqa_test_annotated.json')
ITEM = re.compile(rf'a ({"|".join(SIZES)}) ({"|".join(COLORS)}) ({"|".join(SHAPES)})')


def read(path: Path) -> Any:
    return json.loads(Path(path).read_text())


def as_list(caption: str | list[str]) -> list[str]:
    return caption if isinstance(caption, list) else [caption]


def parse_caption(caption: str) -> tuple:
    """(items, relation, related pair) of a caption, from its words only; the upper item of a pair comes first."""
    items = ITEM.findall(caption)
    (relation,) = re.findall(r'\b(above|below|beside)\b', caption)
    if relation == 'beside':
        return frozenset(items), 'beside', frozenset(items[:2])
    return frozenset(items), 'above', tuple(items[:2] if relation == 'above' else items[1::-1])
