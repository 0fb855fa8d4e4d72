"""The collector against grouping queue by queue, and against its own resumption."""

import pytest
import torch

from dataset.grit.collector import GritCollector
from dataset.grit.grouping import generator_for, group_queue
from dataset.grit.quantile import GritQuantile
from tests.dataset.grit.test_grouping import features
from tests.helpers import through_a_file

QUEUE, SEARCH = 24, 8


def collect(collector, events):
    for index, image_feat, text_feat in events:
        if image_feat is None:
            collector.add_ungrouped(index)
        else:
            collector.add(index, image_feat, text_feat)


def an_epoch(total, seed=0, ungrouped_every=0):
    """A stream of batches of 0 to 60 examples, `total` with features; now and then some without."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(3 * total + 10, generator=generator)
    image_feat, text_feat = features(total, seed=seed)
    events, at, spare = [], 0, total
    while at < total:
        n = int(torch.randint(0, 61 if seed else 8, (1,), generator=generator))
        events.append((index[at:total][:n], image_feat[at:][:n], text_feat[at:][:n]))
        at = min(total, at + n)
        if ungrouped_every and len(events) % ungrouped_every == 0:
            events.append((index[spare : spare + 2], None, None))
            spare += 2
    return events


def expected_order(events, seed, epoch, rank):
    """The specification: every L examples grouped with their own generator, then those without features."""
    index = torch.cat([torch.empty(0, dtype=torch.int64)] + [i for i, feat, _ in events if feat is not None])
    ungrouped = [i for i, feat, _ in events if feat is None]
    with_features = [event for event in events if event[1] is not None]
    order = []
    for number, first in enumerate(range(0, len(index), QUEUE)):
        part = slice(first, first + QUEUE)
        image_feat, text_feat = (torch.cat([event[k] for event in with_features])[part] for k in (1, 2))
        generator = generator_for('grit queue', seed, epoch, rank, number)
        order.append(index[part][group_queue(image_feat, text_feat, SEARCH, generator)])
    return torch.cat([index[:0], *order, *ungrouped])


@pytest.mark.parametrize('total', [0, 1, 7, 8, 23, 24, 25, 48, 49, 72, 100])
@pytest.mark.parametrize('seed', [0, 1])
def test_collector_groups_every_queue_and_the_rest(total, seed):
    collector = GritCollector(QUEUE, SEARCH, seed, rank=3)
    for epoch in (0, 5):
        collector.begin_epoch(epoch)
        events = an_epoch(total, seed, ungrouped_every=3)
        collect(collector, events)
        order = collector.finish_epoch()
        assert torch.equal(order, expected_order(events, seed, epoch, rank=3))
        assert order.sort().values.tolist() == torch.cat([order[:0]] + [e[0] for e in events]).sort().values.tolist()
        assert torch.equal(collector.finish_epoch(), order)  # nothing more came


def test_collector_resumes_at_every_point():
    events = an_epoch(100, ungrouped_every=4)
    next_events = an_epoch(50, seed=2)
    uninterrupted = GritCollector(QUEUE, SEARCH, seed=1, rank=2)
    uninterrupted.begin_epoch(3)
    collect(uninterrupted, events)
    expected = uninterrupted.finish_epoch()
    for stop in range(len(events) + 1):
        first = GritCollector(QUEUE, SEARCH, seed=1, rank=2)
        first.begin_epoch(3)
        collect(first, events[:stop])
        state = through_a_file(first.state_dict())
        collect(first, events[stop:])  # taking the state changes nothing, and what follows does not change the state
        second = GritCollector(QUEUE, SEARCH, seed=1, rank=2)
        second.load_state_dict(state)
        collect(second, events[stop:])
        assert torch.equal(first.finish_epoch(), expected)
        assert torch.equal(second.finish_epoch(), expected)
    for collector in (uninterrupted, second):
        collector.begin_epoch(4)
        collect(collector, next_events)
    assert torch.equal(second.finish_epoch(), uninterrupted.finish_epoch())


def run_with_auto(collector, quantile, events, accuracies):
    """Steps of an epoch: collect, then adapt, as a script does."""
    for event, accuracy in zip(events, accuracies, strict=True):
        collect(collector, [event])
        quantile.adapt(accuracy, torch.tensor(True))


def test_each_queue_is_grouped_at_the_quantile_of_its_moment():
    quantile = GritQuantile('auto', 0.85)
    quantile.begin_epoch(True, 300)
    collector = GritCollector(QUEUE, SEARCH, seed=0, quantile=quantile)
    image_feat, text_feat = features(2 * QUEUE)
    order = []
    for number in range(2):
        part = slice(number * QUEUE, (number + 1) * QUEUE)
        collector.add(torch.arange(2 * QUEUE)[part], image_feat[part], text_feat[part])
        generator = generator_for('grit queue', 0, 0, 0, number)
        used = group_queue(image_feat[part], text_feat[part], SEARCH, generator, quantile.value)
        order.append(number * QUEUE + used)
        quantile.distance = torch.tensor(0.4)
    assert torch.equal(collector.finish_epoch(), torch.cat(order))


def test_collector_resumes_in_the_middle_of_a_queue_with_a_quantile_that_adapts(monkeypatch):
    monkeypatch.setattr('dataset.grit.quantile.RATE', 900.0)  # so that it moves in a few steps
    events = an_epoch(100)
    accuracies = torch.rand(len(events), generator=torch.Generator().manual_seed(0))

    def new():
        quantile = GritQuantile('auto', 0.85)
        quantile.begin_epoch(True, 300)
        return GritCollector(QUEUE, SEARCH, seed=1, quantile=quantile), quantile

    collector, quantile = new()
    run_with_auto(collector, quantile, events, accuracies)
    expected = collector.finish_epoch()
    assert not torch.equal(expected, expected_order(events, 1, 0, 0)) and quantile.value < 0.9
    middle = 0
    for stop in range(len(events) + 1):
        collector, quantile = new()
        run_with_auto(collector, quantile, events[:stop], accuracies[:stop])
        middle += 0 < collector.filled < QUEUE
        states = through_a_file([collector.state_dict(), quantile.state_dict()])
        resumed = new()
        for part, state in zip(resumed, states, strict=True):
            part.load_state_dict(state)
        run_with_auto(*resumed, events[stop:], accuracies[stop:])
        assert torch.equal(resumed[0].finish_epoch(), expected)
    assert middle > 10


def test_collector_groups_by_cuthill_mckee_if_asked():
    index, (image_feat, text_feat) = torch.arange(QUEUE), features(QUEUE)
    collector = GritCollector(QUEUE, SEARCH, seed=0, grouping='cuthill_mckee')
    collector.add(index, image_feat, text_feat)
    generator = generator_for('grit queue', 0, 0, 0, 0)
    expected = group_queue(image_feat, text_feat, SEARCH, generator, grouping='cuthill_mckee')
    assert torch.equal(collector.finish_epoch(), expected)


def test_the_grouping_may_change_between_runs():
    state = GritCollector(QUEUE, SEARCH, seed=0).state_dict()
    GritCollector(QUEUE, SEARCH, seed=0, grouping='cuthill_mckee').load_state_dict(state)


def test_state_contains_only_the_filled_part():
    collector = GritCollector(1000, 10, seed=0)
    collector.add(torch.arange(30), *features(30))
    state = collector.state_dict()
    assert {key: len(value) for key, value in state.items() if isinstance(value, torch.Tensor)} == {
        'grouped': 0,
        'aside': 0,
        'index': 30,
        'image_feat': 30,
        'text_feat': 30,
    }
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
    assert torch.equal(collector.finish_epoch().sort().values, index)
    assert torch.equal(torch.get_rng_state(), before)


def test_queues_epochs_ranks_and_seeds_draw_differently():
    orders = []
    for seed, epoch, rank in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        collector = GritCollector(QUEUE, SEARCH, seed, rank)
        collector.begin_epoch(epoch)
        for _ in range(2):
            collector.add(torch.arange(QUEUE), *features(QUEUE))
        orders += [tuple(part.tolist()) for part in collector.finish_epoch().split(QUEUE)]
    assert len(set(orders)) == 8


def test_grouping_seconds_are_those_of_the_epoch():
    collector = GritCollector(QUEUE, SEARCH, seed=0)
    collector.add(torch.arange(50), *features(50))
    collector.finish_epoch()
    took = collector.grouping_seconds
    assert took > 0
    resumed = GritCollector(QUEUE, SEARCH, seed=0)
    resumed.load_state_dict(collector.state_dict())
    assert resumed.grouping_seconds == took
    collector.begin_epoch(1)
    assert collector.grouping_seconds == 0


def test_collecting_never_waits_for_a_gpu():
    collector = GritCollector(32, 16, seed=0)
    collector.add(torch.arange(70), *(feat.to('meta') for feat in features(70)))  # a meta tensor has no value to fetch
    assert collector.queues_grouped == 2
