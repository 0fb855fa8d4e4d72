"""The models of two images against the official numbers; how they draw, tie, project and load."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models import create_model
from models.weights import double_fusion_layers, load_nlvr, load_text_assignment
from optim import create_optimizer
from tests.helpers import (
    albef_state,
    check_gradients,
    reference_model,
    reference_state,
    tensor,
    text,
    without_dropout,
)
from tests.reference import load_reference


def nlvr(tokenizer, name='nlvr', **changes):
    """(model, (images, text), targets, reference)"""
    model, reference = reference_model('nlvr', name, tokenizer, **changes)
    inputs = tensor(reference['images']), text(reference['input_ids'], reference['attention_mask'])
    return model, inputs, tensor(reference['targets']), reference


def assignment(tokenizer, **changes):
    """(model that draws what the official one drew, (image, text), reference)"""
    model, reference = reference_model('nlvr_pretrain', 'nlvr_pretrain', tokenizer, **changes)
    model.draw_assignment = lambda weights: tuple(tensor(reference[name]) for name in ('first', 'second', 'labels'))
    return model, (tensor(reference['image']), text(reference['input_ids'], reference['attention_mask'])), reference


# ---- agreement ----


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('name', ['nlvr', 'nlvr_distill'])
def test_logits_loss_and_gradients_are_the_official_ones(tiny_tokenizer, name, checkpointing):
    model, inputs, targets, reference = nlvr(tiny_tokenizer, name, grad_checkpointing=checkpointing)
    if checkpointing:
        without_dropout(model)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), tensor(reference['prediction']), atol=1e-5, rtol=1e-5)
    loss = model(*inputs, targets, alpha=float(reference['alpha']))
    assert loss.item() == pytest.approx(float(reference['loss']), rel=1e-5)
    loss.backward()
    check_gradients(model, reference)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_text_assignment_is_the_official_one(tiny_tokenizer, checkpointing):
    model, (image, texts), reference = assignment(tiny_tokenizer, grad_checkpointing=checkpointing)
    if checkpointing:
        without_dropout(model)
    weights = model.similarity_weights(model.visual_encoder(image), texts.input_ids)
    torch.testing.assert_close(weights, tensor(reference['weights']), atol=1e-7, rtol=1e-4)
    assert not weights.requires_grad
    loss = model(image, texts)
    assert loss.item() == pytest.approx(float(reference['loss']), rel=1e-5)
    loss.backward()
    check_gradients(model, reference)


def test_bf16_keeps_similarities_and_losses_in_float32(tiny_tokenizer):
    model, inputs, targets, _ = nlvr(tiny_tokenizer)
    assigning, others, other = assignment(tiny_tokenizer)
    drawn = []
    assigning.draw_assignment = lambda weights: (
        drawn.append(weights) or tuple(tensor(other[name]) for name in ('first', 'second', 'labels'))
    )
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(*inputs, targets), assigning(*others)
        assert model(*inputs).dtype == torch.float32
    assert [loss.dtype for loss in losses] == [torch.float32] * 2 and torch.stack(losses).isfinite().all()
    torch.testing.assert_close(drawn[0], tensor(other['weights']), atol=0.02, rtol=0.2)
    assert drawn[0].dtype == torch.float32


# ---- two images ----


def plain_logits(model, images, texts):
    """The same network written out: layer by layer, each projecting its own image."""
    embeds = model.visual_encoder(images).chunk(2)
    bert = model.text_encoder
    hidden, mask = bert.embeddings(texts.input_ids), texts.attention_mask[:, None, None].bool()
    for number, layer in enumerate(bert.encoder.layer):
        after = number - bert.config.fusion_layer
        memory = layer.crossattention.project(embeds[after % 2]) if after >= 0 else None
        hidden = layer(hidden, mask, memory)
    return model.cls_head(hidden[:, 0])


@pytest.mark.parametrize('fusion_layer, layers, expected', [(2, 4, 6), (1, 4, 7), (0, 2, 4), (3, 3, 3)])
def test_doubling_follows_the_configuration(tiny_tokenizer, fusion_layer, layers, expected):
    reference = load_reference('nlvr')
    shape = {'fusion_layer': fusion_layer, 'num_hidden_layers': layers}
    config = reference['config'] | {'bert_config': reference['config']['bert_config'] | shape}
    model = create_model('nlvr', config, tiny_tokenizer).eval()
    assert len(model.text_encoder.encoder.layer) == expected
    inputs = tensor(reference['images']), text(reference['input_ids'], reference['attention_mask'])
    torch.testing.assert_close(model(*inputs), plain_logits(model, *inputs), atol=1e-5, rtol=1e-5)


def tied(model):
    """Names of the second layers' keys and values, with the first layers' names."""
    fusion_layer = model.text_encoder.config.fusion_layer
    for first in range(fusion_layer, model.text_encoder.config.num_hidden_layers, 2):
        for part in ('key.weight', 'key.bias', 'value.weight', 'value.bias'):
            yield tuple(f'text_encoder.encoder.layer.{n}.crossattention.self.{part}' for n in (first, first + 1))


def test_pairs_share_keys_and_values_as_parameters(tiny_tokenizer):
    """The state dict has both names of one parameter, also after loading and training."""
    model, inputs, targets, reference = nlvr(tiny_tokenizer, 'nlvr_distill')
    optimizer = create_optimizer({'opt': 'adamW', 'lr': 1e-2, 'weight_decay': 0.02}, model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(*inputs, targets, alpha=0.4).backward()
    optimizer.step()
    state, names = model.state_dict(), dict(model.named_parameters())
    assert state.keys() == {key.removeprefix('state/') for key in reference if key.startswith('state/')}
    pairs = list(tied(model))
    assert len(pairs) == 24
    for first, second in pairs:
        assert first in names and second not in names
        assert state[first].data_ptr() == state[second].data_ptr()
        assert not torch.equal(state[first], before[first])
        momentum = [name.replace('text_encoder', 'text_encoder_m') for name in (first, second)]
        assert state[momentum[0]].data_ptr() == state[momentum[1]].data_ptr() != state[first].data_ptr()
    counted = [parameter for group in optimizer.param_groups for parameter in group['params']]
    assert len(counted) == len({id(parameter) for parameter in counted})


def projected(model, run):
    """How many images each first layer's key map saw in each call, and the second layers' maps."""
    rows = Counter()
    for number, layer in enumerate(model.text_encoder.encoder.layer):
        if hasattr(layer, 'crossattention'):
            original = layer.crossattention.project
            layer.crossattention.project = lambda states, number=number, original=original: (
                rows.update({number: len(states)}),
                original(states),
            )[1]
    run()
    return dict(rows)


def test_every_image_is_projected_once_for_each_pair_of_layers(tiny_tokenizer):
    model, inputs, targets, _ = nlvr(tiny_tokenizer)
    assert projected(model, lambda: model(*inputs, targets)) == {number: 6 for number in range(6, 18, 2)}
    model, inputs, _ = assignment(tiny_tokenizer)
    assert projected(model, lambda: model(*inputs)) == {number: 6 for number in range(6, 18, 2)}


# ---- text assignment ----


def test_equal_captions_and_images_are_distractors_unless_excluded(tiny_tokenizer):
    for exclude in (False, True):
        model, (image, texts), _ = assignment(tiny_tokenizer, exclude_equal_negatives=exclude)
        embeds, keys = model.visual_encoder(image), torch.tensor([1, 2, 1, 4, 5, 6])
        ids = texts.input_ids.clone()
        ids[4] = ids[5]
        weights = model.similarity_weights(embeds, ids, keys)
        equal = torch.zeros(6, 6, dtype=torch.bool)
        equal[0, 2] = equal[2, 0] = equal[4, 5] = equal[5, 4] = True
        assert torch.equal(weights == 0, torch.eye(6, dtype=torch.bool) | (equal & exclude))


def test_projections_and_temperature_are_not_trained(tiny_tokenizer):
    model, inputs, _ = assignment(tiny_tokenizer)
    model(*inputs).backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {'temp', 'vision_proj.weight', 'vision_proj.bias', 'text_proj.weight', 'text_proj.bias'}
    without_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without_gradient == frozen  # or several processes would wait for gradients that never come
    assert frozen <= model.state_dict().keys()


# ---- distillation ----


def test_momentum_copies_follow_training_only(tiny_tokenizer):
    model, inputs, targets, _ = nlvr(tiny_tokenizer, 'nlvr_distill', momentum=0.9)
    with torch.no_grad():
        model.cls_head[2].weight.add_(1.0)
    before, target = model.cls_head_m[2].weight.clone(), model.cls_head[2].weight.detach()
    with torch.no_grad():
        model(*inputs), model(*inputs, targets, alpha=0.4)
    assert torch.equal(model.cls_head_m[2].weight, before)
    model(*inputs, targets, alpha=0.4).backward()
    torch.testing.assert_close(model.cls_head_m[2].weight, 0.9 * before + 0.1 * target)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if '_m.' in name)


def test_distillation_adds_the_momentum_copy_s_predictions_to_the_targets(tiny_tokenizer):
    model, inputs, targets, _ = nlvr(tiny_tokenizer, 'nlvr_distill', momentum=1.0)
    with torch.no_grad():
        model.cls_head_m[2].bias.add_(torch.tensor([2.0, -1.0]))
        logits = model(*inputs)
        hard, mixed, soft = (model(*inputs, targets, alpha=alpha) for alpha in (0.0, 0.3, 1.0))
    assert hard.item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)
    assert mixed.item() == pytest.approx((0.7 * hard + 0.3 * soft).item(), rel=1e-5)
    assert soft.item() != pytest.approx(hard.item(), rel=1e-2)


@torch.no_grad()
def test_the_momentum_copy_can_be_evaluated(tiny_tokenizer):
    model, inputs, _, _ = nlvr(tiny_tokenizer, 'nlvr_distill')
    model.cls_head_m[2].bias.add_(torch.tensor([2.0, -1.0]))
    state = {key.replace('_m.', '.', 1): value for key, value in model.state_dict().items() if '_m.' in key}
    copy = fresh('nlvr', tiny_tokenizer).eval()
    copy.load_state_dict(state)
    logits = model(*inputs, use_momentum=True)
    torch.testing.assert_close(logits, copy(*inputs))
    assert not torch.allclose(logits, model(*inputs), atol=0.1)


# ---- loading ----


def fresh(task, tokenizer, **changes):
    return create_model(task, load_reference(task)['config'] | changes, tokenizer)


def check_doubled(model, state):
    """Every weight is the pre-training checkpoint's: layer l >= 6 is at 6 + 2 (l - 6) and at the next."""
    origin = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5} | {6 + 2 * k + i: 6 + k for k in range(6) for i in (0, 1)}
    compared = 0
    for key, value in model.state_dict().items():
        if key.startswith('text_encoder.encoder.layer.'):
            number = int(key.split('.')[3])
            key = key.replace(f'layer.{number}.', f'layer.{origin[number]}.', 1)
        key = key.replace('text_encoder.', 'text_encoder.bert.', 1)
        if not key.startswith(('ta_head', 'cls_head')) and '_m.' not in key:
            assert torch.equal(value, state[key]), key
            compared += 1
    return compared


@pytest.mark.parametrize('make', [lambda: reference_state('pretrain'), albef_state], ids=['pretrain', 'albef'])
def test_pretraining_loads_into_both_with_its_fusion_layers_doubled(tiny_tokenizer, make):
    state = make()
    model = fresh('nlvr_pretrain', tiny_tokenizer)
    report = load_text_assignment(model, dict(state), 'p.pth')
    assert check_doubled(model, state) == len(model.state_dict()) - 2
    assert report.missing == ['ta_head.weight', 'ta_head.bias']
    assert {key for key in report.unexpected if not key.startswith('text_encoder.cls')} == {
        key for key in state if '_m.' in key or 'queue' in key or key.startswith('itm_head')
    }
    assert 'each fusion layer, from 6 on, is loaded twice' in str(report)

    model = fresh('nlvr', tiny_tokenizer)
    report = load_nlvr(model, dict(state), 'p.pth')
    assert check_doubled(model, state) == len(model.state_dict()) - 4
    assert all(key.startswith('cls_head') for key in report.missing)


def test_text_assignment_loads_into_nlvr_layer_by_layer(tiny_tokenizer):
    state = assignment(tiny_tokenizer)[0].state_dict()
    model = fresh('nlvr', tiny_tokenizer, distill=True, image_res=96)
    report = load_nlvr(model, state, 'a.pth')
    loaded = model.state_dict()
    shared = [key for key in state if key in loaded and key != 'visual_encoder.pos_embed']
    assert len(shared) > 400 and all(torch.equal(loaded[key], state[key]) for key in shared)
    assert report.resized == ['visual_encoder.pos_embed'] and 'is loaded twice' not in str(report)
    assert set(report.unexpected) == {
        'ta_head.weight',
        'ta_head.bias',
        'temp',
        'vision_proj.weight',
        'vision_proj.bias',
        'text_proj.weight',
        'text_proj.bias',
    }


@pytest.mark.parametrize('make', [lambda: reference_state('pretrain'), albef_state], ids=['pretrain', 'albef'])
def test_momentum_copies_are_copies_of_the_loaded_weights(tiny_tokenizer, make):
    model = fresh('nlvr', tiny_tokenizer, distill=True)
    report = load_nlvr(model, make(), 'p.pth')
    assert 'momentum copies: copies of the loaded weights' in str(report)
    for module, copy in model.momentum_pairs():
        assert all(map(torch.equal, module.parameters(), copy.parameters()))
    assert len(model.momentum_pairs()) == 3


def test_nlvr_loads_itself_to_be_evaluated_or_trained_again(tiny_tokenizer):
    state = nlvr(tiny_tokenizer, 'nlvr_distill')[0].state_dict()
    model = fresh('nlvr', tiny_tokenizer)
    report = load_nlvr(model, state, 'n.pth', head=True)
    assert report.missing == [] and all('_m.' in key for key in report.unexpected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match='p.pth does not fit this model: missing keys: cls_head.0.weight'):
        load_nlvr(model, reference_state('pretrain'), 'p.pth', head=True)


def test_the_momentum_copy_of_a_checkpoint_is_loaded_on_request(tiny_tokenizer):
    state = nlvr(tiny_tokenizer, 'nlvr_distill')[0].state_dict()
    state = {key: value + 1 if '_m.' in key and value.is_floating_point() else value for key, value in state.items()}
    copied, loaded = (fresh('nlvr', tiny_tokenizer, distill=True) for _ in range(2))
    report = load_nlvr(copied, dict(state), 'n.pth', head=True)
    assert 'momentum copies: copies of the loaded weights' in str(report)
    assert torch.equal(copied.cls_head_m[0].weight, state['cls_head.0.weight'])
    report = load_nlvr(loaded, dict(state), 'n.pth', head=True, momentum=True)
    assert report.missing == report.unexpected == [] and 'momentum copies' not in str(report)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    without = {key: value for key, value in state.items() if '_m.' not in key}
    with pytest.raises(ValueError, match='n.pth has no momentum copy to evaluate; set eval_ema: false'):
        load_nlvr(loaded, without, 'n.pth', head=True, momentum=True)


def test_what_does_not_fit_is_refused(tiny_tokenizer):
    shorter = {key: value for key, value in reference_state('pretrain').items() if '.layer.11.' not in key}
    with pytest.raises(ValueError, match='p.pth does not fit this model: missing keys: text_encoder.encoder.layer.11'):
        load_nlvr(fresh('nlvr', tiny_tokenizer), shorter, 'p.pth')
    with pytest.raises(ValueError, match='unexpected keys: text_decoder.cls.weight'):
        load_nlvr(
            fresh('nlvr', tiny_tokenizer),
            reference_state('pretrain') | {'text_decoder.cls.weight': torch.zeros(1)},
            'v.pth',
        )
    with pytest.raises(ValueError, match='missing keys: temp, vision_proj.weight'):
        load_text_assignment(fresh('nlvr_pretrain', tiny_tokenizer), nlvr(tiny_tokenizer)[0].state_dict(), 'n.pth')


@given(fusion_layer=st.integers(0, 4), more=st.integers(0, 4))
def test_the_map_of_layers_gives_every_layer_once(fusion_layer, more):
    layers, doubled = fusion_layer + more, fusion_layer + 2 * more
    state = {f'text_encoder.encoder.layer.{n}.output.layer.7.weight': n for n in range(layers)} | {
        'other.layer.3.bias': 9
    }
    mapped = double_fusion_layers(state, fusion_layer, doubled)
    assert list(mapped.values()) == [*range(fusion_layer), *(n for n in range(fusion_layer, layers) for _ in (0, 1)), 9]
    assert mapped.keys() == {f'text_encoder.encoder.layer.{n}.output.layer.7.weight' for n in range(doubled)} | {
        'other.layer.3.bias'
    }
    assert double_fusion_layers(mapped, fusion_layer, doubled) is mapped
