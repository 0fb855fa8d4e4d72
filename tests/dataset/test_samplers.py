"""Batch samplers: any step of an order, the epochs of a loader, and the shards of an evaluation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataset.samplers import EpochBatches, PositionSampler, ShardBatches


@pytest.mark.parametrize('start_step', range(6))
def test_an_order_starts_at_any_step(start_step):
    order = torch.randperm(20)
    sampler = PositionSampler(order, 4, start_step)
    batches = list(sampler)
    assert batches == order.view(-1, 4)[start_step:].tolist()
    assert len(batches) == len(sampler) == 5 - start_step
    assert all(type(i) is int for batch in batches for i in batch)


def test_a_loader_with_persistent_workers_takes_a_new_order():
    sampler = PositionSampler(torch.arange(8), 2)
    loader = DataLoader(list(range(8)), batch_sampler=sampler, num_workers=1, persistent_workers=True)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    sampler.order, sampler.start_step = torch.arange(8).flip(0), 2
    assert len(loader) == 2
    assert [batch.tolist() for batch in loader] == [[3, 2], [1, 0]]


class Keys:
    """A dataset whose examples are their keys."""

    def __getitem__(self, key):
        return key


def test_a_loader_with_persistent_workers_takes_the_next_epoch():
    batches = EpochBatches()
    loader = DataLoader(Keys(), batch_sampler=batches, num_workers=1, persistent_workers=True, collate_fn=list)
    for epoch, order in enumerate([[[0, 1], [2, 3]], [[3, 0], [1, 2], [4, 5]], [[5]]]):
        batches.set_epoch(epoch, order)
        assert len(loader) == len(order)
        assert list(loader) == [[(epoch, index) for index in batch] for batch in order]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_shards_are_the_batches_of_one_process_distributed_in_turn(n, batch_size, world_size):
    complete = list(ShardBatches(n, batch_size))
    assert [i for batch in complete for i in batch] == list(range(n))
    assert all(len(batch) == batch_size for batch in complete[:-1])
    shards = [ShardBatches(n, batch_size, rank, world_size) for rank in range(world_size)]
    for rank, shard in enumerate(shards):
        assert list(shard) == complete[rank::world_size]
        assert len(shard) == len(list(shard))
