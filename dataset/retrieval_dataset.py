"""Image-text retrieval: pairs to train on; images and all their captions to rank.

Legend: B pairs, L tokens, R resolution, NI images, NT texts.
"""

import os

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.annotations import load_annotations
from dataset.images import BadImage
from dataset.text import pre_caption
from dataset.training_set import TrainingSet, collate_common, require_images, tokenize, tokenize_whole
from dataset.transforms import eval_transform, train_transform

MAX_WORDS = 30
MAX_TOKENS = 30  # [CLS] included, in evaluation only: a training caption is not cut
TEXTS_PER_BATCH = 256


class RetrievalTrainDataset(TrainingSet):
    """Rows {image, caption, image_id}, one for each caption.

    A batch: image [B, 3, R, R] float32, text (`Text`, [B, L]), idx [B] int64, index [B] int64. Rows of equal `image_id` have
    equal idx: the ids of all files, numbered by first appearance.
    """

    def __init__(self, config, tokenizer, seed):
        table = load_annotations(config['train_file'], 'retrieval_train', config['annotation_cache'])
        super().__init__(table, seed, config['on_bad_image'])
        self.root, self.tokenizer = config['image_root'], tokenizer
        self.positions = config['bert_config'].get('max_position_embeddings', 512)
        self.transform = train_transform(config)
        numbers = {}
        ids = table.column('image_id')
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        self.idx = np.array([numbers.setdefault(image_id, len(numbers)) for image_id in ids])
        require_images(table, lambda row: [self.path(row)])

    def path(self, row):
        return os.path.join(self.root, row['image'])

    def example(self, index, rng):
        row = self.table[index]
        return {'image': self.transform(self.path(row), rng), 'caption': pre_caption(row['caption'], MAX_WORDS),
                'idx': int(self.idx[index])}

    def collate(self, examples):
        captions = [example['caption'] for example in examples]
        return collate_common(examples) | {'text': tokenize_whole(self.tokenizer, captions, self.positions),
                                           'idx': torch.tensor([example['idx'] for example in examples])}


class RetrievalEvalDataset(Dataset):
    """Rows {image, caption: [str, ...]}: the images of a split, in order, and the texts to be found for them.

    texts: [NT] cleaned captions, image after image. txt2img: {text: its image}; img2txt: {image: its texts}.
    An image that cannot be read is an error, or, with on_bad_image 'skip', replaced by a blank one: recall is of all rows.
    """

    def __init__(self, config, files, tokenizer):
        self.table = load_annotations(files, 'retrieval_eval', config['annotation_cache'])
        self.root, self.tokenizer, self.on_bad_image = config['image_root'], tokenizer, config['on_bad_image']
        self.resolution, self.transform = config['image_res'], eval_transform(config)
        self.max_tokens = min(MAX_TOKENS, config['bert_config'].get('max_position_embeddings', 512))
        require_images(self.table, lambda row: [self.path(row)])
        self.texts, self.txt2img, self.img2txt = [], {}, {}
        for image, captions in enumerate(self.table.column('caption')):
            self.img2txt[image] = list(range(len(self.texts), len(self.texts) + len(captions)))
            self.txt2img |= dict.fromkeys(self.img2txt[image], image)
            self.texts += [pre_caption(caption, MAX_WORDS) for caption in captions]

    def path(self, row):
        return os.path.join(self.root, row['image'])

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        try:
            return {'image': self.transform(self.path(self.table[index])), 'bad': []}
        except BadImage as error:
            file, number = self.table.source(index)
            if self.on_bad_image == 'error':
                raise ValueError(f'{file}, row {number}: {error}; repair the image, drop the row, or set on_bad_image: skip '
                                 'to have a blank one ranked in its place') from None
            return {'image': torch.zeros(3, self.resolution, self.resolution),
                    'bad': [f'ranked with a blank image: {file}, row {number}: {error}']}

    def collate(self, examples):
        """image [n, 3, R, R] float32; bad: what is wrong with images, in words."""
        return {'image': torch.stack([example['image'] for example in examples]),
                'bad': [words for example in examples for words in example['bad']]}

    def tokens(self, numbers):
        """A batch of texts by number -> `Text` [n, L]."""
        return tokenize(self.tokenizer, [self.texts[number] for number in numbers], self.max_tokens)
