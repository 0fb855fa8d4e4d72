"""The running accuracy of ITM that adaptive settings follow: the negatives of ITM and the quantile of GRIT's chains."""

from torch import Tensor

from utils import distributed

DECAY = 0.95


def running_accuracy(before: Tensor, accuracy: Tensor) -> Tensor:
    """A = 0.95 A + 0.05 a after a step: before A [], accuracy a [] of this rank -> A [], the same on all ranks.

    a is averaged over all ranks (a collective). The host never waits for the device.
    """
    accuracy = distributed.all_reduce_sum(accuracy.detach().float().clone()) / distributed.world_size()
    return DECAY * before + (1 - DECAY) * accuracy
