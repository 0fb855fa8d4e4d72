"""Grad-CAM: against a computation with finite differences, and which layers can be shown."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from models import create_model
from models.gradcam import choose_layer, token_maps
from tests.helpers import text
from utils.errors import InputError

CONFIG = {
    'image_res': 32,
    'vit': {'patch_size': 8, 'embed_dim': 16, 'depth': 1, 'num_heads': 2},
    'embed_dim': 8,
    'bert_config': {
        'hidden_size': 16,
        'num_hidden_layers': 5,
        'fusion_layer': 1,
        'num_attention_heads': 2,
        'intermediate_size': 32,
        'vocab_size': 50,
        'initializer_range': 0.5,
    },
}


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_model('retrieval', CONFIG, None).eval().requires_grad_(False).double()


@pytest.fixture(scope='module')
def pairs():
    torch.manual_seed(1)
    ids = torch.randint(5, 50, (2, 4))
    return torch.randn(2, 3, 32, 32, dtype=torch.float64), text(ids, np.array([[1, 1, 1, 1], [1, 1, 1, 0]]))


def match_logit(model, image, words, layer, change=None):
    """(the ITM logit of "match" of a pair, the weights of a layer's cross-attention [H, L, P]).

    change: (head, token, patch, h) adds h to one of these weights.
    """
    bert, first, seen = model.text_encoder, model.bert_config.fusion_layer, []
    attention = bert.encoder.layer[first + layer - 1].crossattention

    def forward(hidden, key, value, mask):
        heads = attention.self.query(hidden)[0].view(-1, 2, 8).transpose(0, 1)  # [H, L, d]
        weights = torch.softmax(torch.einsum('hld,hpd->hlp', heads, key[0]) / 8**0.5, dim=-1)
        seen.append(weights.clone())
        if change:
            head, token, patch, h = change
            weights[head, token, patch] += h
        context = torch.einsum('hlp,hpd->lhd', weights, value[0]).flatten(1)
        return attention.output(context[None], hidden)

    attention.forward = forward  # hides the method
    try:
        hidden = bert(words[0][None], words[1][None], memory=bert.project(model.visual_encoder(image[None])))
    finally:
        del attention.forward
    return float(model.itm_head(hidden[:, 0])[0, 1]), seen[0]


@pytest.mark.parametrize('layer', [3, 1])
def test_maps_are_attention_times_the_positive_part_of_its_gradient(model, pairs, layer):
    image, words = pairs
    token, h = 2, 1e-4
    maps = token_maps(model, image, words, None if layer == 3 else layer)  # the third layer is the default
    assert maps.shape == (2, 4, 4, 4) and (maps >= 0).all() and maps[1, 3].eq(0).all() and maps[0, 3].max() > 0
    for row in range(2):
        own = words.input_ids[row], words.attention_mask[row]
        weights = match_logit(model, image[row], own, layer)[1]
        for patch in (1, 7, 16):  # behind [CLS]
            expected = 0
            for head in range(2):
                up, down = (match_logit(model, image[row], own, layer, (head, token, patch, s * h))[0] for s in (1, -1))
                expected += max(0, (up - down) / (2 * h)) * float(weights[head, token, patch]) / 2
            assert float(maps[row, token].flatten()[patch - 1]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_attention_alone_is_its_mean_over_the_heads(model, pairs):
    image, words = pairs
    maps = token_maps(model, image, words, layer=2, method='attention')
    weights = match_logit(model, image[0], (words.input_ids[0], words.attention_mask[0]), 2)[1]
    torch.testing.assert_close(maps[0], weights.mean(dim=0)[:, 1:].unflatten(1, (4, 4)).float())
    assert maps[1, 3].eq(0).all() and maps[1, 2].sum() > 0
    with pytest.raises(InputError, match="heat maps by 'lime' are unknown; give gradcam or attention"):
        token_maps(model, image, words, method='lime')


def test_maps_are_the_same_in_any_mode_and_thread(model, pairs):
    image, words = pairs
    expected = token_maps(model, image, words)
    with torch.inference_mode():
        inside = token_maps(model, image + 0, text(words.input_ids + 0, words.attention_mask + 0))
    with ThreadPoolExecutor(3) as threads:
        maps = [*threads.map(lambda layer: token_maps(model, image, words, layer), [3, 1, 3, 2, 3, 1, 3])]
    assert all(torch.equal(maps[number], expected) for number in (0, 2, 4, 6)) and torch.equal(inside, expected)
    assert torch.equal(maps[1], maps[5]) and not torch.equal(maps[1], expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_that_cannot_be_shown_are_named(model):
    assert [choose_layer(model, layer) for layer in (None, 1, 3)] == [3, 1, 3]
    for layer in (0, 4, 9, '2'):
        with pytest.raises(InputError, match=f'fusion layer {layer}: .*the model has 4, give one from 1 to 3'):
            choose_layer(model, layer)
    shallow = {num: CONFIG | {'bert_config': CONFIG['bert_config'] | {'num_hidden_layers': num}} for num in (3, 2)}
    assert choose_layer(create_model('retrieval', shallow[3], None), None) == 1
    with pytest.raises(InputError, match='the model has 1, it has no other'):
        choose_layer(create_model('retrieval', shallow[2], None), None)
