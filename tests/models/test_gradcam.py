"""Grad-CAM: against a computation with finite differences, and which layers can be shown."""

import numpy as np
import pytest
import torch

from models import create_model
from models.gradcam import choose_layer, recorded, token_maps
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


def match_logit(model, image, words, change=None):
    """The ITM logit of "match" of a pair; change: (layer, head, token, patch, h) adds h to one attention weight."""
    bert, first = model.text_encoder, model.bert_config.fusion_layer
    states = model.visual_encoder(image[None])
    ids, mask = words
    hidden = bert(ids[None], mask[None], mode='text')

    def attend(query, key, value, mask):
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
        _, head, token, patch, h = change
        weights[0, head, token, patch] += h
        return weights @ value

    attention = bert.encoder.layer[first + change[0] - 1].crossattention
    attention.attend = attend
    try:
        fused = bert(mode='fusion', hidden=hidden, attention_mask=mask[None], memory=bert.project(states))
    finally:
        del attention.attend
    return float(model.itm_head(fused[:, 0])[0, 1])


def test_maps_are_attention_times_the_positive_part_of_its_gradient(model, pairs):
    image, words = pairs
    layer, token, h = 3, 2, 1e-4
    maps = token_maps(model, image, words)  # the third layer is the default
    assert maps.shape == (2, 4, 4, 4) and (maps >= 0).all() and maps[1, 3].eq(0).all() and maps[0, 3].max() > 0
    bert = model.text_encoder
    for row in range(2):
        own = words.input_ids[row], words.attention_mask[row]
        attention = bert.encoder.layer[model.bert_config.fusion_layer + layer - 1].crossattention
        with recorded(attention) as weights:
            hidden = bert(own[0][None], own[1][None], mode='text')
            memory = bert.project(model.visual_encoder(image[row : row + 1]))
            bert(mode='fusion', hidden=hidden, attention_mask=own[1][None], memory=memory)
        for patch in (1, 7, 16):  # behind [CLS]
            expected = 0
            for head in range(2):
                up, down = (match_logit(model, image[row], own, (layer, head, token, patch, s * h)) for s in (1, -1))
                expected += max(0, (up - down) / (2 * h)) * weights[0][0, head, token, patch].item() / 2
            assert float(maps[row, token].flatten()[patch - 1]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_attention_alone_is_its_mean_over_the_heads(model, pairs):
    image, words = pairs
    maps = token_maps(model, image, words, layer=2, method='attention')
    with recorded(model.text_encoder.encoder.layer[2].crossattention) as weights:
        token_maps(model, image, words, layer=3)
    expected = weights[0].detach().mean(dim=1)[..., 1:].unflatten(2, (4, 4)).float()
    torch.testing.assert_close(maps[0], expected[0])
    assert maps[1, 3].eq(0).all() and torch.allclose(maps[1, :3], expected[1, :3])
    with pytest.raises(InputError, match="heat maps by 'lime' are unknown; give gradcam or attention"):
        token_maps(model, image, words, method='lime')


def test_recording_changes_no_result_and_ends(model, pairs):
    image, words = pairs
    states, _ = model.encode_image(image)
    hidden, _ = model.encode_text(words.input_ids, words.attention_mask)
    bert = model.text_encoder
    inputs = {'mode': 'fusion', 'hidden': hidden, 'attention_mask': words.attention_mask}
    before = bert(**inputs, memory=bert.project(states))
    attention = bert.encoder.layer[2].crossattention
    with recorded(attention) as weights:
        torch.testing.assert_close(bert(**inputs, memory=bert.project(states)), before)
    torch.testing.assert_close(weights[0].sum(dim=-1), torch.ones(2, 2, 4, dtype=torch.float64))
    assert bert(**inputs, memory=bert.project(states)).equal(before) and len(weights) == 1


def test_layers_that_cannot_be_shown_are_named(model):
    assert [choose_layer(model, layer) for layer in (None, 1, 3)] == [3, 1, 3]
    for layer in (0, 4, 9):
        with pytest.raises(InputError, match=f'fusion layer {layer}: .*the model has 4, give one from 1 to 3'):
            choose_layer(model, layer)
    shallow = {num: CONFIG | {'bert_config': CONFIG['bert_config'] | {'num_hidden_layers': num}} for num in (3, 2)}
    assert choose_layer(create_model('retrieval', shallow[3], None), None) == 1
    with pytest.raises(InputError, match='the model has 1, it has no other'):
        choose_layer(create_model('retrieval', shallow[2], None), None)
