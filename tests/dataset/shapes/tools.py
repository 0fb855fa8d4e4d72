"""What the tests of dataset.shapes share."""

import json
from pathlib import Path
from typing import Any

SCENE_COUNTS = {'train': 60, 'val': 20, 'test': 40}
VQA = ('vqa_train.json', 'vqa_val.json', 'vqa_test_annotated.json')


def read(path: Path) -> Any:
    return json.loads(Path(path).read_text())
