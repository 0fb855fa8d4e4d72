"""Grouping against slow oracles and the official chains; the collector against grouping and its own resumption."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bench_grouping import group_step_by_step
from dataset import grit
from dataset.grit import (
    GritCollector,
    example_shuffle,
    generator_for,
    group_by_similarity,
    group_queue,
    mini_batch_shuffle,
)
from tests.reference import load_reference

NAN, INF = math.nan, math.inf


def features(n, width=8, seed=0, noise=0.5):
    """Unit vectors [n, width] of images and of texts that resemble them."""
    generator = torch.Generator().manual_seed(seed)
    image_feat = torch.randn(n, width, generator=generator)
    text_feat = image_feat + noise * torch.randn(n, width, generator=generator)
    return normalize(image_feat, dim=1), normalize(text_feat, dim=1)


def chain_in_python(image_feat, text_feat, start):
    """The chain word by word: text for image, image for text, the lowest number among equals."""
    image_feat, text_feat = image_feat.tolist(), text_feat.tolist()
    order, unused = [start], [i for i in range(len(image_feat)) if i != start]
    looking, offered = image_feat, text_feat
    while unused:
        query = looking[order[-1]]
        best = max(unused, key=lambda i: sum(a * b for a, b in zip(query, offered[i], strict=True)))
        unused.remove(best)
        order.append(best)
        looking, offered = offered, looking
    return order


def is_permutation(order, n):
    return order.dtype == torch.int64 and order.sort().values.tolist() == list(range(n))


# ---- one chain ----


@pytest.mark.parametrize('i', range(5))
def test_the_official_chains(i):
    reference = load_reference('grit_chain')
    image_feat, text_feat = (torch.from_numpy(reference[f'{i}/{name}']) for name in ('image_feat', 'text_feat'))
    order = group_by_similarity(image_feat, text_feat, int(reference[f'{i}/start']))
    assert order.dtype == torch.int64
    assert order.tolist() == reference[f'{i}/order'].tolist()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_chain_equals_the_oracle_with_ties(data):
    members, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 3))
    numbers = st.lists(st.integers(-2, 2), min_size=members * width, max_size=members * width)
    image_feat, text_feat = (torch.tensor(data.draw(numbers)).view(members, width).float() for _ in range(2))
    start = data.draw(st.integers(0, members - 1))
    assert group_by_similarity(image_feat, text_feat, start).tolist() == chain_in_python(image_feat, text_feat, start)


@pytest.mark.parametrize('members', [2, 3, 63, 64])
def test_chain_equals_the_way_by_softmax_scores(members):
    image_feat, text_feat = features(members, seed=members)
    for start in (0, members - 1):
        expected = group_step_by_step(image_feat, text_feat, start, temperature=0.07)
        assert group_by_similarity(image_feat, text_feat, start).tolist() == expected


def test_where_scores_underflow_the_chain_is_still_that_of_the_similarities():
    image_feat, text_feat = features(200, width=16)
    lossy = group_step_by_step(image_feat, text_feat, 0, temperature=0.001)
    assert len(set(lossy)) < 200  # the case is real: examples are drawn twice and others lost
    assert group_by_similarity(image_feat, text_feat, 0).tolist() == chain_in_python(image_feat, text_feat, 0)


def test_equal_features_are_taken_in_their_order():
    same = torch.ones(7, 4)
    assert group_by_similarity(same, same, 3).tolist() == [3, 0, 1, 2, 4, 5, 6]


def test_nan_counts_as_zero_and_nothing_overflows():
    image_feat, text_feat = features(30)
    image_feat[3], text_feat[4, 2] = NAN, NAN
    expected = group_by_similarity(image_feat.nan_to_num(nan=0.0), text_feat.nan_to_num(nan=0.0), 5)
    assert torch.equal(group_by_similarity(image_feat, text_feat, 5), expected)


@pytest.mark.parametrize('value', [0.0, NAN, INF, -INF, 3e38, -3e38])
@pytest.mark.parametrize('where', ['everywhere', 'one image', 'one text', 'one number', 'both signs'])
def test_always_a_permutation(value, where):
    image_feat, text_feat = features(33)
    if where == 'everywhere':
        image_feat[:], text_feat[:] = value, value
    elif where == 'one image':
        image_feat[7] = value
    elif where == 'one text':
        text_feat[7] = value
    elif where == 'one number':
        text_feat[7, 3] = value
    else:
        image_feat[::2], text_feat[::3, ::2] = value, -value
    assert is_permutation(group_by_similarity(image_feat, text_feat, 7), 33)
    assert is_permutation(group_queue(image_feat, text_feat, 8, generator_for(0)), 33)


def test_features_of_any_precision_with_or_without_gradient_and_autocast():
    image_feat, text_feat = features(300)
    expected = group_by_similarity(image_feat, text_feat, 1)
    assert torch.equal(group_by_similarity(image_feat.double(), text_feat.double(), 1), expected)
    rounded = image_feat.bfloat16(), text_feat.bfloat16()
    assert torch.equal(group_by_similarity(*rounded, 1), group_by_similarity(*(feat.float() for feat in rounded), 1))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(group_by_similarity(image_feat.requires_grad_(), text_feat.requires_grad_(), 1), expected)


@pytest.mark.parametrize('start', [-1, 5])
def test_a_start_outside_is_refused(start):
    with pytest.raises(ValueError, match='must be one of the 5 examples'):
        group_by_similarity(*features(5), start)


# ---- a queue ----


def group_queue_one_by_one(image_feat, text_feat, search_space, generator):
    """The specification of `group_queue`: its draws, and one call a sub-queue."""
    shuffled = example_shuffle(len(image_feat), generator)
    subs = [sub for sub in shuffled.split(search_space) if len(sub)]
    whole = len(shuffled) // search_space
    starts = torch.randint(search_space, (whole,), generator=generator).tolist()
    if len(subs) > whole:
        starts += torch.randint(len(subs[-1]), (1,), generator=generator).tolist()
    order = [sub[group_by_similarity(image_feat[sub], text_feat[sub], start)]
             for sub, start in zip(subs, starts, strict=True)]
    return torch.cat([shuffled[:0], *order])


@pytest.mark.parametrize('length', [0, 1, 2, 15, 16, 17, 64, 79, 80])
@pytest.mark.parametrize('search_space', [1, 16, 100])
@pytest.mark.parametrize('sub_queues_at_once', [0, 1, 3, 1000])
def test_queue_is_one_chain_a_sub_queue(monkeypatch, length, search_space, sub_queues_at_once):
    monkeypatch.setattr(grit, 'SIMILARITY_BYTES', 2 * 4 * search_space**2 * sub_queues_at_once)
    image_feat, text_feat = features(length, seed=length)
    order = group_queue(image_feat, text_feat, search_space, generator_for('test', length))
    assert is_permutation(order, length)
    expected = group_queue_one_by_one(image_feat, text_feat, search_space, generator_for('test', length))
    assert torch.equal(order, expected)


def test_neighbours_of_a_queue_are_similar():
    image_feat, text_feat = features(512, width=16)
    sim = image_feat @ text_feat.t()
    order = group_queue(image_feat, text_feat, 128, generator_for(0))
    assert sim[order[:-1], order[1:]].mean() > 0.4 + sim[torch.arange(511), torch.arange(1, 512)].mean()


def test_queue_draws_from_its_generator_alone():
    before = torch.get_rng_state()
    a, b, other = (group_queue(*features(40), 10, generator_for('queue', key)) for key in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), before)


class Operations(TorchDispatchMode):
    """Refuses operations that make the host wait for a GPU; counts all, and notes the bytes of the largest tensor."""

    WAITING = {'_local_scalar_dense', 'item', 'nonzero', 'is_nonzero', 'masked_select', 'equal', '_unique2'}
    count = largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        assert name not in self.WAITING, name
        if name.startswith('index'):
            indices = [index for arg in args[1:] for index in (arg if isinstance(arg, (list, tuple)) else [arg])]
            assert not any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
        result = operation(*args, **(kwargs or {}))
        self.count += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


class Calls(TorchFunctionMode):
    """Refuses the methods that fetch a tensor, which are no operations where the tensor is on the CPU already."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function.__name__ not in {'tolist', 'cpu', 'numpy', '__int__', '__float__', '__bool__', '__index__'}
        return function(*args, **(kwargs or {}))


WAITS = {
    'item': lambda x: x[0].item(), 'tolist': lambda x: x.tolist(), 'cpu': lambda x: x.cpu(), 'if': lambda x: bool(x[0]),
    'nonzero': lambda x: x.nonzero(), 'mask': lambda x: x[x > 1], 'list index': lambda x: [1, 2][x[0]],
}


@pytest.mark.parametrize('wait', WAITS)
def test_what_would_wait_for_a_gpu_is_seen(wait):
    with pytest.raises(AssertionError), Operations(), Calls():
        WAITS[wait](torch.arange(3))


def test_grouping_and_collecting_never_wait_for_a_gpu():
    collector = GritCollector(32, 16, seed=0)
    image_feat, text_feat = features(70)
    index = torch.arange(70)
    with Operations(), Calls():
        group_queue(image_feat, text_feat, 16, generator_for(0))
        collector.add(index, image_feat, text_feat)


def test_sub_queues_step_together_within_the_memory_budget(monkeypatch):
    image_feat, text_feat = features(16 * 32, width=2)
    counts = []
    for at_once in (1, 4, 16):
        budget = at_once * 2 * 4 * 32**2
        monkeypatch.setattr(grit, 'SIMILARITY_BYTES', budget)
        with Operations() as operations:
            group_queue(image_feat, text_feat, 32, generator_for(0))
        assert operations.largest == budget
        counts.append(operations.count)
    assert counts[0] > 2.5 * counts[1] > 5 * counts[2]


# ---- shuffles ----


def test_shuffles_are_permutations_and_batches_keep_their_contents():
    assert is_permutation(example_shuffle(100, generator_for(0)), 100)
    order = example_shuffle(60, generator_for(1))
    shuffled = mini_batch_shuffle(order, 5, generator_for(2))
    assert not torch.equal(shuffled, order)
    assert sorted(shuffled.view(-1, 5).tolist()) == sorted(order.view(-1, 5).tolist())


def test_generators_depend_on_every_part_of_their_key():
    keys = [('a', 0, 1), ('a', 1, 0), ('a', 0, 11), ('a', 0), ('b', 0, 1), ('a', 0, 1, 0)]
    drawn = [torch.randint(2**62, (1,), generator=generator_for(*key)).item() for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn[0] == torch.randint(2**62, (1,), generator=generator_for(*keys[0])).item()


# ---- the collector ----

QUEUE, SEARCH = 24, 8


def collect(collector, events):
    for index, image_feat, text_feat in events:
        if image_feat is None:
            collector.set_aside(index)
        else:
            collector.add(index, image_feat, text_feat)


def an_epoch(total, seed=0, aside_every=0):
    """A stream of batches of 0 to 60 examples, `total` with features; now and then some are set aside."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(3 * total + 10, generator=generator)
    image_feat, text_feat = features(total, seed=seed)
    events, at, spare = [], 0, total
    while at < total:
        n = int(torch.randint(0, 61 if seed else 8, (1,), generator=generator))
        events.append((index[at:total][:n], image_feat[at:][:n], text_feat[at:][:n]))
        at = min(total, at + n)
        if aside_every and len(events) % aside_every == 0:
            events.append((index[spare:spare + 2], None, None))
            spare += 2
    return events


def expected_order(events, seed, epoch, rank):
    """The specification of the collector: every L examples grouped with their own generator, then those set aside."""
    index = torch.cat([torch.empty(0, dtype=torch.int64)] + [i for i, feat, _ in events if feat is not None])
    aside = [i for i, feat, _ in events if feat is None]
    kept = [event for event in events if event[1] is not None]
    order = []
    for number, first in enumerate(range(0, len(index), QUEUE)):
        part = slice(first, first + QUEUE)
        image_feat, text_feat = (torch.cat([event[k] for event in kept])[part] for k in (1, 2))
        generator = generator_for('grit queue', seed, epoch, rank, number)
        order.append(index[part][group_queue(image_feat, text_feat, SEARCH, generator)])
    return torch.cat([index[:0], *order, *aside])


@pytest.mark.parametrize('total', [0, 1, 7, 8, 23, 24, 25, 48, 49, 72, 100])
@pytest.mark.parametrize('seed', [0, 1])
def test_collector_groups_every_queue_and_the_tail(total, seed):
    collector = GritCollector(QUEUE, SEARCH, seed, rank=3)
    for epoch in (0, 5):
        collector.begin_epoch(epoch)
        events = an_epoch(total, seed, aside_every=3)
        collect(collector, events)
        order = collector.finish()
        assert torch.equal(order, expected_order(events, seed, epoch, rank=3))
        assert order.sort().values.tolist() == torch.cat([order[:0]] + [e[0] for e in events]).sort().values.tolist()
        assert torch.equal(collector.finish(), order)  # nothing more came


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_collector_resumes_at_every_point():
    events = an_epoch(100, aside_every=4)
    next_events = an_epoch(50, seed=2)
    through = GritCollector(QUEUE, SEARCH, seed=1, rank=2)
    through.begin_epoch(3)
    collect(through, events)
    expected = through.finish()
    for stop in range(len(events) + 1):
        first = GritCollector(QUEUE, SEARCH, seed=1, rank=2)
        first.begin_epoch(3)
        collect(first, events[:stop])
        state = through_a_file(first.state_dict())
        collect(first, events[stop:])  # taking the state changes nothing, and what follows does not change the state
        second = GritCollector(QUEUE, SEARCH, seed=1, rank=2)
        second.load_state_dict(state)
        collect(second, events[stop:])
        assert torch.equal(first.finish(), expected)
        assert torch.equal(second.finish(), expected)
    for collector in (through, second):
        collector.begin_epoch(4)
        collect(collector, next_events)
    assert torch.equal(second.finish(), through.finish())


def test_state_holds_only_what_is_filled():
    collector = GritCollector(1000, 10, seed=0)
    collector.add(torch.arange(30), *features(30))
    state = collector.state_dict()
    assert {key: len(value) for key, value in state.items() if isinstance(value, torch.Tensor)} == {
        'grouped': 0, 'aside': 0, 'index': 30, 'image_feat': 30, 'text_feat': 30}
    assert state['image_feat'].untyped_storage().nbytes() == 30 * 8 * 4


def test_a_state_of_other_settings_is_refused():
    state = GritCollector(QUEUE, SEARCH, seed=0).state_dict()
    for other in [(QUEUE + 1, SEARCH, 0, 0), (QUEUE, SEARCH + 1, 0, 0), (QUEUE, SEARCH, 1, 0), (QUEUE, SEARCH, 0, 1)]:
        with pytest.raises(ValueError, match="resume with the checkpoint's setting"):
            GritCollector(*other).load_state_dict(state)


def test_collector_keeps_large_indices_and_leaves_other_randomness_alone():
    collector = GritCollector(QUEUE, SEARCH, seed=0)
    before = torch.get_rng_state()
    index = 2**40 + torch.arange(30)
    collector.add(index, *features(30))
    assert torch.equal(collector.finish().sort().values, index)
    assert torch.equal(torch.get_rng_state(), before)


def test_queues_epochs_ranks_and_seeds_draw_differently():
    orders = []
    for seed, epoch, rank in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        collector = GritCollector(QUEUE, SEARCH, seed, rank)
        collector.begin_epoch(epoch)
        for _ in range(2):
            collector.add(torch.arange(QUEUE), *features(QUEUE))
        orders += [tuple(part.tolist()) for part in collector.finish().split(QUEUE)]
    assert len(set(orders)) == 8


def test_grouping_seconds_are_those_of_the_epoch():
    collector = GritCollector(QUEUE, SEARCH, seed=0)
    collector.add(torch.arange(50), *features(50))
    collector.finish()
    took = collector.grouping_seconds
    assert took > 0
    resumed = GritCollector(QUEUE, SEARCH, seed=0)
    resumed.load_state_dict(collector.state_dict())
    assert resumed.grouping_seconds == took
    collector.begin_epoch(1)
    assert collector.grouping_seconds == 0
