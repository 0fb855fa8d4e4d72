"""Chains at a quantile against a slow oracle, and the quantile that adapts itself."""

import argparse
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dataset.grit import group_by_similarity, group_queue, grouping
from dataset.grit.grouping import generator_for
from dataset.grit.quantile import GritQuantile
from tests.dataset.grit.test_grouping import Operations, features, is_permutation
from tests.helpers import Waits, read_pth, through_a_file
from tests.processes import check_run
from utils import distributed
from utils.errors import InputError

QUANTILES = (0.0, 0.3, 0.5, 0.98, 1.0)


def clustered(members, clusters=8, width=16):
    """Unit vectors [members, width] of images and of texts around a few centers."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(clusters, width, generator=generator)
    of_cluster = centers[torch.randint(clusters, (members,), generator=generator)]
    image_feat, text_feat = (of_cluster + 0.5 * torch.randn(members, width, generator=generator) for _ in range(2))
    return normalize(image_feat, dim=1), normalize(text_feat, dim=1)


def neighbor_similarity(image_feat, text_feat, order):
    """The mean similarity of what a chain steps along: an image with the next text, a text with the next image."""
    sim = image_feat @ text_feat.t()
    return (sim[order[:-1], order[1:]].mean() + sim[order[1:], order[:-1]].mean()).item() / 2


def chain_by_sorting(image_feat, text_feat, start, quantile):
    """The definition: sort the unused candidates and take the one at the quantile; the lowest number among equals."""
    looking, offered = image_feat.tolist(), text_feat.tolist()
    order, unused = [start], [i for i in range(len(looking)) if i != start]
    while unused:
        query = looking[order[-1]]
        similarity = {i: sum(a * b for a, b in zip(query, offered[i], strict=True)) for i in unused}
        position = math.floor(quantile * (len(unused) - 1) + 0.5)
        value = sorted(similarity.values())[position]
        order.append(min(i for i in unused if similarity[i] == value))
        unused.remove(order[-1])
        looking, offered = offered, looking
    return order


# ---- chains at a quantile ----


@given(st.data(), st.sampled_from(QUANTILES) | st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_chain_at_a_quantile_equals_the_oracle_with_ties(data, quantile):
    members, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 3))
    numbers = st.lists(st.integers(-2, 2), min_size=members * width, max_size=members * width)
    image_feat, text_feat = (torch.tensor(data.draw(numbers)).view(members, width).float() for _ in range(2))
    start = data.draw(st.integers(0, members - 1))
    expected = chain_by_sorting(image_feat, text_feat, start, quantile)
    assert group_by_similarity(image_feat, text_feat, start, quantile).tolist() == expected


@pytest.mark.parametrize('quantile', QUANTILES)
def test_chain_at_a_quantile_of_distinct_similarities(quantile):
    image_feat, text_feat = (feat.double() for feat in features(70))
    expected = chain_by_sorting(image_feat, text_feat, 3, quantile)
    assert group_by_similarity(image_feat, text_feat, 3, quantile).tolist() == expected


def test_a_half_is_rounded_up():
    image_feat, text_feat = torch.ones(3, 1), torch.tensor([[0.0], [1.0], [2.0]])
    assert group_by_similarity(image_feat, text_feat, 0, 0.5).tolist() == [0, 2, 1]
    assert group_by_similarity(image_feat, text_feat, 0, 0.4999).tolist() == [0, 1, 2]


@pytest.mark.parametrize('distinct', [True, False])
@pytest.mark.parametrize('quantile', QUANTILES)
def test_the_steps_of_a_gpu_lead_the_same_way_at_a_quantile(monkeypatch, distinct, quantile):
    image_feat, text_feat = features(100, width=2)
    if not distinct:
        image_feat, text_feat = image_feat.mul(2).round(), text_feat.mul(2).round()
    expected = group_queue(image_feat, text_feat, 32, generator_for(0), quantile)
    monkeypatch.setattr(grouping, '_chain', grouping._chain_on_gpu)
    assert torch.equal(group_queue(image_feat, text_feat, 32, generator_for(0), quantile), expected)


def test_quantile_1_takes_the_steps_of_grit_and_no_others(monkeypatch):
    image_feat, text_feat = features(60)
    monkeypatch.setattr(grouping.np, 'partition', None)  # not even called
    assert torch.equal(
        group_queue(image_feat, text_feat, 20, generator_for(0), 1.0),
        group_queue(image_feat, text_feat, 20, generator_for(0)),
    )
    monkeypatch.setattr(grouping, '_chain', grouping._chain_on_gpu)
    counts = []
    for quantile in (1, 0.5):
        with Operations() as operations:
            group_queue(image_feat, text_feat, 20, generator_for(0), quantile)
        counts.append(operations.count)
    assert counts[1] - counts[0] == 2 * 17  # kthvalue and eq in each of 19 steps but the last two


def test_grouping_at_a_quantile_never_waits_for_a_gpu():
    order = group_queue(*(feat.to('meta') for feat in features(70)), 16, generator_for(0), 0.9)
    assert order.shape == (70,) and order.is_meta


@pytest.mark.parametrize('quantile', QUANTILES)
@pytest.mark.parametrize('value', [0.0, math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize('on_gpu', [False, True])
def test_always_a_permutation_at_a_quantile(monkeypatch, quantile, value, on_gpu):
    if on_gpu:
        monkeypatch.setattr(grouping, '_chain', grouping._chain_on_gpu)
    image_feat, text_feat = features(33)
    text_feat[7], image_feat[::2, 3] = value, -value
    for pair in ((image_feat, text_feat), (torch.full((33, 4), value), torch.full((33, 4), -value))):
        assert is_permutation(group_by_similarity(*pair, 7, quantile), 33)
        assert is_permutation(group_queue(*pair, 8, generator_for(0), quantile), 33)


def test_neighbors_are_less_similar_at_a_lower_quantile():
    image_feat, text_feat = clustered(256)
    similarities = [
        neighbor_similarity(image_feat, text_feat, group_by_similarity(image_feat, text_feat, 0, quantile))
        for quantile in (1, 0.95, 0.8, 0.5, 0)
    ]
    assert all(harder > easier + 0.05 for harder, easier in zip(similarities, similarities[1:], strict=False))


@pytest.mark.parametrize('quantile', [-0.01, 1.01, math.nan])
def test_a_quantile_outside_is_refused(quantile):
    with pytest.raises(InputError, match='must be a number from 0 to 1'):
        group_queue(*features(20), 5, generator_for(0), quantile)


# ---- GritQuantile ----

FINITE = torch.tensor(True)


def auto(steps=50):
    """One that adapts, in an epoch that GRIT ordered; with 50 steps the rate of a step is 0.2."""
    quantile = GritQuantile('auto', 0.85)
    quantile.begin_epoch(True, steps)
    return quantile


def test_a_constant_stays():
    quantile = GritQuantile(0.99, 0.85)
    quantile.adapt(torch.tensor(0.0), FINITE)
    assert not quantile.adapts and quantile.value == 0.99
    assert GritQuantile(1, 0.85).value == 1.0


def test_a_run_that_resumes_with_another_setting_starts_where_auto_starts():
    quantile = auto()
    quantile.load_state_dict(GritQuantile(1, 0.85).state_dict())
    assert quantile.value == auto().value
    constant = GritQuantile(0.9, 0.85)
    constant.load_state_dict(quantile.state_dict())
    assert constant.value == 0.9


def test_the_distance_follows_the_formula_within_its_range():
    quantile = auto()
    assert quantile.adapts and quantile.value == pytest.approx(0.98)
    running, distance, seen = 0.85, 0.02, []
    for step in range(600):
        accuracy = 1.0 if step < 200 else 0.5
        quantile.adapt(torch.tensor(accuracy), FINITE)
        running = 0.95 * running + 0.05 * accuracy
        distance = min(max(distance * math.exp(-0.2 * (running - 0.85)), 0.001), 0.5)
        assert quantile.value == pytest.approx(1 - distance, abs=1e-5)
        seen.append(quantile.value)
    assert seen[0] > 0.98 and seen[50] < seen[100] < seen[199] == pytest.approx(0.999)  # harder while ITM is good
    assert seen[220] > seen[250] > seen[270] > seen[599] == pytest.approx(0.5)  # easier while it is not


def test_nothing_moves_without_evidence():
    quantile = auto()
    for _ in range(20):
        quantile.adapt(torch.tensor(0.85), FINITE)
    assert quantile.value == pytest.approx(0.98, abs=1e-6)


def test_in_other_epochs_nothing_moves():
    quantile = auto()
    quantile.begin_epoch(grouped=False, steps=50)
    quantile.adapt(torch.tensor(1.0), FINITE)
    assert quantile.value == pytest.approx(0.98) and quantile.accuracy == pytest.approx(0.85)
    quantile.begin_epoch(grouped=True, steps=50)
    quantile.adapt(torch.tensor(1.0), FINITE)
    assert quantile.value > 0.98


@pytest.mark.parametrize('steps', [300, 2000])
def test_an_answer_that_comes_an_epoch_later_does_not_make_it_swing(steps):
    """ITM answers to the u of the epoch before, with accuracy 0.80 + 0.10 log(1000 u) / log 500 and noise: u settles
    where that is the target, however many steps an epoch has.
    """
    quantile, trained_on, ends = auto(steps), 0.02, []
    noise = 0.01 * torch.randn(steps, generator=torch.Generator().manual_seed(0))
    for _ in range(12):
        accuracy = 0.80 + 0.10 * math.log(1000 * trained_on) / math.log(500)
        quantile.begin_epoch(True, steps)
        for error in noise:
            quantile.adapt(accuracy + error, FINITE)
        trained_on = quantile.distance.item()
        ends.append(quantile.value)
    assert all(0.97 < value < 0.985 for value in ends[-4:])  # the target is reached at u = 0.0224


def test_a_skipped_step_moves_nothing():
    quantile = auto()
    quantile.adapt(torch.tensor(0.0), torch.tensor(False))
    assert quantile.value == pytest.approx(0.98) and quantile.accuracy == pytest.approx(0.85)


def test_only_the_value_waits_for_the_device():
    quantile = auto()
    with Waits() as waits:
        quantile.adapt(torch.tensor(0.9), FINITE)
        assert not waits.names
        _ = quantile.value
    assert len(waits.names) == 1
    assert GritQuantile('auto', 0.85).to('meta').distance.is_meta


def test_what_is_saved_continues_exactly():
    first, second = auto(), auto()
    for _ in range(50):
        first.adapt(torch.tensor(0.9), FINITE)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert first.value == second.value != auto().value
    for quantile in (first, second):
        quantile.adapt(torch.tensor(0.95), FINITE)
    assert torch.equal(first.distance, second.distance) and torch.equal(first.accuracy, second.accuracy)


def adapt_on_a_rank(folder):
    """Adapt to an accuracy of 0.4 on rank 0, and of 1 on rank 1."""
    distributed.init(argparse.Namespace(device='cpu', distributed=True, dist_url='env://'))
    quantile = auto()
    for _ in range(30):
        quantile.adapt(torch.tensor(0.4 + 0.6 * distributed.rank()), FINITE)
    torch.save(quantile.state_dict(), f'{folder}/{distributed.rank()}.pth')
    distributed.close()


@pytest.mark.slow
def test_two_ranks_adapt_to_the_mean_of_both(tmp_path):
    check_run(adapt_on_a_rank, str(tmp_path), tmp_path / 'log', world_size=2)
    alone = auto()
    for _ in range(30):
        alone.adapt(torch.tensor(0.7), FINITE)
    first, second = (read_pth(tmp_path / f'{rank}.pth') for rank in (0, 1))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]) and torch.allclose(first[name], value)
