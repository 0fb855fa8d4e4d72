"""The rate of false negatives against a loop over the pairs."""

import pytest
import torch

from models.false_negatives import false_negative_rate
from tests.helpers import Waits


def batch(rows=40, images=25, most=6, seed=0):
    """(image_key, true_of): rows of some images, each text true of its own image and of up to five others."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**62), 2**62, (images,), generator=generator)
    image_key = keys[torch.randint(images, (rows,), generator=generator)]
    others = keys[torch.randint(images, (rows, most - 1), generator=generator)]
    is_padding = torch.rand(rows, most - 1, generator=generator) < 0.5
    return image_key, torch.cat([image_key[:, None], others.where(~is_padding, image_key[:, None])], 1)


def rate_of(image_key, true_of, *pairs):
    return false_negative_rate({'image_key': image_key, 'true_of': true_of}, *pairs)


def taught(rows, pairs, seed=1):
    """(images, texts, is_negative) of some pairs of a batch."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randint(rows, (2, pairs), generator=generator)
    return images, texts, torch.rand(pairs, generator=generator) < 0.6


@pytest.mark.parametrize('seed', range(3))
def test_the_rate_is_that_of_a_loop(seed):
    image_key, true_of = batch(seed=seed)
    images, texts, is_negative = taught(40, 120, seed)
    false = [
        image_key[i].item() in true_of[j].tolist()
        for i, j, negative in zip(images.tolist(), texts.tolist(), is_negative.tolist(), strict=True)
        if negative
    ]
    rate = rate_of(image_key, true_of, images, texts, ~is_negative)
    assert rate.shape == () and rate.dtype == torch.float32
    assert 0 < sum(false) < len(false) < 120 and rate.item() == pytest.approx(sum(false) / len(false))


def test_no_negatives_and_negatives_that_all_match():
    image_key, true_of = batch()
    images, texts, is_negative = taught(40, 50)
    assert (
        false_negative_rate(
            {'image_key': image_key, 'true_of': true_of}, images, texts, torch.ones_like(is_negative)
        ).item()
        == 0
    )
    own = torch.arange(40)
    assert (
        false_negative_rate(
            {'image_key': image_key, 'true_of': true_of}, own, own, torch.zeros(40, dtype=torch.bool)
        ).item()
        == 1
    )


def test_nothing_waits_for_the_device():
    image_key, true_of = batch()
    with Waits() as waits:
        rate_of(image_key, true_of, *taught(40, 50))
    assert waits.names == []
