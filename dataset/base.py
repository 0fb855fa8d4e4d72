"""What the datasets share: an example's own random generator, and unreadable images in training and in evaluation."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.annotations import Annotations, load_annotations
from dataset.images import BadImage
from dataset.transforms import eval_transform, example_rng
from utils import distributed
from utils.errors import InputError, MissingFileError
from utils.files import atomic_write
from utils.log import print_rank0

ATTEMPTS = 20  # examples tried in place of an unreadable one before giving up
ALLOWED_SHARE = 0.01
SAMPLED_ROWS = 32  # rows whose images are looked for before training


class TrainingSet(Dataset):
    """Examples by (epoch, index). A subclass has `table` (annotations) and `example(index, rng) -> dict`.

    Everything random about an example depends on (seed, epoch, index) alone, so not on the number of workers. An
    unreadable image is an error, or, with on_bad_image 'skip', another example replaces it; the batch then reports it
    (`index` differs from `requested`, and `bad` names the image).
    """

    unit = 'pairs'  # what an example is called in messages

    def __init__(self, table: Annotations, seed: int, on_bad_image: str = 'skip'):
        self.table, self.seed, self.on_bad_image = table, seed, on_bad_image

    def __len__(self) -> int:
        return len(self.table)

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, requested = key
        index, bad = requested, []
        for _ in range(ATTEMPTS):
            rng = example_rng(self.seed, epoch, index)
            try:
                return self.example(index, rng) | {'index': index, 'requested': requested, 'bad': bad}
            except BadImage as error:
                file, row = self.table.source(index)
                if self.on_bad_image == 'error':
                    raise InputError(
                        f'{file}, row {row}: {error}; repair the image, drop the row (`python -m dataset.prepare '
                        'check` does), or set on_bad_image: skip'
                    ) from None
                bad.append((index, f'{file}, row {row}: {error}'))
                index = int(rng.integers(len(self)))
        raise InputError(f'{ATTEMPTS} images in a row cannot be read, the last: {bad[-1][1]}; is image_root right?')


def collate_common(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a batch that every training set has: image [B, ...], index and requested [B] int64, bad."""
    return {
        'image': torch.stack([example['image'] for example in examples]),
        'index': torch.tensor([example['index'] for example in examples]),
        'requested': torch.tensor([example['requested'] for example in examples]),
        'bad': [item for example in examples for item in example['bad']],
    }


class EvalSet(Dataset):
    """The rows of a split, in order, each to be evaluated once.

    A subclass has `__getitem__`, which reads images with `read_image`. An unreadable image is an error, or, with
    on_bad_image 'skip', replaced by a blank one with a warning in `bad`: metrics are always over all rows.

    Legend: B rows, R image resolution.
    """

    unit = 'images'  # what a row is called in messages

    def __init__(self, config: Mapping[str, Any], split: str, kind: str):
        self.split, self.table = split, load_annotations(config[f'{split}_file'], kind, config['annotation_cache'])
        self.on_bad_image, self.resolution = config['on_bad_image'], config['image_res']
        self.transform = eval_transform(config)
        self.positions = config['bert_config'].get('max_position_embeddings', 512)

    def __len__(self) -> int:
        return len(self.table)

    def read_image(self, index: int, path: str, bad: list[str]) -> torch.Tensor:
        """The image of a row, [3, R, R] float32; if it is unreadable a blank one, and a warning is added to `bad`."""
        try:
            return self.transform(path)
        except BadImage as error:
            file, number = self.table.source(index)
            if self.on_bad_image == 'error':
                raise InputError(
                    f'{file}, row {number}: {error}; repair the image, drop the row, or set on_bad_image: skip to '
                    'evaluate the row with a blank image'
                ) from None
            bad.append(f'evaluated with a blank image: {file}, row {number}: {error}')
            return torch.zeros(3, self.resolution, self.resolution)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """image [B, ...] float32, index [B] int64, bad: warnings about unreadable images."""
        return {
            'image': torch.stack([example['image'] for example in examples]),
            'index': torch.tensor([example['index'] for example in examples]),
            'bad': [line for example in examples for line in example['bad']],
        }


def image_key(path: str) -> int:
    """A number that distinguishes images by their path: int64, the same in every process."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), 'little', signed=True)


class BadImages:
    """Counts the unreadable images of a run, lists them in bad_images.jsonl, and stops the run at more than 1 %.

    One is always allowed. The share is relative to this rank's part of the data.
    """

    def __init__(self, folder: str, dataset_size: int):
        self.folder, self.shard_size = folder, dataset_size / distributed.world_size()
        self.reasons: dict[int, str] = {}

    def record(self, bad: Iterable[tuple[int, str]]) -> None:
        """bad: [(index, reason)] of a batch. InputError beyond the allowed share."""
        for index, reason in bad:
            if index not in self.reasons:
                self.reasons[index] = reason
                print_rank0(f'skipped: {reason}')
        if len(self.reasons) > max(1, ALLOWED_SHARE * self.shard_size):
            name = f'bad_images.rank{distributed.rank()}.jsonl'
            self._write([self.reasons], name)
            raise InputError(
                f'{len(self.reasons)} of about {self.shard_size:.0f} images cannot be read, more than '
                f'{ALLOWED_SHARE:.0%}, such as {next(iter(self.reasons.values()))}; '
                f'{self.folder}/{name} lists them, and `python -m dataset.prepare check` makes an annotation file '
                'without them'
            )

    def write(self) -> None:
        """Write the list of all ranks (a collective); no file if there is nothing to list."""
        gathered = distributed.gather_objects(self.reasons)
        if gathered and any(gathered):
            self._write(gathered, 'bad_images.jsonl')

    def _write(self, parts: Iterable[Mapping[int, str]], name: str) -> None:
        reasons = {index: reason for part in parts for index, reason in part.items()}
        with atomic_write(Path(self.folder, name)) as file:
            file.writelines(
                json.dumps({'index': index, 'reason': reason}) + '\n' for index, reason in sorted(reasons.items())
            )

    def state_dict(self) -> dict[str, Any]:
        return {'reasons': dict(self.reasons)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reasons = dict(state['reasons'])


def require_images(table: Annotations, paths_of: Callable[[dict], list[str]], key: str = 'image_root') -> None:
    """InputError if none of a sample of the rows' images exists: the root is wrong, and hours would be lost.

    paths_of: row -> paths of its images. key: the configuration key that holds the root.
    """
    sample = range(0, len(table), max(1, len(table) // SAMPLED_ROWS))
    found = [(index, path) for index in sample for path in paths_of(table[index])]
    if found and not any(os.path.exists(path) for _, path in found):
        file, row = table.source(found[0][0])
        raise MissingFileError(
            f'{file}, row {row}: there is no image {found[0][1]}, nor any other of {len(found)} looked for; set {key} '
            'to the folder that the paths of the annotations start from'
        )
