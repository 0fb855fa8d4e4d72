"""NLVR2: statements about two images, to train on and to evaluate.

Legend: B statements, L tokens, R resolution.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dataset.annotations import load_annotations
from dataset.base import EvalSet, TrainingSet, collate_common
from dataset.image_roots import require_images
from dataset.text import pre_caption
from dataset.tokens import Text, tokenize_untruncated
from dataset.transforms import train_transform
from utils.errors import InputError

MAX_WORDS = 30


class StatementTokenizer:
    """Sentences -> `Text` [B, L]: cleaned, 30 words at most, cut in tokens only at the last position embedding."""

    def __init__(self, config: Mapping[str, Any], tokenizer):
        self.tokenizer = tokenizer
        self.positions = config['bert_config'].get('max_position_embeddings', 512)

    def __call__(self, sentences: Sequence[str]) -> Text:
        cleaned = [pre_caption(sentence, MAX_WORDS) for sentence in sentences]
        return tokenize_untruncated(self.tokenizer, cleaned, self.positions)


def image_paths(row: Mapping[str, Any], root: str) -> list[str]:
    return [os.path.join(root, path) for path in row['images']]


def left_then_right(images: torch.Tensor) -> torch.Tensor:
    """The order that the model takes, the left images and then the right ones: [B, 2, 3, R, R] -> [2B, 3, R, R]."""
    return images.transpose(0, 1).flatten(0, 1)


class NLVRDataset(TrainingSet):
    """Training rows {sentence, label, images: [left, right]}; the two images of a row are augmented independently.

    A batch: images [2B, 3, R, R] float32, text (`Text`, [B, L]), targets [B] int64 (1 = true), index [B] int64.
    """

    unit = 'statements'

    def __init__(self, config: Mapping[str, Any], tokenizer, seed: int):
        table = load_annotations(config['train_file'], 'nlvr', config['annotation_cache'])
        super().__init__(table, seed, config['on_bad_image'])
        self.root, self.tokenizer = config['image_root'], tokenizer
        self.tokenize = StatementTokenizer(config, tokenizer)
        self.transform = train_transform(config, 2 * len(table))
        has_label = table.holding('label')
        if not has_label.all():
            file, row = table.source(int(has_label.argmin()))
            remedy = 'remove them' if has_label.any() else "the key of labels is 'label'"
            raise InputError(
                f'{file}: row {row} has no label, and {(~has_label).sum()} of {len(table)} training rows have none; '
                f'{remedy}, or name another file in train_file'
            )
        require_images(table, lambda row: row['images'], config)

    def texts_at(self, index: int) -> list[str]:
        return [pre_caption(self.table[index]['sentence'], MAX_WORDS)]

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        row = self.table[index]
        images = torch.stack([self.transform(path, rng) for path in image_paths(row, self.root)])  # [2, 3, R, R]
        return {'image': images, 'sentence': row['sentence'], 'label': row['label']}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate_common(examples)
        return batch | {
            'images': left_then_right(batch.pop('image')),
            'text': self.tokenize([example['sentence'] for example in examples]),
            'targets': torch.tensor([int(example['label']) for example in examples]),
        }


class NLVREvalDataset(EvalSet):
    """The rows of a split. labelled: the numbers of those that have a label, [n] int64.

    A batch: images [2B, 3, R, R] float32, text (`Text`, [B, L]), index [B] int64, bad.
    """

    unit = 'statements'
    images_per_row = 2

    def __init__(self, config: Mapping[str, Any], split: str, tokenizer):
        super().__init__(config, split, 'nlvr')
        self.root, self.tokenizer = config['image_root'], tokenizer
        self.tokenize = StatementTokenizer(config, tokenizer)
        self.labelled: np.ndarray = self.table.holding('label').nonzero()[0]
        require_images(self.table, lambda row: row['images'], config)

    def texts_at(self, index: int) -> list[str]:
        return [pre_caption(self.table[index]['sentence'], MAX_WORDS)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, bad = self.table[index], []
        images = [self.read_image(index, path, bad) for path in image_paths(row, self.root)]
        return {'image': torch.stack(images), 'sentence': row['sentence'], 'index': index, 'bad': bad}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().collate(examples)
        return batch | {
            'images': left_then_right(batch.pop('image')),
            'text': self.tokenize([example['sentence'] for example in examples]),
        }
