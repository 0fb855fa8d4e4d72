"""ALBEF's own pre-training against the official numbers: momentum encoders, queue, soft targets; its checkpoints."""

import pytest
import torch
import torch.nn.functional as F

from models import create_model, losses
from models.weights import load_pretrain
from tests.helpers import Waits, albef_state, check_gradients, reference_model, reference_state, tensor, text
from tests.reference import load_reference

LOSSES = ('loss_mlm', 'loss_itc', 'loss_itm')


def reference_batch(tokenizer, monkeypatch, **settings):
    """(model, the reference's entries, arguments): masking and negatives are the reference's."""
    monkeypatch.setattr(losses, 'draw', lambda weights: weights.argmax(dim=1))
    model, reference = reference_model('pretrain', 'pretrain_albef', tokenizer, **settings)
    model.mask_tokens = lambda ids: (tensor(reference['masked_ids']), tensor(reference['mlm_labels']))
    return model, reference, (tensor(reference['image']), text(reference['input_ids'], reference['attention_mask']))


def test_losses_and_gradients_are_the_official_ones(tiny_tokenizer, monkeypatch):
    model, reference, batch = reference_batch(tiny_tokenizer, monkeypatch)
    out = model(*batch, alpha=float(reference['alpha']))
    for name in LOSSES:
        assert out[name].item() == pytest.approx(float(reference[name]), rel=1e-5), name
    sum(out[name] for name in LOSSES).backward()
    check_gradients(model, reference)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if '_m.' in name)


def test_queue_and_momentum_after_a_step_are_the_official_ones(tiny_tokenizer, monkeypatch):
    model, reference, batch = reference_batch(tiny_tokenizer, monkeypatch)
    model(*batch, alpha=float(reference['alpha']))
    for name in ('image_queue', 'text_queue'):
        torch.testing.assert_close(getattr(model, name), tensor(reference[f'after_{name}']), atol=1e-5, rtol=1e-5)
    assert model.queue_ptr.tolist() == tensor(reference['after_queue_ptr']).long().tolist()
    torch.testing.assert_close(model.visual_encoder_m.blocks[0].mlp.fc1.weight, tensor(reference['after_m']))
    query = model.text_encoder_m.bert.encoder.layer[7].attention.self.query.weight
    torch.testing.assert_close(query, tensor(reference['after_text_m']))


def test_names_shapes_and_types_of_the_weights_are_albefs(tiny_tokenizer):
    model = create_model('pretrain', load_reference('pretrain_albef')['config'], tiny_tokenizer)
    official, own = reference_state('pretrain_albef'), model.state_dict()
    assert own.keys() == official.keys()
    for key, value in own.items():
        assert (value.shape, value.dtype) == (official[key].shape, official[key].dtype), key


@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_a_training_step_waits_once_and_keeps_its_losses(tiny_tokenizer, precision):
    """For the number of masked positions, as without momentum; momentum encoders recompute nothing."""
    config = load_reference('pretrain_albef')['config'] | {'grad_checkpointing': True}
    model, reference = create_model('pretrain', config, tiny_tokenizer), load_reference('pretrain_albef')
    assert model.text_encoder.bert.grad_checkpointing and not model.text_encoder_m.bert.grad_checkpointing
    with torch.autocast('cpu', torch.bfloat16, enabled=precision == torch.bfloat16), Waits() as waits:
        out = model(tensor(reference['image']), text(reference['input_ids'], reference['attention_mask']), alpha=0.4)
    assert waits.names == ['aten::nonzero']
    assert all(out[name].dtype == torch.float32 and out[name].isfinite() for name in LOSSES)
    assert model.image_queue.dtype == torch.float32


def test_without_gradients_nothing_is_updated(tiny_tokenizer, monkeypatch):
    model, _, batch = reference_batch(tiny_tokenizer, monkeypatch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(*batch)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_copies_start_equal_and_follow(tiny_tokenizer):
    """A new model's copies are its parts, with tied embeddings; an update moves them by 1 - momentum."""
    model = create_model('pretrain', load_reference('pretrain_albef')['config'], tiny_tokenizer)
    for part, copy in model.momentum_pairs():
        assert all(map(torch.equal, part.state_dict().values(), copy.state_dict().values()))
    embeddings = model.text_encoder_m.bert.embeddings.word_embeddings.weight
    assert model.text_encoder_m.cls.predictions.decoder.weight is embeddings
    assert model.image_queue.shape == (16, 24) and torch.allclose(model.image_queue.norm(dim=0), torch.ones(24))
    with torch.no_grad():
        model.vision_proj.weight.add_(1)
    before = model.vision_proj_m.weight.clone()
    model.update_momentum()
    torch.testing.assert_close(model.vision_proj_m.weight, before + 0.1)  # momentum 0.9


def test_the_queue_has_a_size_of_its_own(tiny_tokenizer):
    config = load_reference('pretrain_albef')['config']
    assert create_model('pretrain', config | {'itc_queue_size': 40}, tiny_tokenizer).text_queue.shape == (16, 40)


def test_consistency_compares_the_batch_only(tiny_tokenizer, monkeypatch):
    """GRIT's consistency loss with ALBEF's queue: over the B columns of the batch."""
    plain = reference_batch(tiny_tokenizer, monkeypatch)
    both = reference_batch(tiny_tokenizer, monkeypatch, consistency_weight=0.2)
    seen = []
    similarities = both[0].similarities
    both[0].similarities = lambda *args: seen.append(similarities(*args)) or seen[-1]
    without, out = plain[0](*plain[2], alpha=0.4), both[0](*both[2], alpha=0.4)
    i2t, t2i = (sim[:, :6] for sim in seen[0])
    terms = [
        -(F.log_softmax(i2t, dim=1) * F.softmax(t2i, dim=1)).sum(dim=1).mean(),
        -(F.log_softmax(t2i, dim=1) * F.softmax(i2t, dim=1)).sum(dim=1).mean(),
    ]
    assert out['loss_itc'].item() == pytest.approx((without['loss_itc'] + 0.1 * sum(terms)).item(), rel=1e-6)


def test_weights_of_every_origin_load(tiny_tokenizer):
    """Of ALBEF with copies and queue; of GRIT-VLP without; of ALBEF with a queue of another size, which is dropped."""
    config = load_reference('pretrain_albef')['config']

    def load(state):
        model = create_model('pretrain', config, tiny_tokenizer)
        return model, load_pretrain(model, state, 'file')

    official = reference_state('pretrain_albef')
    model, report = load(official)
    assert all(torch.equal(value, official[key]) for key, value in model.state_dict().items())
    assert report.missing == report.unexpected == []

    model, report = load(reference_state('pretrain'))
    assert all(
        torch.equal(one, other)
        for part, copy in model.momentum_pairs()
        for one, other in zip(part.parameters(), copy.parameters(), strict=True)
    )
    assert 'momentum encoders: copies of the loaded weights' in str(report)

    model, report = load(albef_state())
    assert torch.equal(model.vision_proj_m.weight, albef_state()['vision_proj_m.weight'])
    assert model.image_queue.shape == (16, 24) and model.image_queue.any()
    assert 'the queue of the file, 65536 features, is dropped; a new one has 24' in str(report)
