"""`EpochPlan` with all ranks simulated in threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.grit.epoch_plan import EpochPlan
from dataset.grit.grouping import generator_for
from tests.helpers import through_a_file

KINDS = ('random', 'grit', 'grit across ranks', 'given')


def make_plans(dataset_size, batch_size, world_size, seed=0):
    """The plans of all ranks; their `gather` is a real rendezvous of threads, one per rank."""
    slots, barrier = [None] * world_size, threading.Barrier(world_size, timeout=20)

    def gather_of(rank):
        def gather(tensor):
            slots[rank] = tensor
            barrier.wait()
            tensors = list(slots)
            barrier.wait()
            return tensors

        return gather

    return [EpochPlan(dataset_size, batch_size, rank, world_size, seed, gather_of(rank)) for rank in range(world_size)]


def on_all_ranks(plans, call):
    """[call(plan) of every plan], at the same time."""
    with ThreadPoolExecutor(len(plans)) as pool:
        return list(pool.map(call, plans))


def chains_of(plan, epoch):
    """What a collector would return: the examples of the epoch before, in another order."""
    return plan.order[torch.randperm(len(plan.order), generator=generator_for('test', epoch, plan.rank))]


def set_orders(plans, kind, epoch, order=None):
    """Set the order of an epoch on all ranks; returns the chains that each rank gave."""
    chains = [chains_of(plan, epoch) for plan in plans]
    if kind == 'random':
        on_all_ranks(plans, lambda plan: plan.set_random_order(epoch))
    elif kind == 'given':
        order = torch.randperm(plans[0].dataset_size, generator=generator_for(epoch)) if order is None else order
        on_all_ranks(plans, lambda plan: plan.set_order(order))
    else:
        across = kind == 'grit across ranks'
        on_all_ranks(plans, lambda plan: plan.set_grit_order(epoch, chains[plan.rank], across))
    return chains


def check_epoch(plans):
    """Every rank has S full batches, the pools of the ranks are the dataset; returns (used, left out) as sets."""
    size, ranks, batch_size = plans[0].dataset_size, len(plans), plans[0].batch_size
    for plan in plans:
        assert plan.order.dtype == plan.left_out.dtype == torch.int64
        assert len(plan.order) == size // (ranks * batch_size) * batch_size
        assert len(plan.left_out) <= batch_size
        assert len(plan.order) + len(plan.left_out) in (size // ranks, -(-size // ranks))
    used = [i for plan in plans for i in plan.order.tolist()]
    left_out = [i for plan in plans for i in plan.left_out.tolist()]
    assert sorted(used + left_out) == list(range(size))
    return set(used), set(left_out)


def check_batches(plan, left_out_before, chains):
    """Batches are runs of a chain, except for the first positions, which the last epoch's dropped remainder takes."""
    batch_size, late = plan.batch_size, len(left_out_before)
    runs = [run for chain in chains for run in chain.view(-1, batch_size).tolist()]
    first, *others = plan.order.view(-1, batch_size).tolist()
    assert first[:late] == left_out_before.tolist()
    assert plan.left_out.tolist() + first[late:] in runs
    for batch in others:
        assert batch in runs
    assert len({tuple(batch) for batch in others}) == len(others)


sizes = st.tuples(st.integers(1, 90), st.integers(1, 7), st.integers(1, 4)).filter(lambda s: s[0] >= s[1] * s[2])


@given(sizes, st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_epochs_are_permutations_and_no_example_misses_two(shape, kinds, seed):
    plans = make_plans(*shape, seed)
    left_out = set()
    for epoch, kind in enumerate(['random', *kinds]):
        before = [(set(plan.order.tolist() + plan.left_out.tolist()), plan.left_out) for plan in plans]
        chains = set_orders(plans, kind, epoch)
        used, now_left_out = check_epoch(plans)
        assert left_out <= used
        left_out = now_left_out
        for plan, (pool, left_out_before), own in zip(plans, before, chains, strict=True):
            if kind == 'grit':
                assert set(plan.order.tolist() + plan.left_out.tolist()) == pool  # no example changes its rank
                check_batches(plan, left_out_before, [own])
            elif kind == 'grit across ranks':
                check_batches(plan, left_out_before, chains)


@given(sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_any_order_can_be_set(shape, data):
    plans = make_plans(*shape)
    order = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=2 * shape[0]))
    started = data.draw(st.booleans())
    left_out = set()
    if started:
        set_orders(plans, 'random', 0)
        left_out = check_epoch(plans)[1]
    set_orders(plans, 'given', 1, torch.tensor(order, dtype=torch.int64))
    assert left_out <= check_epoch(plans)[0]
    used = torch.cat([plan.order for plan in plans]).tolist()
    if not started:
        first = [i for place, i in enumerate(order) if i not in order[:place]][: len(used)]
        if len(order) <= len(used):  # room for all: the first occurrence of each stays where it is
            assert all(order.index(i) == used.index(i) for i in first)
        if len(order) == len(first) <= len(used):
            assert used[: len(order)] == order


def test_an_order_with_padding_keeps_its_batches():
    # Two ranks that officially trained on 8 of 9 padded examples each; 3 is in both halves, 16 was never used.
    order = torch.tensor([3, 1, 2, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3])
    plans = make_plans(17, 4, 2)
    set_orders(plans, 'given', 0, order)
    assert plans[0].order.tolist() == [3, 1, 2, 0, 4, 5, 6, 7]
    assert plans[1].order.tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert plans[0].left_out.tolist() == [16] and plans[1].left_out.tolist() == []


@pytest.mark.parametrize('bad', [[0, 1, 12], [-1, 0]])
def test_an_order_of_another_dataset_is_refused(bad):
    with pytest.raises(ValueError, match='the train files hold 12 pairs'):
        EpochPlan(12, 3).set_order(torch.tensor(bad))


def test_a_saved_order_is_restored():
    plans, again = make_plans(53, 4, 3), make_plans(53, 4, 3)
    set_orders(plans, 'random', 0)
    set_orders(plans, 'grit', 1)
    order = torch.cat([plan.order for plan in plans] + [plan.left_out for plan in plans])
    assert len(order) == 53 and sum(len(plan.left_out) for plan in plans) == 5
    set_orders(again, 'given', 0, order)
    for plan, other in zip(plans, again, strict=True):
        assert torch.equal(plan.order, other.order) and torch.equal(plan.left_out, other.left_out)


def test_the_dropped_remainder_is_spread_over_ranks_and_positions():
    plans = make_plans(1199, 100, 4)  # 800 are used and 399 left out, a third of them twice if it were random
    set_orders(plans, 'random', 0)
    before = torch.cat([plan.left_out for plan in plans])
    set_orders(plans, 'random', 1)
    eighths = torch.isin(torch.cat([plan.order for plan in plans]), before).view(8, 100).sum(1)
    assert eighths.sum() == 399 and eighths.min() >= 30 and eighths.max() <= 70


def test_random_epochs_depend_on_seed_and_epoch_and_on_nothing_else():
    drawn = torch.get_rng_state()
    orders = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        plans = make_plans(40, 5, 2, seed)
        set_orders(plans, 'random', epoch)
        orders.append(tuple(torch.cat([plan.order for plan in plans]).tolist()))
    assert orders[0] == orders[3] and len(set(orders)) == 3
    assert torch.equal(torch.get_rng_state(), drawn)


def test_mini_batches_are_permuted_differently_in_every_epoch_and_rank():
    plans = make_plans(240, 2, 2)
    set_orders(plans, 'random', 0)
    where = []  # for each epoch and rank, the positions of the batches of the chain
    for epoch in (1, 2):
        chains = set_orders(plans, 'grit', epoch)
        for plan, chain in zip(plans, chains, strict=True):
            runs = chain.view(-1, 2).tolist()
            where.append(tuple(runs.index(batch) for batch in plan.order.view(-1, 2).tolist()))
    assert len(set(where)) == 4


@pytest.mark.parametrize('across_ranks', [False, True])
def test_ranks_mix_only_when_shuffled_across(across_ranks):
    plans = make_plans(200, 5, 2)
    set_orders(plans, 'random', 0)
    pools = [set(plan.order.tolist()) for plan in plans]
    set_orders(plans, 'grit across ranks' if across_ranks else 'grit', 1)
    moved = [len(set(plan.order.tolist()) - pool) for plan, pool in zip(plans, pools, strict=True)]
    assert all(moved) if across_ranks else moved == [0, 0]


def test_grit_refuses_an_order_of_other_examples():
    plan = EpochPlan(20, 4)
    plan.set_random_order(0)
    wrong = plan.order.clone()
    wrong[0] = wrong[1]
    for grouped in (wrong, plan.order[:-1]):
        with pytest.raises(AssertionError):
            plan.set_grit_order(1, grouped)


def test_a_batch_too_large_is_refused():
    with pytest.raises(ValueError, match='batch_size 8 .* needs 16 examples per step, and the train files hold 15'):
        EpochPlan(15, 8, world_size=2)


def test_a_plan_continues_from_its_state():
    plans, resumed = make_plans(50, 4, 3), make_plans(50, 4, 3)
    set_orders(plans, 'random', 0)
    set_orders(plans, 'grit', 1)
    for plan, other in zip(plans, resumed, strict=True):
        other.load_state_dict(through_a_file(plan.state_dict()))
        assert torch.equal(plan.order, other.order) and torch.equal(plan.left_out, other.left_out)
    for epoch, kind in enumerate(KINDS, start=2):
        for group in (plans, resumed):
            set_orders(group, kind, epoch)
        for plan, other in zip(plans, resumed, strict=True):
            assert torch.equal(plan.order, other.order) and torch.equal(plan.left_out, other.left_out)


@pytest.mark.parametrize('other', [(51, 4, 0, 3), (50, 5, 0, 3), (50, 4, 0, 2)])
def test_a_plan_of_another_run_is_refused(other):
    with pytest.raises(ValueError, match='resume with the same train files, batch_size and processes'):
        EpochPlan(*other).load_state_dict(make_plans(50, 4, 3)[0].state_dict())
