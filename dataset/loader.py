"""Data loaders whose order changes from epoch to epoch while their workers stay."""

import torch
from torch.utils.data import DataLoader

from dataset.images import worker_init


class EpochBatches:
    """A batch sampler that plays the batches it was given for an epoch, as lists of (epoch, index)."""

    def __init__(self):
        self.epoch, self.batches = 0, []

    def play(self, epoch, batches):
        """batches: an iterable of lists of indices, with a length."""
        self.epoch, self.batches = epoch, batches

    def __iter__(self):
        for batch in self.batches:
            yield [(self.epoch, index) for index in batch]

    def __len__(self):
        return len(self.batches)


def create_loader(dataset, batches, num_workers, device):
    """A loader over `dataset` in the order of `batches` (any batch sampler), with workers that outlive an epoch.

    It takes no number from torch's default generator, so that a run does not depend on when loaders are made.
    """
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=dataset.collate,
                      pin_memory=device.type == 'cuda', persistent_workers=num_workers > 0,
                      worker_init_fn=worker_init, generator=torch.Generator())
