"""Image-caption pairs for pre-training."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dataset.annotations import load_annotations
from dataset.base import TrainingSet, collate_common, image_key
from dataset.image_roots import require_images
from dataset.text import pre_caption
from dataset.tokens import tokenize
from dataset.transforms import train_transform

MAX_WORDS = 30
MAX_TOKENS = 25  # [CLS] included


class PretrainDataset(TrainingSet):
    """Rows {image, caption}; of several captions one is drawn at each access.

    A batch: image [B, 3, R, R] float32, text (`Text`, [B, L]), index [B] int64, image_key [B] int64. If any row of the
    files has `also_true_of`, also true_of [B, K] int64: the keys of the images of which the text of a row is true, its
    own first, padded with its own.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer, seed: int):
        table = load_annotations(config['train_file'], 'pretrain', config['annotation_cache'])
        super().__init__(table, seed, config['on_bad_image'])
        self.root, self.tokenizer = config['image_root'], tokenizer
        self.transform = train_transform(config, len(table))
        self.has_truth = table.has('also_true_of')
        require_images(table, lambda row: [row['image']], config)

    def path(self, row: Mapping[str, Any]) -> str:
        return os.path.join(self.root, row['image'])

    def key(self, path: str) -> int:
        """The key of an image, the same however its path from `image_root` is written."""
        return image_key(os.path.normpath(os.path.join(self.root, path)))

    def texts_at(self, index: int) -> list[str]:
        return [pre_caption(caption, MAX_WORDS) for caption in self.table[index]['caption']]

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        row = self.table[index]
        captions = row['caption']
        caption = captions[rng.integers(len(captions))] if len(captions) > 1 else captions[0]
        example = {
            'image': self.transform(self.path(row), rng),
            'caption': pre_caption(caption, MAX_WORDS),
            'image_key': self.key(row['image']),
        }
        if self.has_truth:
            example['true_of'] = [self.key(path) for path in (row['image'], *row.get('also_true_of', ()))]
        return example

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate_common(examples) | {
            'text': tokenize(self.tokenizer, [example['caption'] for example in examples], MAX_TOKENS),
            'image_key': torch.tensor([example['image_key'] for example in examples]),
        }
        if self.has_truth:
            batch['true_of'] = padded([example['true_of'] for example in examples])
        return batch


def padded(keys: list[list[int]]) -> torch.Tensor:
    """Lists of keys, each padded with its first to the longest: [B, K] int64."""
    longest = max(map(len, keys))
    return torch.tensor([[*some, *some[:1] * (longest - len(some))] for some in keys])
