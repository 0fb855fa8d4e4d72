"""Another grouping than GRIT's chains, by Cuthill-McKee: Global Contrastive Batch Sampling (arXiv 2210.12874).

Sparsify the similarities of a sub-queue to a graph of similar examples, and number its nodes so that the ends of every
edge are near each other: a small bandwidth. Consecutive mini-batches then contain the edges.

Legend: M examples in a sub-queue, D feature width.
"""

import importlib.util
import math

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError

GROUPINGS = ('chain', 'cuthill_mckee')

# Edges from each example. Together with the edges from others to it an example has 32 to 64 neighbors on average, about
# a mini-batch. A number per example bounds the graph, and leaves no example without neighbors.
NEIGHBORS = 32


def require_grouping(name: str) -> None:
    """InputError if there is no such grouping, or if it needs SciPy, which this project does not require."""
    if name not in GROUPINGS:
        raise InputError(f'grit_grouping {name!r}: there is no such grouping; give one of {", ".join(GROUPINGS)}')
    if name == 'cuthill_mckee' and importlib.util.find_spec('scipy') is None:
        raise InputError('grit_grouping: cuthill_mckee needs SciPy; pip install scipy, or set grit_grouping: chain')


def cuthill_mckee_order(image_feat: Tensor, text_feat: Tensor) -> Tensor:
    """image_feat [M, D], text_feat [M, D], both finite, M > 0 -> order [M] int64, on their device; a permutation.

    The similarity of a pair is the mean of both directions, because the losses of a mini-batch use both. SciPy numbers
    the nodes on the CPU, so the host waits for a GPU here.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    size = len(image_feat)
    edges = min(NEIGHBORS, size - 1)
    sim = torch.mm(image_feat, text_feat.t(), out=image_feat.new_empty(size, size))
    sim = (sim + sim.t()).fill_diagonal_(-math.inf)  # [M, M], twice the mean
    nearest = sim.topk(edges, sorted=False).indices.sort().values.cpu().numpy()  # [M, edges]
    graph = csr_matrix((np.ones(nearest.size, bool), nearest.ravel(), np.arange(size + 1) * edges), shape=(size, size))
    order = reverse_cuthill_mckee((graph + graph.T).tocsr(), symmetric_mode=True)
    return torch.from_numpy(order.astype(np.int64)).to(image_feat.device)
