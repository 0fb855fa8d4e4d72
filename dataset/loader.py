"""Data loaders whose workers outlive an epoch, and batches on their way to the device."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dataset.base import EvalSet
from dataset.images import worker_init
from dataset.samplers import ShardBatches
from dataset.tokens import Text
from utils import distributed
from utils.log import print_rank0

ON_HOST = ('index', 'requested')  # which rows a batch holds: read on the CPU, so that nothing waits for the device


def create_loader(dataset: Dataset, batches: Iterable[list], num_workers: int, device: torch.device) -> DataLoader:
    """A loader over `dataset` in the order of `batches` (any batch sampler), with workers that outlive an epoch.

    It draws nothing from torch's default generator, so a run does not depend on when loaders are made.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=dataset.collate,
        pin_memory=device.type == 'cuda',
        persistent_workers=num_workers > 0,
        worker_init_fn=worker_init,
        generator=torch.Generator(),
    )


def evaluation_splits(
    config: Mapping[str, Any], make: Callable[[str], EvalSet], batch_size: int, device: torch.device
) -> dict[str, tuple[EvalSet, DataLoader]]:
    """{'val': (dataset, loader), 'test': ...} for the files of the configuration; a loader yields this rank's shard.

    make: the dataset of a split by its name.
    """
    splits = {}
    for name in ('val', 'test'):
        if config[f'{name}_file']:
            dataset = make(name)
            shard = ShardBatches(len(dataset), batch_size, distributed.rank(), distributed.world_size())
            splits[name] = dataset, create_loader(dataset, shard, config['num_workers'], device)
            print_rank0(f'{len(dataset)} {dataset.unit} in {name}')
    return splits


def move_batch(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors and texts on the device; `index` and `requested` stay on the CPU."""
    moved = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Text):
            moved[name] = value.to(device)
        elif torch.is_tensor(value) and name not in ON_HOST:
            moved[name] = value.to(device, non_blocking=True)
    return moved
