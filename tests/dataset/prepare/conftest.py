"""A sample of Karpathy's file, which several commands read."""

import pytest

from tests.dataset.prepare.tools import coco_name, write


@pytest.fixture
def karpathy(tmp_path) -> str:
    """One image with two captions for each of Karpathy's four splits."""
    images = [
        {
            'filepath': 'train2014' if split == 'train' else 'val2014',
            'cocoid': number,
            'split': split,
            'imgid': number,
            'filename': coco_name(number, 'train2014' if split == 'train' else 'val2014'),
            'sentences': [{'raw': f'A {split} image.', 'tokens': []}, {'raw': f'Number {number}\n', 'tokens': []}],
        }
        for number, split in ((9, 'train'), (11, 'restval'), (13, 'val'), (15, 'test'))
    ]
    return write(tmp_path / 'dataset_coco.json', {'dataset': 'coco', 'images': images})
