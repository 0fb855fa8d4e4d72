"""NLVR2: statements about two images, to train on and to judge."""

import os

import torch
from torch.utils.data import Dataset

from dataset.annotations import load_annotations
from dataset.images import BadImage
from dataset.text import pre_caption
from dataset.training_set import TrainingSet, collate_common, require_images, tokenize_whole
from dataset.transforms import eval_transform, train_transform

MAX_WORDS = 30


class Statements:
    """What training and evaluation share: rows {sentence, label, images: [left, right]} and their texts."""

    def __init__(self, config, files, tokenizer):
        self.table = load_annotations(files, 'nlvr', config['annotation_cache'])
        self.root, self.tokenizer = config['image_root'], tokenizer
        self.positions = config['bert_config'].get('max_position_embeddings', 512)
        require_images(self.table, self.paths)

    def paths(self, row):
        return [os.path.join(self.root, path) for path in row['images']]

    def tokenize(self, sentences):
        return tokenize_whole(self.tokenizer, [pre_caption(sentence, MAX_WORDS) for sentence in sentences], self.positions)


def lay_out(images):
    """As the model takes them, the left images and then the right ones: [B, 2, 3, R, R] -> [2B, 3, R, R]."""
    return images.transpose(0, 1).flatten(0, 1)


class NLVRDataset(TrainingSet):
    """Training rows; the two images of a row are augmented independently.

    A batch: images [2B, 3, R, R] float32, text (`Text`, [B, L]), targets [B] int64 (1 = true), index [B] int64.
    """

    def __init__(self, config, tokenizer, seed):
        self.statements = Statements(config, config['train_file'], tokenizer)
        super().__init__(self.statements.table, seed, config['on_bad_image'])
        self.transform = train_transform(config)

    def example(self, index, rng):
        row = self.table[index]
        images = torch.stack([self.transform(path, rng) for path in self.statements.paths(row)])  # [2, 3, R, R]
        return {'image': images, 'sentence': row['sentence'], 'label': row['label']}

    def collate(self, examples):
        batch = collate_common(examples)
        return batch | {'images': lay_out(batch.pop('image')),
                        'text': self.statements.tokenize([example['sentence'] for example in examples]),
                        'targets': torch.tensor([int(example['label']) for example in examples])}


class NLVREvalDataset(Dataset):
    """The rows of a split, in order, each to be judged once.

    A batch: images [2B, 3, R, R] float32, text (`Text`, [B, L]), index [B] int64, bad: what is wrong with images, in words.
    An image that cannot be read is an error, or, with on_bad_image 'skip', replaced by a blank one: a figure is of all rows.
    """

    def __init__(self, config, files, tokenizer):
        self.statements = Statements(config, files, tokenizer)
        self.table, self.on_bad_image = self.statements.table, config['on_bad_image']
        self.resolution, self.transform = config['image_res'], eval_transform(config)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        row, images, bad = self.table[index], [], []
        for path in self.statements.paths(row):
            try:
                images.append(self.transform(path))
            except BadImage as error:
                file, number = self.table.source(index)
                if self.on_bad_image == 'error':
                    raise ValueError(f'{file}, row {number}: {error}; repair the image or drop the row, or set on_bad_image: '
                                     'skip to have a blank one judged in its place') from None
                bad.append(f'judged with a blank image: {file}, row {number}: {error}')
                images.append(torch.zeros(3, self.resolution, self.resolution))
        return {'images': torch.stack(images), 'sentence': row['sentence'], 'index': index, 'bad': bad}

    def collate(self, examples):
        return {'images': lay_out(torch.stack([example['images'] for example in examples])),
                'text': self.statements.tokenize([example['sentence'] for example in examples]),
                'index': torch.tensor([example['index'] for example in examples]),
                'bad': [words for example in examples for words in example['bad']]}
