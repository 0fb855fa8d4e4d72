"""The pre-training model against the official numbers, and what it costs."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import create_model, losses
from models.bert_layers import BertConfig
from models.xbert import create_bert
from tests.helpers import Waits, check_gradients, reference_model, tensor, text, without_dropout
from tests.reference import load_json, load_reference
from utils.errors import InputError

LOSSES = ('loss_mlm', 'loss_itc', 'loss_itm')


def run_reference(tokenizer, **settings):
    model, reference = reference_model('pretrain', 'pretrain', tokenizer, **settings)
    model.mask_tokens = lambda ids: (tensor(reference['masked_ids']), tensor(reference['mlm_labels']))
    texts = text(reference['input_ids'], reference['attention_mask'])
    return model, reference, tensor(reference['image']), texts


@pytest.mark.parametrize('checkpointing', [False, True])
def test_losses_features_and_gradients_are_the_official_ones(tiny_tokenizer, checkpointing):
    model, reference, image, texts = run_reference(tiny_tokenizer, grad_checkpointing=checkpointing)
    if checkpointing:
        without_dropout(model)
    out = model(image, texts)
    for name in LOSSES:
        assert out[name].item() == pytest.approx(float(reference[name]), rel=1e-5)
    for name in ('image_feat', 'text_feat'):
        assert not out[name].requires_grad
        torch.testing.assert_close(out[name], tensor(reference[name]), atol=1e-5, rtol=1e-5)
    sum(out[name] for name in LOSSES).backward()
    check_gradients(model, reference)


def test_tokens_that_itm_does_not_read_are_not_computed():
    """`fuse` gives the first tokens of ITM's rows and all tokens of the others, and their gradients, as `forward`."""
    torch.manual_seed(0)
    sizes = {'hidden_size': 16, 'num_hidden_layers': 4, 'num_attention_heads': 2, 'intermediate_size': 32}
    bert = create_bert(BertConfig(**sizes, fusion_layer=2, encoder_width=16, hidden_dropout_prob=0.0)).eval()
    hidden, states = torch.randn(5, 7, 16, requires_grad=True), torch.randn(3, 4, 16, requires_grad=True)
    mask, index = torch.arange(7) < torch.tensor([[7], [3], [5], [7], [2]]), torch.tensor([0, 2, 2, 1, 0])

    def gradients(outputs):
        weights = [torch.linspace(-1, 1, out.numel()).view(out.shape) for out in outputs]
        total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        inputs = [hidden, states, *bert.encoder.layer[2:].parameters()]
        return torch.autograd.grad(total, inputs)

    with FlopCounterMode(display=False) as counter:
        itm, others = bert.fuse(hidden, mask, bert.project(states), index, itm_rows=3)
    with FlopCounterMode(display=False) as complete:
        fused = bert(hidden=hidden, attention_mask=mask, memory=bert.project(states), memory_index=index, mode='fusion')
    torch.testing.assert_close([itm, others], [fused[:3, :1], fused[3:]])
    torch.testing.assert_close(gradients([itm, others]), gradients([fused[:3, :1], fused[3:]]))
    saved = 3 * 6 * 2 * (4 * 16 * 16 + 2 * 16 * 32)  # of three rows six tokens: Q and output twice, feed-forward
    assert complete.get_total_flops() - counter.get_total_flops() >= saved


def test_bf16_keeps_similarities_and_losses_in_float32(tiny_tokenizer):
    model, reference, image, texts = run_reference(tiny_tokenizer)
    with torch.autocast('cpu', torch.bfloat16):
        out = model(image, texts)
    for name in LOSSES:
        assert out[name].dtype == torch.float32
        assert out[name].item() == pytest.approx(float(reference[name]), rel=0.05)
    assert out['image_feat'].dtype == torch.float32
    assert torch.allclose(out['image_feat'].norm(dim=1), torch.ones(6), atol=1e-6)


def test_hardest_negatives_do_not_underflow(tiny_tokenizer):
    """At a temperature of 0.001 softmax weights are 0 for most candidates; the raw similarities still tell them
    apart."""
    feat = F.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    sim = feat @ feat.t() / 0.001
    expected = (feat @ feat.t()).fill_diagonal_(-2).argmax(dim=1)
    own = losses.negative_mask(feat)
    assert torch.equal(losses.hardest_negatives(sim, own), expected)
    drawn = torch.stack([losses.sampled_negatives(sim, own) for _ in range(20)])
    assert (drawn != torch.arange(16)).all()


def test_equal_captions_and_images_can_be_excluded(tiny_tokenizer):
    ids = torch.tensor([[2, 5], [2, 5], [2, 6], [2, 7]])
    images = torch.tensor([10, 11, 12, 10])
    excluded = losses.negative_mask(ids, ids, images)
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[0, 3] = expected[3, 0] = True
    assert torch.equal(excluded, expected)
    same = torch.zeros(4, 2, dtype=torch.int64)
    assert torch.equal(
        losses.negative_mask(same, same), torch.eye(4, dtype=torch.bool)
    )  # falls back to the own pair only


def test_masking_chooses_only_words_and_as_often_as_configured(tiny_tokenizer):
    model, reference = reference_model('pretrain', 'pretrain', tiny_tokenizer, mlm_probability=0.3)
    torch.manual_seed(0)
    ids = torch.randint(4, 130, (400, 25))
    ids[:, 0], ids[:, -5:] = 2, 0
    masked, labels = model.mask_tokens(ids)
    is_target = labels != -100
    assert not is_target[:, 0].any() and not is_target[:, -5:].any()
    words = is_target[:, 1:-5]
    assert words.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(labels[is_target], ids[is_target]) and torch.equal(masked[~is_target], ids[~is_target])
    assert (masked[is_target] == 3).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (masked[is_target] == ids[is_target]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_a_batch_without_masked_tokens_has_no_mlm_loss(tiny_tokenizer):
    model, reference, image, texts = run_reference(tiny_tokenizer)
    model.mask_tokens = lambda ids: (ids, torch.full_like(ids, -100))
    out = model(image, texts)
    assert out['loss_mlm'].item() == 0
    sum(out[name] for name in LOSSES).backward()
    assert model.text_encoder.cls.predictions.transform.dense.weight.grad.abs().max() == 0


def test_the_temperature_is_clamped_in_place(tiny_tokenizer):
    model, reference, image, texts = run_reference(tiny_tokenizer)
    with torch.no_grad():
        model.temp.fill_(3.0)
    model(image, texts)
    assert model.temp.item() == 0.5


def test_consistency_and_negatives_are_options(tiny_tokenizer):
    full = run_reference(tiny_tokenizer)
    plain = run_reference(tiny_tokenizer, consistency_weight=0, itm_negatives='sampled')
    out, without = full[0](*full[2:]), plain[0](*plain[2:])
    sims = losses.similarities(out['image_feat'], out['text_feat'], full[0].temp)
    consistency = losses.consistency_loss(*sims)
    assert out['loss_itc'].item() == pytest.approx((without['loss_itc'] + 0.2 * consistency).item(), rel=1e-6)
    assert torch.isfinite(without['loss_itm'])


def test_a_step_takes_fewer_flops_than_the_official_one(monkeypatch):
    """71.1 GFLOP per pair officially, forward, ViT-B/16 at 256 px, 16 tokens (2 per multiply-add, attention as
    products)."""
    official = load_json('official_configs')
    config = {
        key: official['Pretrain'][key] for key in ('image_res', 'vision_width', 'embed_dim', 'temp', 'mlm_probability')
    }
    tokenizer = SimpleNamespace(pad_token_id=0, cls_token_id=101, mask_token_id=103)
    # Tensors without values take no memory and no time; only autocast does not know their device.
    monkeypatch.setattr(
        losses, 'similarities', lambda image, text, temp: (image @ text.t() / temp, text @ image.t() / temp)
    )
    model = create_model('pretrain', config | {'bert_config': official['config_bert']}, tokenizer).eval().to('meta')
    with torch.device('meta'):
        pairs = 4
        ids = torch.full((pairs, 16), 200)
        image = torch.zeros(pairs, 3, 256, 256)
        texts = SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))
        targets = torch.arange(pairs * 15)  # at most every word is a target
        model.mask_tokens = lambda x: (x, _Labels(x, targets))
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(image, texts)
    assert counter.get_total_flops() / pairs <= 0.86 * 71.1e9


class _Labels:
    """Labels of a tensor without values, for which `nonzero` cannot count: every word but [CLS] is a target."""

    def __init__(self, ids, targets):
        self.flatten = ids.flatten
        self.targets = targets

    def __ne__(self, other):
        return SimpleNamespace(flatten=lambda: SimpleNamespace(nonzero=lambda: self.targets[:, None]))


def test_negatives_are_chosen_without_waiting_for_the_device(tiny_tokenizer):
    """One wait per forward pass, for the number of masked positions; none in choosing negatives or after."""
    model, reference, image, texts = run_reference(tiny_tokenizer)
    with Waits() as waits:
        model(image, texts)
    assert waits.names == ['aten::nonzero']


def test_unknown_or_unfitting_settings_are_refused(tiny_tokenizer):
    config = load_reference('pretrain')['config']
    with pytest.raises(ValueError, match='vision_width 48 must equal vit.embed_dim 32'):
        create_model('pretrain', config | {'vision_width': 48}, tiny_tokenizer)
    with pytest.raises(ValueError, match='encoder_width 16 must equal'):
        create_model(
            'pretrain', config | {'bert_config': config['bert_config'] | {'encoder_width': 16}}, tiny_tokenizer
        )
    with pytest.raises(
        ValueError, match='unknown key bert_config.hiden_size; the nearest known key is bert_config.hidden_size'
    ):
        create_model('pretrain', config | {'bert_config': config['bert_config'] | {'hiden_size': 16}}, tiny_tokenizer)
    with pytest.raises(ValueError, match='multiple of vit.patch_size'):
        create_model('pretrain', config | {'image_res': 65}, tiny_tokenizer)
    with pytest.raises(ValueError, match='known are pretrain'):
        create_model('pretraining', config, tiny_tokenizer)


def test_a_model_without_fusion_layers_is_refused(tiny_tokenizer):
    bert = {'num_hidden_layers': 2, 'fusion_layer': 2}
    with pytest.raises(InputError, match='fusion_layer must be below num_hidden_layers: ITM and MLM'):
        reference_model('pretrain', 'pretrain', tiny_tokenizer, bert_config=bert)
