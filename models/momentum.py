"""Momentum copies: networks that follow trained ones slowly (MoCo, ALBEF) and take no gradient themselves.

`pairs` is a list of (module, its momentum copy), the two built alike.
"""

import torch


@torch.no_grad()
def copy_to_momentum(pairs):
    """Give every copy its module's parameters, and exclude it from training. To be called after weights are loaded."""
    for module, copy in pairs:
        for parameter, followed in zip(copy.parameters(), module.parameters(), strict=True):
            parameter.copy_(followed)
        copy.requires_grad_(False)


@torch.no_grad()
def update_momentum(pairs, momentum):
    """Move every copy towards its module, in place: m = m * momentum + p * (1 - momentum)."""
    for module, copy in pairs:
        for parameter, followed in zip(copy.parameters(), module.parameters(), strict=True):
            parameter.mul_(momentum).add_(followed, alpha=1 - momentum)
