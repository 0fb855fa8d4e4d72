"""False negatives of ITM: pairs that are trained as negatives and match in truth, where the annotations tell the truth.

Legend: B pairs, K most images of which a text of the batch is true, R pairs that ITM trains on.

A row of pre-training may name the other images of which its captions are true (`also_true_of`, see docs/data.md). Then
a batch has `true_of` [B, K] int64: the keys of the images of which text j is true, its own first, padded with its own.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def false_negative_rate(batch: Mapping[str, Any], images: Tensor, texts: Tensor, is_match: Tensor) -> Tensor:
    """The share of the pairs trained as negatives that match in truth; 0 if there are none. No host sync.

    batch: `image_key` [B] int64 and `true_of` [B, K] int64. images, texts: [R] int64, the rows of the batch that form
    each pair. is_match: [R] bool, whether it is trained as "match". Returns [] float32.
    """
    is_true = (batch['image_key'][images, None] == batch['true_of'][texts]).any(dim=1)  # [R]
    return (is_true & ~is_match).sum().float() / (~is_match).sum().clamp(min=1)
