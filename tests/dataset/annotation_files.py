"""Annotation files of the tests, rows of every kind, and the caches beside them."""

import json
import os

GOOD = {
    'pretrain': {'image': 'a.jpg', 'caption': 'x'},
    'retrieval_train': {'image': 'a.jpg', 'caption': 'x', 'image_id': 1},
    'retrieval_eval': {'image': 'a.jpg', 'caption': ['x']},
    'nlvr': {'images': ['a', 'b'], 'sentence': 's', 'label': 'True'},
    'vqa': {'question': 'q', 'image': 'a.jpg', 'dataset': 'vqa', 'question_id': 1},
}


def write(path, data) -> str:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding='utf-8')
    return str(path)


def caches(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith('.'))
