"""Which rank sees which examples of an epoch, and in which order: random, or as GRIT grouped them.

Legend: D examples in the dataset, N batch size, W ranks, S batches of a rank in an epoch, R examples that an epoch
leaves out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dataset.grit.grouping import generator_for, mini_batch_shuffle
from utils import distributed
from utils.errors import InputError

Gather = Callable[[Tensor], list[Tensor]]


class EpochPlan:
    """The examples of a rank in an epoch: `order` [S * N], and its shard `left_out` [<= N] of the dropped remainder.

    Every rank sees S = D // (W * N) full batches. Its order and its left-out examples together are its pool, floor or
    ceil of D / W examples; the pools of all ranks are the dataset. Every epoch contains the examples that the one
    before left out.

    gather: from a tensor to the list of every rank's tensor (lengths may differ). The methods that set an order are
    collectives. A rank stores 8 D / W bytes. `set_random_order`, `set_order` and
    `set_grit_order(across_ranks=True)` hold a few arrays of 8 D bytes for a moment; plain `set_grit_order` holds
    nothing that grows with D.
    """

    SETTINGS = ('dataset_size', 'batch_size', 'world_size')

    def __init__(
        self,
        dataset_size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        gather: Gather = distributed.all_gather_tensors,
    ):
        self.dataset_size, self.batch_size, self.seed = dataset_size, batch_size, seed
        self.rank, self.world_size, self._gather = rank, world_size, gather
        self.steps = dataset_size // (batch_size * world_size)
        if self.steps == 0:
            raise InputError(
                f'batch_size {batch_size} on {world_size} process(es) needs {batch_size * world_size} examples per '
                f'step, and the train files hold {dataset_size}; use a smaller batch or fewer processes'
            )
        self.order = torch.empty(0, dtype=torch.int64)
        self.left_out = torch.empty(0, dtype=torch.int64)

    def set_random_order(self, epoch: int) -> None:
        """A random epoch: one permutation of the dataset for all ranks, drawn from (seed, epoch)."""
        self._distribute(torch.randperm(self.dataset_size, generator=generator_for('random epoch', self.seed, epoch)))

    def set_order(self, order: Tensor) -> None:
        """An epoch in a given order of all ranks: [n] int64, rank after rank, then the examples that are left out.

        An order from another program may repeat examples and miss others. The first occurrence stays at its position,
        missing examples take the positions of repeated ones, and those still missing are appended.
        """
        low, high = (int(order.min()), int(order.max())) if len(order) else (0, 0)
        if low < 0 or high >= self.dataset_size:
            raise InputError(
                f'the order to start from has indices from {low} to {high}, and the train files hold '
                f'{self.dataset_size} pairs; use the train files that it was written for'
            )
        self._distribute(_completed(order, self.dataset_size))

    def set_grit_order(self, epoch: int, grouped: Tensor, across_ranks: bool = False) -> None:
        """An epoch of `grouped` [S * N], the chains of what this rank has just seen (`GritCollector.finish_epoch`).

        The chains are cut into mini-batches, which are permuted: among those of this rank or, `across_ranks`, of all.
        Then the examples that the last epoch left out take the first positions, and the examples there are left out.
        """
        assert torch.equal(grouped.sort().values, self.order.sort().values), 'not what this rank has just seen'
        if across_ranks:
            generator = generator_for('mini-batches of all ranks', self.seed, epoch)
            order = mini_batch_shuffle(torch.cat(self._gathered(grouped)), self.batch_size, generator)
            order = order.view(self.world_size, -1)[self.rank].clone()
        else:
            generator = generator_for('mini-batches of a rank', self.seed, epoch, self.rank)
            order = mini_batch_shuffle(grouped, self.batch_size, generator)
        displaced = order[: len(self.left_out)].clone()
        order[: len(displaced)] = self.left_out
        self.order, self.left_out = order, displaced

    def state_dict(self) -> dict[str, Any]:
        """This rank's plan: tensors and plain numbers."""
        return {**{key: getattr(self, key) for key in self.SETTINGS}, 'order': self.order, 'left_out': self.left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the plan of `state_dict()`. InputError if dataset, batch size or number of ranks differ."""
        for key in self.SETTINGS:
            if state[key] != getattr(self, key):
                raise InputError(
                    f'the order in this checkpoint was made for {key} {state[key]}, and this run has '
                    f'{getattr(self, key)}; resume with the same train files, batch_size and processes'
                )
        self.order, self.left_out = state['order'].clone(), state['left_out'].clone()

    def redistribute(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue with the states of another number of ranks, at the beginning of an epoch (a collective).

        The orders of the ranks follow one another, so GRIT's mini-batches stay whole. InputError if the number of
        examples differs.
        """
        size = states[0]['dataset_size']
        if size != self.dataset_size:
            raise InputError(
                f'this run was trained on {size} examples, and the train files hold {self.dataset_size} now; resume '
                'with the same train files'
            )
        self.set_order(torch.cat([state[part] for part in ('order', 'left_out') for state in states]))

    def _distribute(self, order: Tensor) -> None:
        """Give every rank its part of order [D]: first the batches, rank after rank, then what is left out."""
        used = self.world_size * self.steps * self.batch_size
        left_out = torch.cat(self._gathered(self.left_out))
        _move_forward(order, used, left_out)
        self.order = order[:used].view(self.world_size, -1)[self.rank].clone()
        self.left_out = order[used:].tensor_split(self.world_size)[self.rank].clone()

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        tensors = self._gather(tensor)
        assert len(tensors) == self.world_size
        return tensors


def _move_forward(order: Tensor, used: int, examples: Tensor) -> None:
    """In place: make sure that none of the R `examples` is behind the first `used` positions of `order` [used + R].

    Those that are behind trade positions with others, at even distances over the used positions and so over all ranks.
    """
    behind = used + torch.isin(order[used:], examples).nonzero().flatten()
    if len(behind) == 0:
        return
    # Enough positions: of these, 2 R or all that are used, at most R less those behind hold one of `examples`.
    ahead = torch.arange(0, used, max(1, used // (2 * len(examples))))
    ahead = ahead[~torch.isin(order[ahead], examples)]
    ahead = ahead[torch.arange(len(behind)) * len(ahead) // len(behind)]
    order[behind], order[ahead] = order[ahead], order[behind]


def _completed(order: Tensor, dataset_size: int) -> Tensor:
    """order [n] of a dataset's examples -> [D], a permutation: missing examples take the positions of repeated ones."""
    ascending, position = order.sort(stable=True)
    repeated = position[1:][ascending[1:] == ascending[:-1]].sort().values
    missing = torch.ones(dataset_size, dtype=torch.bool).index_fill_(0, order, False).nonzero().flatten()
    order = order.clone()
    filled = min(len(repeated), len(missing))
    order[repeated[:filled]] = missing[:filled]
    keep = torch.ones(len(order), dtype=torch.bool).index_fill_(0, repeated[filled:], False)
    return torch.cat([order[keep], missing[filled:]])
