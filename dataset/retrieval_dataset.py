"""Image-text retrieval: pairs to train on; images and all their captions to rank.

Legend: B pairs, n batch of an evaluation, L tokens, R resolution, NI images, NT texts.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from dataset.annotations import load_annotations
from dataset.base import EvalSet, TrainingSet, collate_common
from dataset.image_roots import require_images
from dataset.text import pre_caption
from dataset.tokens import Text, tokenize, tokenize_untruncated
from dataset.transforms import train_transform
from utils.errors import InputError
from utils.log import print_rank0

MAX_WORDS = 30
MAX_TOKENS = 30  # [CLS] included; in evaluation only: a training caption is not cut
TEXTS_PER_BATCH = 256


class RetrievalTrainDataset(TrainingSet):
    """Rows {image, caption, image_id}, one per caption.

    A batch: image [B, 3, R, R] float32, text (`Text`, [B, L]), idx [B] int64, index [B] int64. Rows of equal `image_id`
    have equal idx: the ids of all files, numbered by first appearance.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer, seed: int):
        table = load_annotations(config['train_file'], 'retrieval_train', config['annotation_cache'])
        super().__init__(table, seed, config['on_bad_image'])
        self.root, self.tokenizer = config['image_root'], tokenizer
        self.positions = config['bert_config'].get('max_position_embeddings', 512)
        self.transform = train_transform(config, len(table))
        numbers: dict[int | str, int] = {}
        ids = table.column('image_id')
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        self.idx = np.array([numbers.setdefault(image_id, len(numbers)) for image_id in ids])
        require_images(table, lambda row: [row['image']], config)

    def path(self, row: Mapping[str, Any]) -> str:
        return os.path.join(self.root, row['image'])

    def texts_at(self, index: int) -> list[str]:
        return [pre_caption(self.table[index]['caption'], MAX_WORDS)]

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        row = self.table[index]
        return {
            'image': self.transform(self.path(row), rng),
            'caption': pre_caption(row['caption'], MAX_WORDS),
            'idx': int(self.idx[index]),
        }

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        captions = [example['caption'] for example in examples]
        return collate_common(examples) | {
            'text': tokenize_untruncated(self.tokenizer, captions, self.positions),
            'idx': torch.tensor([example['idx'] for example in examples]),
        }


class RetrievalEvalDataset(EvalSet):
    """Rows {image, caption: [str, ...]}: the images of a split, in order, and the texts to be found for them. Rows may
    have COCO's ids, {image_id, caption_ids: [int, ...]}.

    Rows of the same image are one image with all their captions, where the first of them is.
    rows: [NI], the first row of each image. texts: [NT] cleaned captions, image after image. txt2img: {text: its
    image}. img2txt: {image: its texts}. A batch: image [n, 3, R, R] float32, index [n] int64, bad.
    """

    def __init__(self, config: Mapping[str, Any], split: str, tokenizer):
        super().__init__(config, split, 'retrieval_eval')
        self.root, self.tokenizer = config['image_root'], tokenizer
        self.max_tokens = min(MAX_TOKENS, self.positions)
        require_images(self.table, lambda row: [row['image']], config)
        rows_of: dict[str, list[int]] = {}
        for row, path in enumerate(self.table.column('image')):
            rows_of.setdefault(os.path.normpath(os.path.join(self.root, path)), []).append(row)
        self.rows_of = list(rows_of.values())
        self.rows = [rows[0] for rows in self.rows_of]
        if len(self) < len(self.table):
            print_rank0(f'{split}_file: {len(self.table)} rows name {len(self)} images; those of one image are merged')
        captions_of = self.table.column('caption')
        self.texts: list[str] = []
        self.txt2img: dict[int, int] = {}
        self.img2txt: dict[int, list[int]] = {}
        for image, rows in enumerate(self.rows_of):
            captions = [caption for row in rows for caption in captions_of[row]]
            self.img2txt[image] = list(range(len(self.texts), len(self.texts) + len(captions)))
            self.txt2img |= dict.fromkeys(self.img2txt[image], image)
            self.texts += [pre_caption(caption, MAX_WORDS) for caption in captions]

    def __len__(self) -> int:
        return len(self.rows)

    def source(self, index: int) -> tuple[str, int]:
        return self.table.source(self.rows[index])

    def path(self, index: int) -> str:
        """The file of an image by its number."""
        return os.path.join(self.root, self.table[self.rows[index]]['image'])

    def texts_at(self, index: int) -> list[str]:
        return [self.texts[text] for text in self.img2txt[index]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        bad: list[tuple[int, str]] = []
        return {'image': self.read_image(index, self.path(index), bad), 'index': index, 'bad': bad}

    def coco_ids(self) -> tuple[list[int], list[int]]:
        """COCO's ids of the images [NI] and of the texts [NT]. InputError for the first row that has none."""
        image_ids, caption_ids = [], []
        for rows in self.rows_of:
            for number in rows:
                row = self.table[number]
                ids = row.get('caption_ids', [])
                if not isinstance(row.get('image_id'), int) or len(ids) != len(row['caption']):
                    file, place = self.table.source(number)
                    raise InputError(
                        f"{file}, row {place}: it lacks COCO's ids ('image_id', an integer, and 'caption_ids', one for "
                        'each caption); make the file again with `python -m dataset.prepare coco dataset_coco.json`'
                    )
                caption_ids += ids
            image_ids.append(self.table[rows[0]]['image_id'])
        return image_ids, caption_ids

    def tokens(self, numbers: Iterable[int]) -> Text:
        """A batch of texts by number -> `Text` [n, L]."""
        return tokenize(self.tokenizer, [self.texts[number] for number in numbers], self.max_tokens)
