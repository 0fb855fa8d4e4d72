"""What every training set shares: an example's own randomness, and what happens when its image cannot be read."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from dataset.images import BadImage
from dataset.transforms import example_rng
from utils import distributed
from utils.log import say

ATTEMPTS = 20  # examples tried in place of a bad one before giving up
ALLOWED_SHARE = 0.01


class Text(NamedTuple):
    """A batch of texts: two of [B, L] int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device):
        return Text(*(part.to(device, non_blocking=True) for part in self))


def tokenize(tokenizer, texts, max_length=None):
    """Texts -> Text, padded to the longest; cut at max_length tokens where one is given."""
    tokens = tokenizer(texts, padding='longest', truncation=max_length is not None, max_length=max_length,
                       return_tensors='pt')
    return Text(tokens.input_ids, tokens.attention_mask)


def tokenize_whole(tokenizer, texts, positions):
    """Texts -> Text, padded to the longest; cut only where the model has no more `positions`, which is said once."""
    text = tokenize(tokenizer, texts)
    if text.input_ids.shape[1] <= positions:
        return text
    _say_cut(positions)
    return Text(*(part[:, :positions] for part in text))


@functools.cache
def _say_cut(positions):
    say(f'texts longer than {positions} tokens are cut there: bert_config.max_position_embeddings holds no more')


class TrainingSet(Dataset):
    """Examples by (epoch, index). A subclass has `table` (annotations) and `example(index, rng) -> dict`.

    Everything random about an example comes from (seed, epoch, index), so it does not depend on the number of workers.
    An image that cannot be read is an error, or, with on_bad_image 'skip', another example takes its place; the batch then
    says so (`index` differs from `requested`, and `bad` names it).
    """

    def __init__(self, table, seed, on_bad_image='skip'):
        self.table, self.seed, self.on_bad_image = table, seed, on_bad_image

    def __len__(self):
        return len(self.table)

    def example(self, index, rng):
        raise NotImplementedError

    def __getitem__(self, key):
        epoch, requested = key
        index, bad = requested, []
        for _ in range(ATTEMPTS):
            rng = example_rng(self.seed, epoch, index)
            try:
                return self.example(index, rng) | {'index': index, 'requested': requested, 'bad': bad}
            except BadImage as error:
                file, row = self.table.source(index)
                if self.on_bad_image == 'error':
                    raise ValueError(f'{file}, row {row}: {error}; repair the image, drop the row (`python -m dataset.prepare '
                                     'check` does), or set on_bad_image: skip') from None
                bad.append((index, f'{file}, row {row}: {error}'))
                index = int(rng.integers(len(self)))
        raise ValueError(f'{ATTEMPTS} images in a row cannot be read, the last: {bad[-1][1]}; is image_root right?')


def collate_common(examples):
    """The part of a batch that every training set has: images, indices, and what was bad."""
    return {'image': torch.stack([example['image'] for example in examples]),
            'index': torch.tensor([example['index'] for example in examples]),
            'requested': torch.tensor([example['requested'] for example in examples]),
            'bad': [item for example in examples for item in example['bad']]}


def image_key(path):
    """A number that tells images apart by their path: int64, the same in every process."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), 'little', signed=True)


class BadImages:
    """Counts the unreadable images of a run, lists them in bad_images.jsonl, and stops once they are more than 1 %.

    One bad image is always allowed. The share is of this rank's part of the data.
    """

    def __init__(self, folder, dataset_size):
        self.folder, self.share = folder, dataset_size / distributed.world_size()
        self.reasons = {}

    def record(self, bad):
        """bad: [(index, reason)] of a batch."""
        for index, reason in bad:
            if index not in self.reasons:
                self.reasons[index] = reason
                say(f'skipped: {reason}')
        if len(self.reasons) > max(1, ALLOWED_SHARE * self.share):
            name = f'bad_images.rank{distributed.rank()}.jsonl'
            self._write([self.reasons], name)
            raise ValueError(f'{len(self.reasons)} of about {self.share:.0f} images cannot be read, more than '
                             f'{ALLOWED_SHARE:.0%}, such as {next(iter(self.reasons.values()))}; {self.folder}/{name} lists '
                             'them, and `python -m dataset.prepare check` makes an annotation file without them')

    def write(self):
        """Write the list of all ranks (a collective); no file while there is nothing to list."""
        gathered = distributed.gather_objects(self.reasons)
        if gathered and any(gathered):
            self._write(gathered, 'bad_images.jsonl')

    def _write(self, parts, name):
        reasons = {index: reason for part in parts for index, reason in part.items()}
        lines = [json.dumps({'index': index, 'reason': reason}) + '\n' for index, reason in sorted(reasons.items())]
        temporary = Path(self.folder, f'.{name}.tmp')
        temporary.write_text(''.join(lines))
        os.replace(temporary, Path(self.folder, name))

    def state_dict(self):
        return {'reasons': dict(self.reasons)}

    def load_state_dict(self, state):
        self.reasons = dict(state['reasons'])


def require_images(table, paths_of, key='image_root'):
    """FileNotFoundError when none of a sample of the rows' images exists: the root is wrong, and hours would be lost.

    paths_of: row -> paths of its images.
    """
    sample = range(0, len(table), max(1, len(table) // 32))
    found = [(i, path) for i in sample for path in paths_of(table[i])]
    if found and not any(os.path.exists(path) for _, path in found):
        file, row = table.source(found[0][0])
        raise FileNotFoundError(f'{file}, row {row}: there is no image {found[0][1]}, nor any other of {len(found)} looked '
                                f'for; set {key} to the folder that the annotations\' paths start from')
