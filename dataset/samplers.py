"""Batch samplers: an order from any step on, the epochs of a training run, and a rank's shard of an evaluation.

Legend: N batch size, S batches of a rank in an epoch, W ranks.
"""

from collections.abc import Iterable, Iterator, Sized

from torch import Tensor


class PositionSampler:
    """The batches of `order` [S * N], each a list of N indices, from batch `start_step` on."""

    def __init__(self, order: Tensor, batch_size: int, start_step: int = 0):
        self.order, self.batch_size, self.start_step = order, batch_size, start_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, len(self.order) // self.batch_size):
            yield self.order[step * self.batch_size : (step + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        return len(self.order) // self.batch_size - self.start_step


class EpochBatches:
    """The batches that were set for an epoch, as lists of (epoch, index).

    A DataLoader with persistent workers keeps its sampler, so the batches of the next epoch are set here.
    """

    def __init__(self):
        self.epoch, self.batches = 0, []

    def set_epoch(self, epoch: int, batches: Iterable[list[int]] | Sized) -> None:
        """batches: an iterable of lists of indices, with a length."""
        self.epoch, self.batches = epoch, batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(self.epoch, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


class ShardBatches:
    """A rank's shard of 0 to n - 1 for exact distributed evaluation, in batches of fixed composition.

    Batch i is always i * N to (i + 1) * N - 1 (the last may be shorter) and belongs to rank i % W. Nothing is padded, a
    rank may have no batch, and a forward pass sees the same rows however many ranks there are.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.n, self.batch_size = n, batch_size
        self.firsts = range(rank * batch_size, n, world_size * batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in self.firsts:
            yield list(range(first, min(self.n, first + self.batch_size)))

    def __len__(self) -> int:
        return len(self.firsts)
