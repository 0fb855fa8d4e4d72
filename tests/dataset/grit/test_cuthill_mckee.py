"""The grouping by Cuthill-McKee: permutations, similar neighbors, and SciPy that may be missing."""

import math
import sys

import pytest
import torch

from dataset.grit import cuthill_mckee, group_queue
from dataset.grit.collector import GritCollector
from dataset.grit.cuthill_mckee import cuthill_mckee_order, require_grouping
from dataset.grit.grouping import example_shuffle, generator_for
from tests.dataset.grit.test_grouping import features, is_permutation
from tests.dataset.grit.test_quantile import clustered, neighbor_similarity
from utils.errors import InputError


def bandwidth(image_feat, text_feat, order, neighbors):
    """How far apart in an order the ends of an edge are at most; edges lead to the most similar others."""
    sim = (image_feat @ text_feat.t() + text_feat @ image_feat.t()).fill_diagonal_(-math.inf)
    place = order.argsort()
    return (place[:, None] - place[sim.topk(neighbors).indices]).abs().max().item()


def test_the_ends_of_edges_are_near_each_other(monkeypatch):
    monkeypatch.setattr(cuthill_mckee, 'NEIGHBORS', 2)
    angle = torch.rand(100, generator=torch.Generator().manual_seed(0)) * math.pi / 2
    points = torch.stack(
        [angle.cos(), angle.sin()], dim=1
    ).double()  # on an arc: the edges are between those next to it
    order = cuthill_mckee_order(points, points)
    assert bandwidth(points, points, order, 2) <= 4 < 50 < bandwidth(points, points, torch.arange(100), 2)


def test_neighbors_are_more_similar_than_random_ones():
    image_feat, text_feat = clustered(512)
    order = group_queue(image_feat, text_feat, 256, generator_for(0), grouping='cuthill_mckee')
    grouped = neighbor_similarity(image_feat, text_feat, order)
    assert grouped > 0.3 + neighbor_similarity(image_feat, text_feat, torch.arange(512))


@pytest.mark.parametrize('length', [0, 1, 2, 15, 16, 17, 79])
@pytest.mark.parametrize('search_space', [1, 16, 100])
def test_every_sub_queue_has_its_own_order(length, search_space):
    image_feat, text_feat = features(length)
    order = group_queue(image_feat, text_feat, search_space, generator_for(0), 0.5, 'cuthill_mckee')
    assert is_permutation(order, length)
    shuffled = example_shuffle(length, generator_for(0))
    for sub, grouped in zip(shuffled.split(search_space), order.split(search_space), strict=True):
        if len(sub):
            assert torch.equal(grouped, sub[cuthill_mckee_order(image_feat[sub], text_feat[sub])])


@pytest.mark.parametrize('value', [0.0, math.nan, math.inf, -math.inf, 3e38])
def test_always_a_permutation(value):
    image_feat, text_feat = features(50)
    text_feat[7], image_feat[::2, 3] = value, -value
    for pair in ((image_feat, text_feat), (torch.full((50, 4), value), torch.full((50, 4), -value))):
        assert is_permutation(group_queue(*pair, 40, generator_for(0), grouping='cuthill_mckee'), 50)


def test_nan_counts_as_zero_and_precision_and_autocast_do_not_matter():
    image_feat, text_feat = features(80)
    image_feat[3], text_feat[4, 2] = math.nan, math.nan
    clean = image_feat.nan_to_num(nan=0.0), text_feat.nan_to_num(nan=0.0)
    expected = group_queue(*clean, 80, generator_for(0), grouping='cuthill_mckee')
    with torch.autocast('cpu', torch.bfloat16):
        order = group_queue(image_feat.requires_grad_(), text_feat, 80, generator_for(0), grouping='cuthill_mckee')
    assert torch.equal(order, expected)


def test_a_grouping_that_is_not_available_is_refused_at_once(monkeypatch):
    with pytest.raises(InputError, match=r"grit_grouping 'x': .* give one of chain, cuthill_mckee"):
        require_grouping('x')
    monkeypatch.setitem(sys.modules, 'scipy', None)
    require_grouping('chain')
    for refused in (
        lambda: require_grouping('cuthill_mckee'),
        lambda: GritCollector(16, 8, 0, grouping='cuthill_mckee'),
    ):
        with pytest.raises(InputError, match='cuthill_mckee needs SciPy; pip install scipy, or set grit_grouping: ch'):
            refused()
