"""`BatchSimilarity` against sums over all pairs."""

import pytest
import torch

from dataset.grit.batch_similarity import BatchSimilarity
from tests.dataset.grit.test_grouping import features
from tests.helpers import through_a_file


def expected(batches):
    """(mean of neighbours, mean of all pairs of different examples), pair by pair."""
    neighbours = [
        image[i] @ text[j]
        for image, text in batches
        for i in range(len(image))
        for j in (i - 1, i + 1)
        if 0 <= j < len(image)
    ]
    image, text = (torch.cat(parts).double() for parts in zip(*batches, strict=True))
    different = ~torch.eye(len(image), dtype=torch.bool)
    return torch.stack(neighbours).double().mean().item(), (image @ text.t())[different].mean().item()


@pytest.fixture
def batches():
    return [features(n, seed=n) for n in (7, 1, 12)]


def test_means_are_those_of_all_pairs(batches):
    similarity = BatchSimilarity()
    for batch in batches:
        similarity.update(*batch)
    assert similarity.epoch() == pytest.approx(expected(batches), rel=1e-6)
    similarity.reset()
    similarity.update(*batches[2])
    assert similarity.epoch() == pytest.approx(expected(batches[2:]), rel=1e-6)


@pytest.mark.parametrize('done', range(4))
def test_it_continues_from_its_state(batches, done):
    one, other = BatchSimilarity(), BatchSimilarity()
    for batch in batches[:done]:
        one.update(*batch)
    other.load_state_dict(through_a_file(one.state_dict()))
    for batch in batches[done:]:
        other.update(*batch)
        one.update(*batch)
    assert other.epoch() == one.epoch()
