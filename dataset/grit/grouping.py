"""GRIT's grouping (arXiv 2208.04060): order a queue of examples so that neighbors are hard for one another.

A full queue is shuffled (`example_shuffle`) and cut into sub-queues of M examples; each sub-queue becomes one chain of
similar neighbors (`group_by_similarity`). The chains, one after another, are the order of the next epoch, in which
mini-batches are permuted (`mini_batch_shuffle`).

Legend: L queue length, M search space (examples in a sub-queue), G sub-queues grouped together, D feature width,
S batches in an epoch, N batch size.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Generator, Tensor

from dataset.grit.cuthill_mckee import cuthill_mckee_order, require_grouping
from utils.errors import InputError

# Memory for the similarities, in both directions, of the sub-queues that step together: 9 of them at M = 1,920.
# A single sub-queue is always grouped, however large (8 * M * M bytes).
SIMILARITY_BYTES = 256 * 2**20

# Features are clamped to +-FEATURE_LIMIT so that no similarity overflows; unit vectors are far below it.
FEATURE_LIMIT = 1e15


def generator_for(*key: int | str) -> Generator:
    """A CPU generator that depends on `key` alone and shares its state with nothing."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, 'little'))


def example_shuffle(n: int, generator: Generator) -> Tensor:
    """A random order [n] (int64, CPU) of the numbers 0 to n - 1."""
    return torch.randperm(n, generator=generator)


def mini_batch_shuffle(order: Tensor, batch_size: int, generator: Generator) -> Tensor:
    """order [S * N] -> [S * N]: permute the batches of N = `batch_size`; their contents stay."""
    batches = order.view(-1, batch_size)  # [S, N]
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


def group_by_similarity(image_feat: Tensor, text_feat: Tensor, start: int, quantile: float = 1.0) -> Tensor:
    """The paper's chain of similar neighbors: image_feat [M, D], text_feat [M, D] -> order [M] int64, on their device.

    The second example is the unused one whose text is most similar to the image of `start`; the third is the unused one
    whose image is most similar to the text of the second; image and text alternate. Ties go to the lowest number. The
    order is a permutation whatever the features hold; NaN counts as 0.

    start: the first example's number. quantile: of similarity, at which each step takes one of the unused candidates; 1
    is the most similar, 0 the least; see `_ranks`. InputError if there is no such example or quantile.
    """
    start = int(start)
    if not 0 <= start < len(image_feat):
        raise InputError(f'start {start} must be one of the {len(image_feat)} examples, counted from 0')
    members = torch.arange(len(image_feat), device=image_feat.device)
    return _group_together(image_feat, text_feat, members[None], members[start : start + 1], quantile)[0]


def group_queue(
    image_feat: Tensor,
    text_feat: Tensor,
    search_space: int,
    generator: Generator,
    quantile: float = 1.0,
    grouping: str = 'chain',
) -> Tensor:
    """Group a queue: image_feat [L, D], text_feat [L, D] -> positions in the queue [L] int64, on the features' device.

    The queue is shuffled and cut into sub-queues of M = `search_space` examples, of which the last may be shorter; each
    becomes one chain from a random start, without the host waiting for a GPU. `generator` is a CPU generator.

    quantile: see `group_by_similarity`. grouping: with `cuthill_mckee` the sub-queues are ordered by
    `cuthill_mckee_order` instead: no quantile, and the host waits. InputError if there is no such quantile or grouping.
    """
    require_grouping(grouping)
    order = example_shuffle(len(image_feat), generator)
    complete = len(order) - len(order) % search_space
    grouped = []
    for members in (order[:complete].view(-1, search_space), order[complete:].view(1, -1)):
        starts = torch.randint(max(1, members.shape[1]), (len(members),), generator=generator)  # [G]
        members, starts = (x.to(image_feat.device, non_blocking=True) for x in (members, starts))
        if grouping == 'chain':
            members = _group_together(image_feat, text_feat, members, starts, quantile)
        else:
            members = _group_one_by_one(image_feat, text_feat, members)
        grouped.append(members.flatten())
    return torch.cat(grouped)


@torch.no_grad()
def _group_one_by_one(image_feat: Tensor, text_feat: Tensor, members: Tensor) -> Tensor:
    """members [G, M]: positions in the queue -> members [G, M], each row in the order of Cuthill-McKee."""
    if members.numel() == 0:
        return members
    dtype = torch.promote_types(image_feat.dtype, torch.float32)
    return torch.stack(
        [row[cuthill_mckee_order(_finite(image_feat[row], dtype), _finite(text_feat[row], dtype))] for row in members]
    )


@torch.no_grad()
def _group_together(image_feat: Tensor, text_feat: Tensor, members: Tensor, starts: Tensor, quantile: float) -> Tensor:
    """members [G, M]: positions in the queue, starts [G]: columns of `members` -> members in the order of their chains.

    As many sub-queues step together as their similarities fit in SIMILARITY_BYTES, but at least one.
    """
    groups, size = members.shape
    ranks = _ranks(size, quantile)
    if members.numel() == 0:
        return members
    dtype = torch.promote_types(image_feat.dtype, torch.float32)
    at_once = max(1, SIMILARITY_BYTES // (2 * dtype.itemsize * size**2))
    blocks = math.ceil(groups / at_once)
    sim = image_feat.new_empty(2, math.ceil(groups / blocks), size, size, dtype=dtype)  # image to text, text to image
    chains = []
    for block, start in zip(members.tensor_split(blocks), starts.tensor_split(blocks), strict=True):
        sim = sim[:, : len(block)]
        _similarities(_finite(image_feat[block], dtype), _finite(text_feat[block], dtype), *sim)
        chains.append(block.gather(1, _chain(*sim, start, ranks)))
    return torch.cat(chains)


def _similarities(image_feat: Tensor, text_feat: Tensor, sim_i2t: Tensor, sim_t2i: Tensor) -> None:
    """image_feat [G, M, D], text_feat [G, M, D] -> sim_i2t [G, M, M], sim_t2i [G, M, M], in place.

    One product serves both directions: the second is its transpose, copied so that its rows are contiguous.
    Sub-queues are multiplied one by one, so that the bits of a chain do not depend on how many step together.
    """
    for image, text, i2t, t2i in zip(image_feat, text_feat, sim_i2t, sim_t2i, strict=True):
        torch.mm(image, text.t(), out=i2t)
        t2i.copy_(i2t.t())


def _finite(feat: Tensor, dtype: torch.dtype) -> Tensor:
    """Replace NaN by 0 and clamp to +-FEATURE_LIMIT: no similarity is NaN, or as low as that of a used example."""
    return feat.to(dtype).nan_to_num(nan=0.0).clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)


def _ranks(size: int, quantile: float) -> list[int]:
    """For each step of a chain of `size` examples: the position, among all in ascending order, of the one to take.

    Used examples come first, at minus infinity. Of n unused ones the step takes the one at position q (n - 1), rounded
    to the nearest integer, a half up. Numbers of the host: both ways to step use them.
    """
    if not 0 <= quantile <= 1:
        raise InputError(f'quantile {quantile} must be a number from 0 to 1; 1 is the most similar candidate')
    return [used + math.floor(quantile * (size - used - 1) + 0.5) for used in range(1, size)]


def _chain(sim_i2t: Tensor, sim_t2i: Tensor, starts: Tensor, ranks: list[int]) -> Tensor:
    """sim_i2t [G, M, M], sim_t2i [G, M, M], starts [G] -> chains [G, M] int64; all G take each step at once.

    The paper takes the largest entry of a row of softmax scores in which used examples are set to 0. Softmax keeps the
    order of a row, so raw similarities with used examples at minus infinity give the same chain and, unlike scores,
    never underflow: no example is drawn twice, none is lost. Below the highest rank a step takes the first candidate
    that equals the one of its rank: unused, because all unused candidates are above minus infinity.
    """
    if starts.device.type != 'cpu':
        return _chain_on_gpu(sim_i2t, sim_t2i, starts, ranks)
    # These steps are too small for torch: NumPy's calls cost less, and its arg max is vectorized.
    groups, size, _ = sim_i2t.shape
    rows = sim_i2t.view(-1, size).numpy(), sim_t2i.view(-1, size).numpy()  # [G * M, M]
    first_row = np.arange(groups) * size
    used = np.zeros((groups, size), rows[0].dtype)  # 0, or -inf where an example is in the chain
    candidates = np.empty_like(used)
    chains = np.empty((size, groups), np.int64)
    chains[0] = starts
    for step, rank in enumerate(ranks):
        row = first_row + chains[step]
        used.reshape(-1)[row] = -np.inf
        np.take(rows[step % 2], row, axis=0, out=candidates, mode='clip')  # [G, M]; other modes copy once more
        candidates += used
        if rank < size - 1:
            unused = candidates[used == 0].reshape(groups, -1)  # [G, n]: many that are equal would slow `partition`
            position = rank - (size - unused.shape[1])
            wanted = np.partition(unused, position, axis=1)[:, position, None]
            (candidates == wanted).argmax(1, chains[step + 1])
        else:
            candidates.argmax(1, chains[step + 1])
    return torch.from_numpy(chains).t()


def _chain_on_gpu(sim_i2t: Tensor, sim_t2i: Tensor, starts: Tensor, ranks: list[int]) -> Tensor:
    """The same steps as five kernels each, or seven below the highest rank; the host never waits for the device."""
    groups, size, _ = sim_i2t.shape
    rows = sim_i2t.view(-1, size), sim_t2i.view(-1, size)
    first_row = torch.arange(groups, device=starts.device) * size
    used = sim_i2t.new_zeros(groups, size)
    candidates, row = torch.empty_like(used), torch.empty_like(starts)
    chains = starts.new_empty(size, groups)
    chains[0] = starts
    steps = chains.unbind()
    for step, rank in enumerate(ranks):
        torch.add(first_row, steps[step], out=row)
        used.view(-1).index_fill_(0, row, -math.inf)
        torch.index_select(rows[step % 2], 0, row, out=candidates)
        candidates.add_(used)
        if rank < size - 1:
            candidates.eq_(candidates.kthvalue(rank + 1, 1, keepdim=True).values)  # 1 where equal, else 0
        torch.argmax(candidates, 1, out=steps[step + 1])
    return chains.t()
