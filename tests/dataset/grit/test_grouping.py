"""Grouping against slow oracles and the official chains."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bench_grouping import group_step_by_step
from dataset.grit import group_by_similarity, group_queue, grouping
from dataset.grit.grouping import example_shuffle, generator_for, mini_batch_shuffle
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
@settings(max_examples=60, deadline=None)
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


def test_if_scores_underflow_the_chain_is_still_that_of_the_similarities():
    image_feat, text_feat = features(200, width=16)
    lossy = group_step_by_step(image_feat, text_feat, 0, temperature=0.001)
    assert len(set(lossy)) < 200  # the case is real: examples are drawn twice and others lost
    assert group_by_similarity(image_feat, text_feat, 0).tolist() == chain_in_python(image_feat, text_feat, 0)


def test_equal_features_keep_their_order():
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
    """The specification of `group_queue`: its draws, and one call per sub-queue."""
    shuffled = example_shuffle(len(image_feat), generator)
    subs = [sub for sub in shuffled.split(search_space) if len(sub)]
    complete = len(shuffled) // search_space
    starts = torch.randint(search_space, (complete,), generator=generator).tolist()
    if len(subs) > complete:
        starts += torch.randint(len(subs[-1]), (1,), generator=generator).tolist()
    order = [
        sub[group_by_similarity(image_feat[sub], text_feat[sub], start)]
        for sub, start in zip(subs, starts, strict=True)
    ]
    return torch.cat([shuffled[:0], *order])


@pytest.mark.parametrize('length', [0, 1, 2, 15, 16, 17, 64, 79, 80])
@pytest.mark.parametrize('search_space', [1, 16, 100])
@pytest.mark.parametrize('sub_queues_at_once', [0, 1, 3, 1000])
def test_queue_is_one_chain_per_sub_queue(monkeypatch, length, search_space, sub_queues_at_once):
    monkeypatch.setattr(grouping, 'SIMILARITY_BYTES', 2 * 4 * search_space**2 * sub_queues_at_once)
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


def test_queue_draws_only_from_its_generator():
    before = torch.get_rng_state()
    a, b, other = (group_queue(*features(40), 10, generator_for('queue', key)) for key in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_grouping_never_waits_for_a_gpu():
    # Tensors on the meta device have no values: so reading one, which would wait for a GPU, fails.
    image_feat, text_feat = (feat.to('meta') for feat in features(70))
    order = group_queue(image_feat, text_feat, 16, generator_for(0))
    assert order.shape == (70,) and order.is_meta
    for waits in (
        lambda x: x[0].item(),
        lambda x: bool(x[0]),
        lambda x: [1][x[0]],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits(order)


def test_the_steps_of_a_gpu_lead_the_same_way(monkeypatch):
    image_feat, text_feat = (feat.mul(2).round() for feat in features(100, width=2))  # many equal similarities
    expected = group_queue(image_feat, text_feat, 32, generator_for(0))
    monkeypatch.setattr(grouping, '_chain', grouping._chain_on_gpu)
    assert torch.equal(group_queue(image_feat, text_feat, 32, generator_for(0)), expected)


class Operations(TorchDispatchMode):
    """Counts operations, and notes the bytes of the largest tensor."""

    count = largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.count += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


def test_sub_queues_step_together_within_the_memory_budget(monkeypatch):
    image_feat, text_feat = features(16 * 32, width=2)
    monkeypatch.setattr(grouping, '_chain', grouping._chain_on_gpu)  # whose steps are operations that can be counted
    counts = []
    for at_once in (1, 4, 16):
        budget = at_once * 2 * 4 * 32**2
        monkeypatch.setattr(grouping, 'SIMILARITY_BYTES', budget)
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
