"""What the datasets share: an example's own random generator, and unreadable images in training and in evaluation."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.annotations import Annotations, load_annotations
from dataset.images import BadImage
from dataset.tokens import report_unknown
from dataset.transforms import eval_transform, example_rng
from models.tokenization_bert import fingerprint, pack_tokenizer
from utils import distributed
from utils.errors import InputError
from utils.files import atomic_write
from utils.log import print_rank0

ATTEMPTS = 20  # examples tried in place of an unreadable one before giving up
ALLOWED_SHARE = 0.01
SAMPLED_TEXTS, FEWEST_TEXTS = 1000, 50  # texts that are tokenized before training: of all files, of each at least


class TextDataset(Dataset):
    """Examples, each of a row of `table`. A subclass has `tokenizer`, and may unite rows."""

    table: Annotations

    def __len__(self) -> int:
        return len(self.table)

    def source(self, index: int) -> tuple[str, int]:
        """The file of an example and the number of its row, the first if it has several."""
        return self.table.source(index)

    def texts_at(self, index: int) -> list[str]:
        """The texts of an example, cleaned, as the model reads them; none if it has none."""
        return []


class TrainingSet(TextDataset):
    """Examples by (epoch, index). A subclass has `tokenizer` and `example(index, rng) -> dict`.

    Everything random about an example depends on (seed, epoch, index) alone, so not on the number of workers. An
    unreadable image is an error, or, with on_bad_image 'skip', another example replaces it; the batch then reports it
    (`index` differs from `requested`, and `bad` names the image).
    """

    unit = 'pairs'  # what an example is called in messages

    def __init__(self, table: Annotations, seed: int, on_bad_image: str = 'skip'):
        self.table, self.seed, self.on_bad_image = table, seed, on_bad_image

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """What a resumed run must find as it was: {train_file: rows and digest, vocabulary: tokens and digest}."""
        return {'train_file': self.table.fingerprint(), 'vocabulary': fingerprint(self.tokenizer)}

    def packed_tokenizer(self) -> dict[str, Any]:
        """The tokenizer as plain values, for checkpoints."""
        return pack_tokenizer(self.tokenizer)

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


def report_unknown_tokens(dataset: TextDataset, key: str) -> None:
    """Print the share of [UNK] in a sample, a text of each of evenly spaced examples; see `report_unknown` (rank 0).

    key: of the configuration that names the files. It draws from no random generator.
    """
    if not distributed.is_main():
        return
    texts: dict[str, list[str]] = {}
    end = 0
    while end < len(dataset):
        start, file = end, dataset.source(end)[0]
        end = bisect_right(range(len(dataset)), False, start, key=lambda index: dataset.source(index)[0] != file)
        count = min(end - start, max(FEWEST_TEXTS, SAMPLED_TEXTS * (end - start) // len(dataset)))
        for i in range(count):
            if some := dataset.texts_at(start + i * (end - start) // count):
                texts.setdefault(file, []).append(some[i % len(some)])
    if texts:
        report_unknown(dataset.tokenizer, texts, key)


def collate_common(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a batch that every training set has: image [B, ...], index and requested [B] int64, bad."""
    return {
        'image': torch.stack([example['image'] for example in examples]),
        'index': torch.tensor([example['index'] for example in examples]),
        'requested': torch.tensor([example['requested'] for example in examples]),
        'bad': [item for example in examples for item in example['bad']],
    }


class EvalSet(TextDataset):
    """The rows of a split, in order, each to be evaluated once.

    A subclass has `__getitem__`, which reads images with `read_image`. An unreadable image is an error, or, with
    on_bad_image 'skip', replaced by a blank one and reported in `bad`: metrics are always over all rows. Too many of
    them are an error in any case: see `BlankImages`.

    Legend: B rows, R image resolution.
    """

    unit = 'images'  # what a row is called in messages
    images_per_row = 1

    def __init__(self, config: Mapping[str, Any], split: str, kind: str):
        self.split, self.table = split, load_annotations(config[f'{split}_file'], kind, config['annotation_cache'])
        self.on_bad_image, self.resolution = config['on_bad_image'], config['image_res']
        self.transform = eval_transform(config, len(self.table) * self.images_per_row)
        self.positions = config['bert_config'].get('max_position_embeddings', 512)

    def read_image(self, index: int, path: str, bad: list[tuple[int, str]]) -> torch.Tensor:
        """The image of a row, [3, R, R] float32; if it is unreadable a blank one, and `bad` gets (index, reason)."""
        try:
            return self.transform(path)
        except BadImage as error:
            file, number = self.source(index)
            if self.on_bad_image == 'error':
                raise InputError(
                    f'{file}, row {number}: {error}; repair the image, drop the row, or set on_bad_image: skip to '
                    'evaluate the row with a blank image'
                ) from None
            bad.append((index, f'{file}, row {number}: {error}'))
            return torch.zeros(3, self.resolution, self.resolution)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """image [B, ...] float32, index [B] int64, bad: [(index, reason)] of unreadable images."""
        return {
            'image': torch.stack([example['image'] for example in examples]),
            'index': torch.tensor([example['index'] for example in examples]),
            'bad': [item for example in examples for item in example['bad']],
        }


def allowed_of(images: float) -> float:
    """How many of so many images may be unreadable: 1 %, and one in any case."""
    return max(1, ALLOWED_SHARE * images)


class BlankImages:
    """The unreadable images of one evaluation of a split: they are listed, or the evaluation stops at more than 1 %.

    One is always allowed, but not if there is only one. The share is relative to all images of the split, whatever the
    number of processes.
    """

    def __init__(self, dataset: EvalSet):
        self.dataset, self.total = dataset, len(dataset) * dataset.images_per_row
        self.found: list[tuple[int, str]] = []

    def record(self, bad: Iterable[tuple[int, str]]) -> None:
        """bad: [(index, reason)] of a batch of this rank. InputError if this rank alone has too many for the split."""
        self.found += bad
        self._refuse_many(self.found, 'at least ')

    def report(self) -> None:
        """After the last batch: list those of all ranks. InputError on every rank for too many (a collective)."""
        parts = distributed.gather_objects(self.found)
        distributed.main_first(lambda: self._print(sorted(sum(parts, []))))

    def _print(self, found: Sequence[tuple[int, str]]) -> None:
        self._refuse_many(found)
        for _, reason in found:
            print_rank0(f'evaluated with a blank image: {reason}')

    def _refuse_many(self, found: Sequence[tuple[int, str]], at_least: str = '') -> None:
        if len(found) > allowed_of(self.total) or len(found) == self.total:
            raise InputError(
                f'{at_least}{len(found)} of the {self.total} images that the rows of {self.dataset.split}_file name '
                f'cannot be read, more than {ALLOWED_SHARE:.0%}, the first: {found[0][1]}; restore the images, or '
                'evaluate the annotation file without them that `python -m dataset.prepare check` makes'
            )


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
        if len(self.reasons) > allowed_of(self.shard_size):
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

    def redistribute(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue with the states of another number of ranks: every rank takes its shard of what they found."""
        reasons = sorted({index: reason for state in states for index, reason in state['reasons'].items()}.items())
        self.reasons = dict(reasons[distributed.rank() :: distributed.world_size()])
