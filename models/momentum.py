"""Momentum copies: moving averages of trained parts (MoCo, ALBEF), and a queue of the features that they computed.

Legend: B pairs, E embedding, Q queue, C = B + Q candidates.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import losses
from utils import distributed

Pair = tuple[Tensor, Tensor]


class MomentumModel(nn.Module):
    """A model in which the parts that `COPIED` names may have a momentum copy, `NAME_m`, which takes no gradients."""

    COPIED: tuple[str, ...] = ()

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """[(part, its momentum copy)]; empty if the model has no copies."""
        return [(getattr(self, name), getattr(self, f'{name}_m')) for name in self.COPIED if hasattr(self, f'{name}_m')]

    def create_copies(self) -> None:
        """Give every part its momentum copy.

        It draws from no random generator, unlike the models that make their copies like the parts and then copy the
        weights: their seeds give the numbers they always gave.
        """
        for name in self.COPIED:
            setattr(self, f'{name}_m', deepcopy(getattr(self, name)).requires_grad_(False))

    @torch.no_grad()
    def copy_momentum(self) -> None:
        """Copy the current weights to the momentum copies, if there are any. Call it after loading weights."""
        for part, copy in self.momentum_pairs():
            for parameter, source in zip(copy.parameters(), part.parameters(), strict=True):
                parameter.copy_(source)
            copy.requires_grad_(False)

    @torch.no_grad()
    def update_momentum(self) -> None:
        """Move every copy towards its part, in place: copy = m * copy + (1 - m) * part, with m = `self.momentum`."""
        copies, parts = [], []
        for part, copy in self.momentum_pairs():
            copies += copy.parameters()
            parts += part.parameters()
        if copies:  # few kernels for all of them
            torch._foreach_mul_(copies, self.momentum)
            torch._foreach_add_(copies, parts, alpha=1 - self.momentum)


class QueueModel(MomentumModel):
    """Momentum encoders of image and text, and a queue of their features: further candidates of ITC.

    The queue holds `image_queue` and `text_queue` [E, Q], normalized; `queue_ptr` [1], where the next features go; and
    in fine-tuning `idx_queue` [1, Q], which image each feature belongs to.
    """

    COPIED = ('visual_encoder', 'vision_proj', 'text_encoder', 'text_proj')

    def create_queue(self, width: int, size: int, with_idx: bool = False) -> None:
        """A queue of `size` random features of `width`, which belong to no image (-100): nobody's positive."""
        self.register_buffer('image_queue', F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer('text_queue', F.normalize(torch.randn(width, size), dim=0))
        if with_idx:
            self.register_buffer('idx_queue', torch.full((1, size), -100))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.int64))

    def candidates(self, image_feat_m: Tensor, text_feat_m: Tensor) -> tuple[Tensor, Tensor]:
        """Momentum features of the batch [B, E], then the queue's -> images and texts, both [C, E]."""
        return torch.cat([image_feat_m, self.image_queue.t()]), torch.cat([text_feat_m, self.text_queue.t()])

    @torch.no_grad()
    def soft_targets(self, targets: Pair, feats_m: Pair, candidates: Pair, alpha: float) -> Pair:
        """Targets of ITC mixed with the momentum model's predictions, which weigh `alpha`: two of [B, C].

        All are pairs. targets: [B, C], image to text and text to image. feats_m: momentum features of the batch [B, E],
        image and text. candidates: [C, E], images and texts.
        """
        of_both = zip(feats_m, candidates[::-1], strict=True)
        sims = (losses.scaled_products(feat, other, self.temp) for feat, other in of_both)
        soft = [alpha * sim.softmax(dim=1) + (1 - alpha) * target for sim, target in zip(sims, targets, strict=True)]
        return soft[0], soft[1]

    @torch.no_grad()
    def enqueue(self, image_feat: Tensor, text_feat: Tensor, idx: Tensor | None = None) -> None:
        """Put all ranks' features [B, E] and, if the queue has them, idx [B] into the queue; they replace the oldest.

        All ranks have batches of one size. Any size fits: after the end of the queue a batch continues at the
        beginning; of more than Q only the last Q stay. What is not finite counts as 0, for it would stay in every loss
        until it is replaced.
        """
        feats = torch.cat([image_feat, text_feat], dim=1).nan_to_num(0, 0, 0)  # [B, 2E]
        feats = distributed.all_gather_rows(feats)  # of all ranks
        size = self.image_queue.shape[1]
        positions = ((self.queue_ptr + torch.arange(len(feats), device=feats.device)) % size)[-size:]
        self.image_queue[:, positions], self.text_queue[:, positions] = feats[-size:].t().chunk(2)
        if idx is not None:
            self.idx_queue[:, positions] = distributed.all_gather_rows(idx)[-size:]
        self.queue_ptr.copy_((self.queue_ptr + len(feats)) % size)
