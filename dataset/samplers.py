"""Who plays what, and in which order.

`EpochPlan` lays out the epochs of pre-training, at random or as GRIT grouped them: an epoch's examples are distinct,
and nobody is left out twice in a row. `PositionSampler` plays an order from any step on; `ShardBatches` divides an
evaluation.

Legend: D examples in the dataset, N batch size, W ranks, S batches of a rank in an epoch, R examples left out of it.
"""

import torch

from dataset.grit import generator_for, mini_batch_shuffle


def alone(tensor):
    """The `gather` of a single process: tensor -> [tensor], one for each rank."""
    return [tensor]


class EpochPlan:
    """What a rank plays in an epoch: `order` [S * N], and its share `left_out` [<= N] of what the epoch leaves out.

    Every rank plays S = D // (W * N) whole batches. Its order and left-outs together are its pool, floor or ceil of
    D / W examples; the pools of all ranks are the dataset. Every epoch plays the left-outs of the one before.

    Where ranks must hear of each other a method takes `gather`, a function from a tensor to the list of every rank's
    tensor (lengths may differ), and all ranks call it together. A rank keeps 8 D / W bytes. `start_random`, `play`,
    `global_order` and `start_grit(across_ranks=True)` hold a few arrays of 8 D bytes for a moment; plain `start_grit`
    holds nothing that grows with D.
    """

    SETTINGS = ('dataset_size', 'batch_size', 'world_size')

    def __init__(self, dataset_size, batch_size, rank=0, world_size=1, seed=0):
        self.dataset_size, self.batch_size, self.seed = dataset_size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.steps = dataset_size // (batch_size * world_size)
        if self.steps == 0:
            raise ValueError(f'batch_size {batch_size} on {world_size} process(es) needs {batch_size * world_size} '
                             f'pairs a step, and the train files hold {dataset_size}; use a smaller batch or fewer '
                             'processes')
        self.order = torch.empty(0, dtype=torch.int64)
        self.left_out = torch.empty(0, dtype=torch.int64)

    def start_random(self, epoch, gather=alone):
        """Lay out an epoch at random: one permutation of the dataset for all ranks, drawn from (seed, epoch)."""
        self._deal(torch.randperm(self.dataset_size, generator=generator_for('random epoch', self.seed, epoch)), gather)

    def play(self, order, gather=alone):
        """Lay out an epoch by a given order of all ranks, rank after rank: [n] int64, as `global_order` gives it.

        An order from elsewhere may hold examples twice and lack others. The first occurrence stays where it is,
        repeated ones give their places to lacking examples, and those that still lack come last.
        """
        low, high = (int(order.min()), int(order.max())) if len(order) else (0, 0)
        if low < 0 or high >= self.dataset_size:
            raise ValueError(f'the order to start from holds indices from {low} to {high}, and the train files hold '
                             f'{self.dataset_size} pairs; use the train files that it was written for')
        self._deal(_completed(order, self.dataset_size), gather)

    def start_grit(self, epoch, grouped, across_ranks=False, gather=alone):
        """Lay out an epoch by `grouped` [S * N], the chains of what this rank has just played (`GritCollector.finish`).

        The chains are cut into batches, and batches change places: among those of this rank or, `across_ranks`, of all.
        Then the left-outs of the last epoch take the first places, and the examples that stood there are left out.
        """
        assert torch.equal(grouped.sort().values, self.order.sort().values), 'not what this rank has just played'
        if across_ranks:
            generator = generator_for('mini-batches of all ranks', self.seed, epoch)
            order = mini_batch_shuffle(torch.cat(self._gathered(grouped, gather)), self.batch_size, generator)
            order = order.view(self.world_size, -1)[self.rank].clone()
        else:
            generator = generator_for('mini-batches of a rank', self.seed, epoch, self.rank)
            order = mini_batch_shuffle(grouped, self.batch_size, generator)
        displaced = order[: len(self.left_out)].clone()
        order[: len(displaced)] = self.left_out
        self.order, self.left_out = order, displaced

    def global_order(self, gather=alone):
        """-> (order [W * S * N] of all ranks, one after another; left_out [R] of all)."""
        return torch.cat(self._gathered(self.order, gather)), torch.cat(self._gathered(self.left_out, gather))

    def state_dict(self):
        """This rank's plan: tensors and plain numbers."""
        return {**{key: getattr(self, key) for key in self.SETTINGS}, 'order': self.order, 'left_out': self.left_out}

    def load_state_dict(self, state):
        """Go on with the plan of `state_dict()`; ValueError where dataset, batch size or number of ranks differ."""
        for key in self.SETTINGS:
            if state[key] != getattr(self, key):
                raise ValueError(f'the order in this checkpoint was laid out for {key} {state[key]}, and this run has '
                                 f'{getattr(self, key)}; resume with the same train files, batch_size and processes')
        self.order, self.left_out = state['order'].clone(), state['left_out'].clone()

    def _deal(self, order, gather):
        """Give every rank its part of order [D]: first what is played, rank after rank, then what is left out."""
        played = self.world_size * self.steps * self.batch_size
        left_out = torch.cat(self._gathered(self.left_out, gather))
        _bring_forward(order, played, left_out)
        self.order = order[:played].view(self.world_size, -1)[self.rank].clone()
        self.left_out = order[played:].tensor_split(self.world_size)[self.rank].clone()

    def _gathered(self, tensor, gather):
        tensors = gather(tensor)
        assert len(tensors) == self.world_size
        return tensors


def _bring_forward(order, played, examples):
    """In place: see to it that none of the R `examples` lies behind the first `played` places of `order` [played + R].

    Those that do change places with others, at even distances over the played places and so over all ranks.
    """
    behind = played + torch.isin(order[played:], examples).nonzero().flatten()
    if len(behind) == 0:
        return
    # Room enough: of these places, 2 R or all that are played, at most R less those behind are taken by `examples`.
    ahead = torch.arange(0, played, max(1, played // (2 * len(examples))))
    ahead = ahead[~torch.isin(order[ahead], examples)]
    ahead = ahead[torch.arange(len(behind)) * len(ahead) // len(behind)]
    order[behind], order[ahead] = order[ahead], order[behind]


def _completed(order, dataset_size):
    """order [n] of a dataset's examples -> [D], a permutation: places of repeated examples go to the lacking ones."""
    ascending, place = order.sort(stable=True)
    repeated = place[1:][ascending[1:] == ascending[:-1]].sort().values
    lacking = torch.ones(dataset_size, dtype=torch.bool).index_fill_(0, order, False).nonzero().flatten()
    order = order.clone()
    filled = min(len(repeated), len(lacking))
    order[repeated[:filled]] = lacking[:filled]
    keep = torch.ones(len(order), dtype=torch.bool).index_fill_(0, repeated[filled:], False)
    return torch.cat([order[keep], lacking[filled:]])


class PositionSampler:
    """A batch sampler: the batches of `order` [S * N], each a list of N indices, from `start_step` on.

    `order` and `start_step` may be set anew between epochs: a DataLoader with persistent workers keeps its sampler.
    """

    def __init__(self, order, batch_size, start_step=0):
        self.order, self.batch_size, self.start_step = order, batch_size, start_step

    def __iter__(self):
        for step in range(self.start_step, len(self.order) // self.batch_size):
            yield self.order[step * self.batch_size : (step + 1) * self.batch_size].tolist()

    def __len__(self):
        return len(self.order) // self.batch_size - self.start_step


class ShardBatches:
    """A batch sampler for exact distributed evaluation: a rank's share of 0 to n - 1, in batches of fixed composition.

    Batch i is always i * N to (i + 1) * N - 1 (the last may be shorter) and goes to rank i % W. Nothing is padded, a
    rank may get nothing, and a forward sees the same rows however many ranks there are.
    """

    def __init__(self, n, batch_size, rank=0, world_size=1):
        self.n, self.batch_size = n, batch_size
        self.firsts = range(rank * batch_size, n, world_size * batch_size)

    def __iter__(self):
        for first in self.firsts:
            yield list(range(first, min(self.n, first + self.batch_size)))

    def __len__(self):
        return len(self.firsts)
