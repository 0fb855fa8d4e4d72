"""GRIT: lay out the next epoch by this epoch's features, so that the examples of a batch are hard for one another.

While an epoch trains, its features are collected in queues of L examples. A full queue is shuffled (`example_shuffle`),
cut into sub-queues of M examples, and each sub-queue is laid out as one chain of similar neighbours (`group_queue`).
The chains, one after another, are the order of the next epoch, in which whole batches change places
(`mini_batch_shuffle`).
`GritCollector` holds the queues of one rank; which rank plays what is decided by `dataset.samplers.EpochPlan`.

Legend: L queue length, M search space (examples in a sub-queue), G sub-queues grouped together, D feature width,
S batches in an epoch, N batch size.
"""

import hashlib
import math
import time

import numpy as np
import torch

# What the similarities of the sub-queues that step together may take, both directions: room for 9 of them at M = 1,920.
# A single one is always grouped, however large (8 * M * M bytes).
SIMILARITY_BYTES = 256 * 2**20

# Features are cut to +-FEATURE_LIMIT, so that no similarity overflows; unit vectors never come near it.
FEATURE_LIMIT = 1e15


def generator_for(*key):
    """A CPU generator that depends on `key` (numbers and strings) alone and shares its state with nothing."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, 'little'))


def example_shuffle(n, generator):
    """A random order [n] (int64, CPU) of the numbers 0 to n - 1."""
    return torch.randperm(n, generator=generator)


def mini_batch_shuffle(order, batch_size, generator):
    """order [S * N] -> [S * N]: whole batches of N = `batch_size` change places, their contents stay."""
    batches = order.view(-1, batch_size)  # [S, N]
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


def group_by_similarity(image_feat, text_feat, start):
    """image_feat [M, D], text_feat [M, D], start: an example's number -> order [M] int64, on the features' device.

    The chain of the paper. The second example is the one, among those not used yet, whose text is most similar to the
    start's image; the third, the one whose image is most similar to the second's text; and so on, text for image and
    image for text by turns. Of equally similar ones the lowest number is taken. The order is a permutation whatever the
    features hold; NaN counts as 0.
    """
    start = int(start)
    if not 0 <= start < len(image_feat):
        raise ValueError(f'start is {start}, and must be one of the {len(image_feat)} examples, counted from 0')
    members = torch.arange(len(image_feat), device=image_feat.device)
    return _group_together(image_feat, text_feat, members[None], members[start:start + 1])[0]


def group_queue(image_feat, text_feat, search_space, generator):
    """image_feat [L, D], text_feat [L, D] -> order [L] int64 on the features' device: positions in the queue.

    The queue is shuffled and cut into sub-queues of M = `search_space` examples, of which the last may be shorter; each
    becomes one chain from a random start. `generator` is a CPU generator. The host never waits for a GPU here.
    """
    order = example_shuffle(len(image_feat), generator)
    whole = len(order) - len(order) % search_space
    grouped = []
    for members in (order[:whole].view(-1, search_space), order[whole:].view(1, -1)):
        starts = torch.randint(max(1, members.shape[1]), (len(members),), generator=generator)  # [G]
        members, starts = (x.to(image_feat.device, non_blocking=True) for x in (members, starts))
        grouped.append(_group_together(image_feat, text_feat, members, starts).flatten())
    return torch.cat(grouped)


@torch.no_grad()
def _group_together(image_feat, text_feat, members, starts):
    """members [G, M]: positions in the queue, starts [G]: columns of `members` -> members in the order of their chains.

    As many sub-queues step together as have room for their similarities in SIMILARITY_BYTES, but at least one.
    """
    groups, size = members.shape
    if members.numel() == 0:
        return members
    dtype = torch.promote_types(image_feat.dtype, torch.float32)
    at_once = max(1, SIMILARITY_BYTES // (2 * dtype.itemsize * size**2))
    blocks = math.ceil(groups / at_once)
    sim = image_feat.new_empty(2, math.ceil(groups / blocks), size, size, dtype=dtype)  # image to text, text to image
    chains = []
    for block, start in zip(members.tensor_split(blocks), starts.tensor_split(blocks), strict=True):
        sim = sim[:, :len(block)]
        _similarities(_finite(image_feat[block], dtype), _finite(text_feat[block], dtype), *sim)
        chains.append(block.gather(1, _chain(*sim, start)))
    return torch.cat(chains)


def _similarities(image_feat, text_feat, sim_i2t, sim_t2i):
    """image_feat [G, M, D], text_feat [G, M, D] -> sim_i2t [G, M, M], sim_t2i [G, M, M], in place.

    One product serves both directions: the second is its transpose, written out so that its rows are contiguous.
    Sub-queues are multiplied one by one, so that the bits of a chain do not depend on how many step together.
    """
    for image, text, i2t, t2i in zip(image_feat, text_feat, sim_i2t, sim_t2i, strict=True):
        torch.mm(image, text.t(), out=i2t)
        t2i.copy_(i2t.t())


def _finite(feat, dtype):
    """NaN as 0 and the rest within +-FEATURE_LIMIT: no similarity is NaN, or as low as that of a used example."""
    return feat.to(dtype).nan_to_num(nan=0.0).clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)


def _chain(sim_i2t, sim_t2i, starts):
    """sim_i2t [G, M, M], sim_t2i [G, M, M], starts [G] -> chains [G, M] int64; every step is taken by all G at once.

    The paper takes the largest entry of a row of softmax scores with the used ones set to 0. Softmax keeps the order of
    a row, so the raw similarities with the used ones at minus infinity lead the same way and, unlike scores, never
    underflow: no example is drawn twice, none is lost.
    """
    if starts.device.type != 'cpu':
        return _chain_on_gpu(sim_i2t, sim_t2i, starts)
    # These steps are too small for torch: NumPy's calls cost less, and its arg max is vectorised.
    groups, size, _ = sim_i2t.shape
    rows = sim_i2t.view(-1, size).numpy(), sim_t2i.view(-1, size).numpy()  # [G * M, M]
    first_row = np.arange(groups) * size
    used = np.zeros((groups, size), rows[0].dtype)  # 0, or -inf where an example is in the chain
    candidates = np.empty_like(used)
    chains = np.empty((size, groups), np.int64)
    chains[0] = starts
    for step in range(size - 1):
        row = first_row + chains[step]
        used.reshape(-1)[row] = -np.inf
        np.take(rows[step % 2], row, axis=0, out=candidates, mode='clip')  # [G, M]; other modes copy once more
        candidates += used
        candidates.argmax(1, chains[step + 1])
    return torch.from_numpy(chains).t()


def _chain_on_gpu(sim_i2t, sim_t2i, starts):
    """The same steps as five kernels each; the host runs ahead and never waits."""
    groups, size, _ = sim_i2t.shape
    rows = sim_i2t.view(-1, size), sim_t2i.view(-1, size)
    first_row = torch.arange(groups, device=starts.device) * size
    used = sim_i2t.new_zeros(groups, size)
    candidates, row = torch.empty_like(used), torch.empty_like(starts)
    chains = starts.new_empty(size, groups)
    chains[0] = starts
    steps = chains.unbind()
    for step in range(size - 1):
        torch.add(first_row, steps[step], out=row)
        used.view(-1).index_fill_(0, row, -math.inf)
        torch.index_select(rows[step % 2], 0, row, out=candidates)
        torch.argmax(candidates.add_(used), 1, out=steps[step + 1])
    return chains.t()


class GritCollector:
    """Collects what a rank trains on in an epoch and returns it, at the end, in the order of the next.

    queue_size: L, search_space: M, both per rank. Features are kept in float32 on their own device, 8 * L * D bytes;
    the examples' indices in int64 on the CPU. All randomness is derived from (seed, epoch, rank, number of the queue),
    so that a collector restored from its state goes on as if it had never stopped.
    """

    SETTINGS = ('queue_size', 'search_space', 'seed', 'rank')

    def __init__(self, queue_size, search_space, seed, rank=0):
        self.queue_size, self.search_space, self.seed, self.rank = queue_size, search_space, seed, rank
        self.index = torch.empty(queue_size, dtype=torch.int64)  # [L]
        self.image_feat = self.text_feat = None  # [L, D], allocated when the first features say how wide and where
        self.begin_epoch(0)

    def begin_epoch(self, epoch):
        """Forget everything and collect for epoch `epoch`."""
        self.epoch = epoch
        self.filled = 0
        self.queues_grouped = 0
        self.grouping_seconds = 0.0  # up to the last finish() or state_dict()
        self._grouped = torch.empty(0, dtype=torch.int64)
        self._aside = torch.empty(0, dtype=torch.int64)
        self._on_device = []  # of each full queue: index [L] on the CPU, order [L] still on its device, stopwatch

    @torch.no_grad()
    def add(self, index, image_feat, text_feat):
        """Collect n examples (any n): index [n] int64 on the CPU, image_feat [n, D], text_feat [n, D]."""
        assert len(index) == len(image_feat) == len(text_feat)
        if self.image_feat is None or self.image_feat.device != image_feat.device:
            self._allocate(image_feat.shape[1], image_feat.device)
        while len(index):
            n = min(len(index), self.queue_size - self.filled)
            free = slice(self.filled, self.filled + n)
            self.index[free] = index[:n]
            self.image_feat[free] = image_feat[:n]
            self.text_feat[free] = text_feat[:n]
            self.filled += n
            index, image_feat, text_feat = index[n:], image_feat[n:], text_feat[n:]
            if self.filled == self.queue_size:
                self._group()

    def set_aside(self, index):
        """index [n] int64: examples that were played without features of their own (their image could not be read).

        They come last in the order, ungrouped, so that it remains a permutation of what was played.
        """
        self._aside = torch.cat([self._aside, index])

    def finish(self):
        """Group what is left in the queue -> order [n] int64 on the CPU: everything given since `begin_epoch`, once."""
        if self.filled:
            self._group()
        self._settle()
        return torch.cat([self._grouped, self._aside])

    def state_dict(self):
        """Everything since `begin_epoch`, as tensors on the CPU and plain values; of the queue only what is filled."""
        self._settle()
        state = {
            **{key: getattr(self, key) for key in self.SETTINGS},
            'epoch': self.epoch,
            'queues_grouped': self.queues_grouped,
            'grouping_seconds': self.grouping_seconds,
            'grouped': self._grouped,
            'aside': self._aside,
            'index': self.index[:self.filled].clone(),
        }
        if self.filled:
            state['device'] = self.image_feat.device.type
            state['image_feat'] = self.image_feat[:self.filled].cpu().clone()
            state['text_feat'] = self.text_feat[:self.filled].cpu().clone()
        return state

    def load_state_dict(self, state):
        """Go on where `state_dict()` was taken; ValueError where the settings differ."""
        for key in self.SETTINGS:
            if state[key] != getattr(self, key):
                raise ValueError(f"the checkpoint's GRIT queue was collected with {key} {state[key]}, and this run has "
                                 f"{getattr(self, key)}; resume with the checkpoint's setting")
        self.begin_epoch(state['epoch'])
        self.queues_grouped = state['queues_grouped']
        self.grouping_seconds = state['grouping_seconds']
        self._grouped, self._aside = state['grouped'].clone(), state['aside'].clone()
        self.filled = len(state['index'])
        self.index[:self.filled] = state['index']
        if self.filled:
            self.image_feat, self.text_feat = state['image_feat'], state['text_feat']
            device = torch.device(state['device'] if torch.cuda.is_available() else 'cpu')
            self._allocate(self.image_feat.shape[1], device)

    def _allocate(self, width, device):
        """Make room for L features of this width on this device; what the queues hold moves along."""
        image_feat, text_feat = (torch.empty(self.queue_size, width, device=device) for _ in range(2))
        if self.filled:
            image_feat[:self.filled] = self.image_feat[:self.filled]
            text_feat[:self.filled] = self.text_feat[:self.filled]
        self.image_feat, self.text_feat = image_feat, text_feat

    def _group(self):
        """Group the filled part of the queue and empty it. On a GPU this only enqueues work."""
        generator = generator_for('grit queue', self.seed, self.epoch, self.rank, self.queues_grouped)
        image_feat, text_feat = self.image_feat[:self.filled], self.text_feat[:self.filled]
        stopwatch = _Stopwatch(image_feat.device)
        order = group_queue(image_feat, text_feat, self.search_space, generator)
        stopwatch.stop()
        self._on_device.append((self.index[:self.filled].clone(), order, stopwatch))
        self.queues_grouped += 1
        self.filled = 0

    def _settle(self):
        """Fetch the orders of full queues from their device."""
        orders = [index[order.cpu()] for index, order, _ in self._on_device]
        self._grouped = torch.cat([self._grouped, *orders])
        self.grouping_seconds += sum(stopwatch.seconds() for _, _, stopwatch in self._on_device)
        self._on_device = []


class _Stopwatch:
    """Measures from its making to `stop()`, on a GPU in the GPU's time; only `seconds()` waits for a GPU."""

    def __init__(self, device):
        self.on_gpu = device.type == 'cuda'
        self.first = self._mark()

    def stop(self):
        self.last = self._mark()

    def seconds(self):
        if not self.on_gpu:
            return self.last - self.first
        self.last.synchronize()
        return self.first.elapsed_time(self.last) / 1000

    def _mark(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
