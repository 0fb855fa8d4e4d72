"""The retrieval model against the official numbers; its queue, its negatives, its scores, and what they cost."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_rerank import count_operations, random_encoded
from models import create_model, losses, rerank
from models.weights import load_retrieval
from tests.helpers import check_gradients, reference_model, reference_state, tensor, text
from tests.reference import load_reference

argmax = lambda weights: weights.argmax(dim=1)  # noqa: E731  in place of a draw


def run_reference(name, tokenizer, monkeypatch):
    monkeypatch.setattr(losses, 'draw', argmax)
    model, reference = reference_model('retrieval', name, tokenizer)
    out = model(
        tensor(reference['image']),
        text(reference['input_ids'], reference['attention_mask']),
        idx=tensor(reference['idx']),
        alpha=float(reference['alpha']),
    )
    return model, reference, out


def batch_of(reference):
    return (
        tensor(reference['image']),
        text(reference['input_ids'], reference['attention_mask']),
        tensor(reference['idx']),
    )


@pytest.mark.parametrize('name', ['retrieval_plain', 'retrieval_momentum'])
def test_losses_and_gradients_are_the_official_ones(tiny_tokenizer, monkeypatch, name):
    model, reference, out = run_reference(name, tiny_tokenizer, monkeypatch)
    for loss in ('loss_itc', 'loss_itm'):
        assert out[loss].item() == pytest.approx(float(reference[loss]), rel=1e-5)
    assert out['no_negative'] == 0
    (out['loss_itc'] + out['loss_itm']).backward()
    check_gradients(model, reference)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if '_m.' in name)


def test_queue_and_momentum_after_a_step_are_the_official_ones(tiny_tokenizer, monkeypatch):
    model, reference, _ = run_reference('retrieval_momentum', tiny_tokenizer, monkeypatch)
    torch.testing.assert_close(model.image_queue, tensor(reference['after_image_queue']), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.idx_queue, tensor(reference['after_idx_queue']))
    assert torch.equal(model.queue_ptr, tensor(reference['after_ptr']).long())
    torch.testing.assert_close(model.visual_encoder_m.blocks[0].mlp.fc1.weight, tensor(reference['after_m']))


def test_without_gradients_nothing_is_updated(tiny_tokenizer):
    model, reference = reference_model('retrieval', 'retrieval_momentum', tiny_tokenizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(*batch_of(reference))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_queue_accepts_batches_of_any_size(tiny_tokenizer):
    """24 positions: 10 + 10 + 10 continue at the beginning, of 60 the last 24 stay; each is where its number says."""
    model, _ = reference_model('retrieval', 'retrieval_momentum', tiny_tokenizer)
    feat = torch.arange(90.0)[:, None].expand(90, 16)
    expected, first = torch.full((24,), -100), 0
    model.idx_queue.fill_(-100)
    model.queue_ptr.zero_()
    for size in (10, 10, 10, 60):
        numbers = torch.arange(first, first + size)
        model.enqueue(feat[numbers], -feat[numbers], numbers)
        for number in numbers.tolist():
            expected[number % 24] = number
        first += size
        assert model.idx_queue[0].tolist() == expected.tolist() and model.queue_ptr.item() == first % 24
        filled = expected >= 0
        assert torch.equal(model.image_queue[3, filled].long(), expected[filled])
        assert torch.equal(-model.text_queue[5, filled].long(), expected[filled])


def test_captions_of_one_image_are_positives_and_never_negatives(tiny_tokenizer, monkeypatch):
    drawn = []

    def draw(weights):
        drawn.append(weights.clone())
        return argmax(weights)

    monkeypatch.setattr(losses, 'draw', draw)
    model, reference = reference_model('retrieval', 'retrieval_plain', tiny_tokenizer)
    image, texts, _ = batch_of(reference)
    idx = torch.tensor([7, 3, 7, 3, 9, 7])
    out = model(image, texts, idx=idx)
    assert len(drawn) == 2  # other texts and other images
    for weights in drawn:
        assert ((weights > 0) == (idx[:, None] != idx[None])).all()
        assert torch.allclose(weights.sum(dim=1), torch.ones(6))

    with torch.no_grad():
        sim = (
            model.encode_image(image)[1] @ model.encode_text(texts.input_ids, texts.attention_mask)[1].t() / model.temp
        )
    same = (idx[:, None] == idx[None]).float()
    expected = [
        -(F.log_softmax(s, dim=1) * same / same.sum(dim=1, keepdim=True)).sum(dim=1).mean() for s in (sim, sim.t())
    ]
    assert out['loss_itc'].item() == pytest.approx(sum(expected).item() / 2, rel=1e-5)


def test_a_batch_of_one_image_has_no_negatives(tiny_tokenizer):
    """There are no negatives: ITM sees only the positives, and no_negative counts the pairs."""
    for name in ('retrieval_plain', 'retrieval_momentum'):
        model, reference = reference_model('retrieval', name, tiny_tokenizer)
        image, texts, _ = batch_of(reference)
        out = model(image, texts, idx=torch.full((6,), 5), alpha=0.4)
        assert out['no_negative'] == 6
        with torch.no_grad():
            embeds, states = model.encode_image(image)[0], model.encode_text(texts.input_ids, texts.attention_mask)[0]
            fused = model.text_encoder(
                mode='fusion',
                hidden=states,
                attention_mask=texts.attention_mask,
                memory=model.text_encoder.project(embeds),
            )
            expected = F.cross_entropy(model.itm_head(fused[:, 0]), torch.ones(6, dtype=torch.int64))
        assert out['loss_itm'].item() == pytest.approx(expected.item(), rel=1e-5)
        (out['loss_itc'] + out['loss_itm']).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_weights_that_underflow_still_give_a_negative(tiny_tokenizer):
    """At this temperature the softmax of an own pair is 1 and all others are 0; a negative is drawn all the same."""
    model, reference = reference_model('retrieval', 'retrieval_plain', tiny_tokenizer)
    image, texts, _ = batch_of(reference)
    with torch.no_grad():
        model.temp.fill_(1e-5)
    out = model(image, texts, idx=torch.arange(6))
    assert out['no_negative'] == 0 and torch.isfinite(out['loss_itm'])


def test_distillation_needs_the_momentum_model(tiny_tokenizer):
    config = load_reference('retrieval_momentum')['config']
    with pytest.raises(ValueError, match='distill: true needs the momentum model: set use_momentum: true'):
        create_model('retrieval', config | {'use_momentum': False}, tiny_tokenizer)


# ---- scores


def batches(reference, images=7, texts=18):
    """The reference's images and texts in batches of the given sizes."""
    ids, mask = reference['input_ids'], reference['attention_mask']
    return (
        tensor(reference['images']).split(images),
        [text(ids[i : i + texts], mask[i : i + texts]) for i in range(0, len(ids), texts)],
    )


@pytest.mark.parametrize('sizes', [(7, 18), (2, 5), (1, 1)])
def test_scores_are_the_official_ones_in_any_batches(tiny_tokenizer, sizes):
    model, reference = reference_model('retrieval', 'retrieval_scores', tiny_tokenizer)
    scores = model.score_matrices(*batches(reference, *sizes), 5)
    for ours, name in zip(scores, ('score_i2t', 'score_t2i'), strict=True):
        expected = tensor(reference[name])
        assert torch.equal(ours == -100, expected == -100)
        assert (ours - expected).abs().max() < 1e-5 * 10  # scores are of this size


def test_dropout_is_off_while_scoring(tiny_tokenizer):
    model, reference = reference_model('retrieval', 'retrieval_scores', tiny_tokenizer)
    expected = model.score_matrices(*batches(reference), 5)
    model.train()
    assert all(torch.equal(a, b) for a, b in zip(model.score_matrices(*batches(reference), 5), expected, strict=True))
    assert model.training


def slow_scores(model, images, texts, k):
    """Pair after pair, each in a pass of its own, with its padding."""
    image_embeds, image_feat = model.encode_image(images)
    text_embeds, text_feat = model.encode_text(texts.input_ids, texts.attention_mask)
    sim = image_feat @ text_feat.t()

    def score(i, t):
        fused = model.text_encoder(
            mode='fusion',
            hidden=text_embeds[t : t + 1],
            attention_mask=texts.attention_mask[t : t + 1],
            memory=model.text_encoder.project(image_embeds[i : i + 1]),
        )
        return model.itm_head(fused[:, 0])[0, 1]

    i2t, t2i = torch.full(sim.shape, -100.0), torch.full(sim.t().shape, -100.0)
    for i, row in enumerate(sim):
        for t in row.topk(min(k, len(row))).indices.tolist():
            i2t[i, t] = score(i, t)
    for t, row in enumerate(sim.t()):
        for i in row.topk(min(k, len(row))).indices.tolist():
            t2i[t, i] = score(i, t)
    return i2t, t2i


@pytest.mark.parametrize('k', [0, 3, 100])
def test_scores_equal_one_pair_after_the_other(tiny_tokenizer, monkeypatch, k):
    """Texts of many lengths, more texts than fit in a forward, k beyond the candidates; each image is projected once
    and each pair runs once.
    """
    monkeypatch.setattr(rerank, 'TEXTS_AT_ONCE', 4)
    monkeypatch.setattr(rerank, 'ROWS_AT_ONCE', 3)
    model, reference = reference_model('retrieval', 'retrieval_scores', tiny_tokenizer)
    torch.manual_seed(0)
    lengths = torch.randint(2, 13, (20,))
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(4, 130, (20, 12)) * mask
    texts = SimpleNamespace(input_ids=ids, attention_mask=mask)
    images = tensor(reference['images'])
    with torch.no_grad():
        expected = slow_scores(model, images, texts, k)

    projected, rows = [], []
    project, forward = model.text_encoder.project, model.text_encoder.forward
    monkeypatch.setattr(
        model.text_encoder, 'project', lambda states: (projected.append(len(states)), project(states))[1]
    )
    monkeypatch.setattr(
        model.text_encoder,
        'forward',
        lambda *args, **kwargs: (
            rows.append(kwargs['attention_mask'].sum(dim=1)) if kwargs['mode'] == 'fusion' else None,
            forward(*args, **kwargs),
        )[1],
    )
    scores = model.score_matrices(
        images.split(3),
        [SimpleNamespace(input_ids=ids[i : i + 8], attention_mask=mask[i : i + 8]) for i in range(0, 20, 8)],
        k,
    )
    for ours, wanted in zip(scores, expected, strict=True):
        assert torch.equal(ours == -100, wanted == -100)
        assert (ours - wanted).abs().max() < 1e-4
    either = (expected[0] > -100) | (expected[1].t() > -100)
    assert projected == [1] * int(either.any(dim=1).sum()) and sum(map(len, rows)) == int(either.sum())
    assert all(len(lengths) <= 4 and lengths.max() - lengths.min() < 4 for lengths in rows)


def test_batches_of_all_ranks_are_put_in_order(monkeypatch):
    """Rank r has batches r, r + W, ...; the last of five ranks has none."""
    parts = [torch.arange(4.0), torch.arange(4.0, 7.0), torch.arange(7.0, 9.0), torch.arange(9.0, 10.0)]
    for world_size in (1, 2, 3, 5):
        held = [parts[rank::world_size] for rank in range(world_size)]
        sizes = [torch.tensor([len(part) for part in of_rank], dtype=torch.int64) for of_rank in held]
        rows = [torch.cat([torch.empty(0), *of_rank]) for of_rank in held]
        firsts = []
        for rank in range(world_size):
            answers = iter((sizes, rows))
            monkeypatch.setattr(rerank.distributed, 'all_gather_tensors', lambda tensor, answers=answers: next(answers))
            monkeypatch.setattr(rerank.distributed, 'rank', lambda rank=rank: rank)
            everything, first = rerank.gather_batches(held[rank], torch.empty(0))
            assert torch.equal(everything, torch.arange(10.0))
            firsts += first
        assert sorted(firsts) == [0, 4, 7, 9]


@pytest.mark.parametrize('words, share', [(10.5, 0.16), (60, 0.25)])
def test_re_ranking_takes_at_most_a_quarter_of_the_official_flops(words, share):
    """At full size, 384 px: captions of ten words and [CLS], and the worst case, captions that fill all 30 tokens."""
    encoded = random_encoded(images=6, captions=5, words=words, tokens=577)
    official, ours = count_operations(encoded, encoded.similarities(), 4)
    assert official == pytest.approx((6 + 30) * 4 * 11.5e9, rel=0.01)
    assert ours <= share * official


# ---- loading


def as_pretraining(state, momentum=False):
    """What pre-training saves, made from a retrieval model's state: a masked-language head, `bert.` in the names;
    ALBEF's momentum copies and queue on request.
    """
    keep = {key: value for key, value in state.items() if momentum or not re.search(r'_m\.|queue', key)}
    renamed = {re.sub(r'^(text_encoder(_m)?)\.', r'\1.bert.', key): value for key, value in keep.items()}
    renamed['text_encoder.cls.predictions.bias'] = torch.zeros(130)
    if momentum:
        renamed |= {
            'text_encoder_m.cls.predictions.bias': torch.zeros(130),
            'image_queue': torch.zeros(16, 65536),
            'text_queue': torch.zeros(16, 65536),
            'queue_ptr': torch.zeros(1, dtype=torch.int64),
        }
        del renamed['idx_queue']
    return renamed


def test_weights_of_every_origin_load(tiny_tokenizer):
    source, _ = reference_model('retrieval', 'retrieval_momentum', tiny_tokenizer)
    state, config = source.state_dict(), load_reference('retrieval_momentum')['config']

    def load(state, **settings):
        torch.manual_seed(1)
        model = create_model('retrieval', config | settings, tiny_tokenizer)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        return model.state_dict(), start, load_retrieval(model, state, 'f.pth')

    online = [key for key in state if not re.search(r'_m\.|queue', key)]
    copies = [key for key in state if '_m.' in key]
    # GRIT-VLP: the copies and the queue stay as they are, and are reported as missing.
    loaded, start, report = load(as_pretraining(state))
    assert all(torch.equal(loaded[key], state[key]) for key in online)
    assert all(torch.equal(loaded[key], start[key]) for key in [*copies, 'image_queue', 'idx_queue'])
    assert set(report.missing) == {key for key in state if key not in online and not key.endswith('position_ids')}
    assert report.unexpected == ['text_encoder.cls.predictions.bias']
    # ALBEF: its copies are loaded, its queue is dropped, which is reported. Position embeddings of another resolution
    # are resized in both encoders.
    loaded, start, report = load(as_pretraining(state, momentum=True), image_res=96)
    assert report.resized == ['visual_encoder.pos_embed', 'visual_encoder_m.pos_embed']
    assert all(torch.equal(loaded[key], state[key]) for key in [*online, *copies] if 'pos_embed' not in key)
    assert torch.equal(loaded['image_queue'], start['image_queue'])
    assert 'the queue of the file, 65536 features, is dropped; a new one has 24' in str(report)
    # Retrieval itself, also without momentum from now on.
    loaded, start, report = load(dict(state))
    assert all(torch.equal(loaded[key], state[key]) for key in [*online, *copies])
    assert torch.equal(loaded['idx_queue'], start['idx_queue'])
    loaded, _, report = load(dict(state), use_momentum=False, distill=False)
    assert all(torch.equal(loaded[key], state[key]) for key in online) and report.missing == []
    assert set(report.unexpected) == set(state) - set(online)


@pytest.mark.parametrize(
    'name, message',
    [
        ('vqa', 'f.pth does not fit this model: missing keys: .*unexpected keys: text_decoder'),
        ('nlvr', 'f.pth does not fit this model: missing keys: .*unexpected keys: .*Is it a checkpoint of this task'),
    ],
)
def test_weights_of_another_task_are_refused(tiny_tokenizer, name, message):
    model = create_model('retrieval', load_reference('retrieval_plain')['config'], tiny_tokenizer)
    with pytest.raises(ValueError, match=message):
        load_retrieval(model, reference_state(name), 'f.pth')


def test_another_architecture_is_refused(tiny_tokenizer):
    model, reference = reference_model('retrieval', 'retrieval_plain', tiny_tokenizer)
    config = reference['config']
    other = create_model('retrieval', config | {'vit': config['vit'] | {'depth': 2}}, tiny_tokenizer)
    with pytest.raises(ValueError, match='f.pth does not fit this model: unexpected keys: visual_encoder.blocks.2'):
        load_retrieval(other, model.state_dict(), 'f.pth')
