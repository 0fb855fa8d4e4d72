"""Momentum copies: moving averages of trained modules (MoCo, ALBEF), without gradients.

`pairs` is a list of (module, its momentum copy) of the same architecture.
"""

from collections.abc import Iterable

import torch
from torch import nn

Pairs = Iterable[tuple[nn.Module, nn.Module]]


@torch.no_grad()
def copy_to_momentum(pairs: Pairs) -> None:
    """Copy every module to its momentum copy, which takes no gradients. Call it after loading weights."""
    for module, copy in pairs:
        for parameter, source in zip(copy.parameters(), module.parameters(), strict=True):
            parameter.copy_(source)
        copy.requires_grad_(False)


@torch.no_grad()
def update_momentum(pairs: Pairs, momentum: float) -> None:
    """Move every copy towards its module, in place: m = m * momentum + p * (1 - momentum)."""
    for module, copy in pairs:
        for parameter, source in zip(copy.parameters(), module.parameters(), strict=True):
            parameter.mul_(momentum).add_(source, alpha=1 - momentum)
