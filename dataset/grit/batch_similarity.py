"""How hard the batches were: the similarity of neighbors in them, compared with any two examples of the epoch.

Legend: N examples of a batch, E embedding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils import distributed


class BatchSimilarity:
    """Mean image-text cosine similarity of neighbors in the batches of an epoch, and of random pairs.

    Neighbors are consecutive examples of a batch, the image of one with the text of the other in both directions: what
    GRIT's chain puts next to each other. Random pairs are all pairs of different examples of the epoch; their mean
    follows from the sums of all features, so it costs O(N E) per batch and is exact. Only `epoch` waits for the device.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.sums = None  # [2 + 2E]: neighbors' similarities, own pairs' similarities, image features, text features
        self.adjacent = self.count = 0

    def update(self, image_feat: Tensor, text_feat: Tensor) -> None:
        """image_feat, text_feat: [N, E], normalized, in the order of the batch; what is not finite counts as 0."""
        image_feat, text_feat = (feat.double().nan_to_num(0, 0, 0) for feat in (image_feat, text_feat))
        neighbors = (image_feat[:-1] * text_feat[1:]).sum() + (text_feat[:-1] * image_feat[1:]).sum()
        own = (image_feat * text_feat).sum()
        row = torch.cat([torch.stack([neighbors, own]), image_feat.sum(dim=0), text_feat.sum(dim=0)])
        self.sums = row if self.sums is None else self.sums.to(row.device) + row
        self.adjacent += 2 * (len(image_feat) - 1)
        self.count += len(image_feat)

    def epoch(self) -> tuple[float, float]:
        """(similarity of neighbors, of random pairs) over the epoch and all ranks (a collective)."""
        counts = self.sums.new_tensor([self.adjacent, self.count])
        sums = distributed.all_reduce_sum(torch.cat([counts, self.sums]))
        adjacent, count, neighbors, own = sums[:4].tolist()
        image_sum, text_sum = sums[4:].chunk(2)
        random_pairs = (image_sum @ text_sum).item() - own
        return neighbors / max(adjacent, 1), random_pairs / max(count * (count - 1), 1)

    def state_dict(self) -> dict[str, Any]:
        return {'sums': None if self.sums is None else self.sums.cpu(), 'adjacent': self.adjacent, 'count': self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums, self.adjacent, self.count = state['sums'], state['adjacent'], state['count']
