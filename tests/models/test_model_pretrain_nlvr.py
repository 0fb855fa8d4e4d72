"""Which two images text assignment shows each text with."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import create_model
from models.model_pretrain_nlvr import FIRST, NEITHER, SECOND
from tests.helpers import (
    Waits,
)
from tests.reference import load_reference


@pytest.fixture(scope='module')
def draw(tiny_tokenizer):
    """`draw_assignment` of a small model."""
    config = load_reference('nlvr_pretrain')['config']
    shape = config['bert_config'] | {'num_hidden_layers': 1, 'fusion_layer': 0}
    return create_model('nlvr_pretrain', config | {'bert_config': shape}, tiny_tokenizer).draw_assignment


def random_weights(batch, seed, zeros=0.0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(batch, batch, generator=generator) ** 4
    weights[torch.rand(batch, batch, generator=generator) < zeros] = 0.0
    return weights.fill_diagonal_(0.0)


@given(batch=st.integers(3, 9), seed=st.integers(0, 10**6), zeros=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
@settings(max_examples=100, deadline=None)
def test_an_assignment_is_what_its_label_says(draw, batch, seed, zeros):
    """Whatever the weights, also if a row has one or none: own image first, second, or two different others."""
    torch.manual_seed(seed)
    weights = random_weights(batch, seed, zeros)
    first, second, labels = draw(weights)
    for row, (one, other, label) in enumerate(zip(first.tolist(), second.tolist(), labels.tolist(), strict=True)):
        assert one != other and label in (FIRST, SECOND, NEITHER)
        assert (one == row) == (label == FIRST) and (other == row) == (label == SECOND)
        distractors = [image for image in (one, other) if image != row]
        if int((weights[row] > 0).sum()) >= len(distractors):  # an image of weight 0 only if there is no other
            assert all(weights[row, image] > 0 for image in distractors)


def test_draws_follow_the_weights(draw):
    """The three answers as likely; one distractor by its weight; of two the second by weight among those that
    remain."""
    torch.manual_seed(0)
    weights = torch.zeros(2000, 2000)
    weights[:, :3] = share = torch.tensor([0.6, 0.3, 0.1])
    drawn = [
        torch.stack(draw(weights.clone().fill_diagonal_(0.0)))[:, 3:] for _ in range(10)
    ]  # images 0 to 2 are wanted
    first, second, labels = torch.cat(drawn, dim=1)
    assert torch.bincount(labels, minlength=3).div(len(labels)).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    single = torch.cat([second[labels == FIRST], first[labels == SECOND]])
    assert torch.bincount(single).div(len(single)).tolist() == pytest.approx(share.tolist(), abs=0.02)
    both = labels == NEITHER
    pairs = torch.bincount(3 * first[both] + second[both], minlength=9).view(3, 3).div(int(both.sum()))
    expected = (share[:, None] * share / (1 - share[:, None])).fill_diagonal_(0.0)
    torch.testing.assert_close(pairs, expected, atol=0.02, rtol=0)


def test_a_draw_is_from_the_default_generator_and_waits_for_nothing(draw):
    weights = random_weights(64, 0)
    torch.manual_seed(1)
    with Waits() as waits:
        once = draw(weights)
    assert waits.names == []
    again = draw(weights)
    torch.manual_seed(1)
    assert all(map(torch.equal, draw(weights), once)) and not torch.equal(again[0], once[0])


@pytest.mark.parametrize('batch', [1, 2])
def test_a_batch_without_two_other_images_is_refused(draw, batch):
    with pytest.raises(ValueError, match=f'batches of at least 3 pairs, not {batch}'):
        draw(torch.zeros(batch, batch))
