"""MAFA: the filter of false negatives, what it changes in the losses, and the smoothed targets of ITC."""

import pytest
import torch
import torch.nn.functional as F

from models import create_model, losses
from models.itm_negatives import ItmNegatives
from models.match_filter import MatchFilter, load_filter
from models.tokenization_bert import create_tokenizer
from tests.helpers import Waits, reference_model, text
from utils.errors import InputError, MissingFileError


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 130, (6, 9), generator=generator)
    ids[:, 0], ids[2, 6:] = 2, 0
    return torch.randn(6, 3, 64, 64, generator=generator), text(ids, (ids != 0).long())


def reference(tokenizer, **settings):
    model, _ = reference_model('pretrain', 'pretrain', tokenizer, **settings)
    masked = torch.zeros(6, 9, dtype=torch.bool)
    masked[:, 1:4] = True
    model.mask_tokens = lambda ids: (ids.masked_fill(masked, 3), ids.masked_fill(~masked, -100))
    return model


class KnownProbabilities:
    """A filter that knows the probabilities: {(image, text): probability}, else 0."""

    def __init__(self, probability):
        self.known, self.requested = probability, []

    def probability(self, image, texts, image_numbers, text_numbers):
        pairs = list(zip(image_numbers.tolist(), text_numbers.tolist(), strict=True))
        self.requested.append(pairs)
        return torch.tensor([self.known.get(pair, 0.0) for pair in pairs])

    __call__ = MatchFilter.__call__


def test_the_probability_is_that_of_each_pair_alone(tiny_tokenizer, batch):
    image, texts = batch
    model, _ = reference_model('retrieval', 'retrieval_plain', tiny_tokenizer)
    images, numbers = torch.tensor([0, 0, 3, 5]), torch.tensor([0, 2, 2, 1])
    found = MatchFilter(model.train()).probability(image, texts, images, numbers)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    for i, j, probability in zip(images.tolist(), numbers.tolist(), found, strict=True):
        states = model.text_encoder(texts.input_ids[j : j + 1], texts.attention_mask[j : j + 1], mode='text')
        memory = model.text_encoder.project(model.visual_encoder(image[i : i + 1]))
        fused = model.text_encoder(
            mode='fusion', hidden=states, attention_mask=texts.attention_mask[j : j + 1], memory=memory
        )
        expected = model.itm_head(fused[:, 0]).softmax(dim=1)[0, 1]
        assert probability.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    'probability, match, doubtful',
    [(0.49, False, False), (0.5, False, False), (0.51, False, True), (0.8, False, True), (0.81, True, False)],
)
def test_the_borders(probability, match, doubtful):
    known = KnownProbabilities({(1, 2): probability})
    found = known(None, None, torch.tensor([1]), torch.tensor([2]))
    assert [part.tolist() for part in found] == [[match], [doubtful]]


def test_a_doubtful_negative_gives_way_to_the_second_hardest(tiny_tokenizer, batch):
    """Of image 0 the hardest text is doubtful, of image 1 it matches and stays; of text 0 the image is doubtful."""
    model = reference(tiny_tokenizer)
    plain = model(*batch)['pairs']
    sims = [sim.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf) for sim in similarities(model, batch)]
    first, second = zip(*(sim.topk(2, dim=1).indices.t() for sim in sims), strict=True)
    assert torch.equal(plain.texts[:6], first[0]) and torch.equal(plain.images[6:], first[1])
    model.filter = KnownProbabilities(
        {(0, first[0][0].item()): 0.6, (1, first[0][1].item()): 0.9, (first[1][0].item(), 0): 0.8}
    )
    pairs = model(*batch)['pairs']
    assert model.filter.requested == [list(zip(plain.images.tolist(), plain.texts.tolist(), strict=True))]
    assert pairs.texts[:6].tolist() == [second[0][0], *first[0][1:]]
    assert pairs.images[6:].tolist() == [second[1][0], *first[1][1:]]
    assert pairs.is_match.nonzero().flatten().tolist() == [1]


def similarities(model, batch):
    with torch.no_grad():
        out = model(*batch)
        return losses.similarities(out['image_feat'], out['text_feat'], model.temp)


def test_a_pair_without_another_candidate_keeps_its_negative(tiny_tokenizer, batch):
    model = reference(tiny_tokenizer)
    image, texts = batch
    two = image[:2], text(texts.input_ids[:2], texts.attention_mask[:2])
    model.mask_tokens = lambda ids: (ids, ids)
    model.filter = KnownProbabilities(dict.fromkeys([(0, 1), (1, 0)], 0.7))
    assert model(*two)['pairs'].texts.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize('policy', ['sampled', 'uniform'])
def test_the_next_choice_follows_the_policy_without_the_first(policy):
    """Three candidates, of which the first choice is gone: the third takes its place, whatever the policy."""
    negatives = ItmNegatives({0: policy}, 0.85)
    sim, excluded = torch.zeros(3, 3), torch.eye(3, dtype=torch.bool)
    chosen, replaced = torch.tensor([1, 2, 0]), torch.tensor([True, False, True])
    for _ in range(5):
        assert negatives.next_choice(sim, excluded, chosen, replaced).tolist() == [2, 2, 1]


def test_what_matches_is_a_positive_of_every_loss(tiny_tokenizer, batch):
    """ITM's label, one more row of MLM, and half of ITC's target; each against a computation of its own."""
    model = reference(tiny_tokenizer, consistency_weight=0)
    image, texts = batch
    plain = model(*batch)
    sim_i2t, sim_t2i = similarities(model, batch)
    other_text, other_image = plain['pairs'].texts[:6].tolist(), plain['pairs'].images[6:].tolist()
    found = {(2, other_text[2]), (other_image[4], 4)}
    model.filter = KnownProbabilities(dict.fromkeys(found, 0.9))
    out = model(*batch)
    matches = [(i, j) in found for i, j in zip(out['pairs'].images.tolist(), out['pairs'].texts.tolist(), strict=True)]
    assert out['pairs'].is_match.tolist() == matches and 2 <= sum(matches) <= 4

    def fused(ids, images, numbers):
        encoder = model.text_encoder.bert
        states = encoder(ids[numbers], texts.attention_mask[numbers], mode='text')
        memory = encoder.project(model.visual_encoder(image[images]))
        return encoder(mode='fusion', hidden=states, attention_mask=texts.attention_mask[numbers], memory=memory)

    with torch.no_grad():
        images = [*range(6), *out['pairs'].images.tolist()]
        numbers = [*range(6), *out['pairs'].texts.tolist()]
        logits = model.itm_head(fused(texts.input_ids, images, numbers)[:, 0])
        labels = torch.tensor([True] * 6 + matches).long()
        assert out['loss_itm'].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)

        masked, mlm_labels = model.mask_tokens(texts.input_ids)
        rows = [*range(6), *(k + 6 for k, match in enumerate(matches) if match)]
        images, numbers = [images[row] for row in rows], [numbers[row] for row in rows]
        logits = model.text_encoder.cls(fused(masked, images, numbers))
        expected = F.cross_entropy(logits.flatten(0, 1), mlm_labels[numbers].flatten(), ignore_index=-100)
        assert out['loss_mlm'].item() == pytest.approx(expected.item(), rel=1e-5)

        terms = []
        for sim, others, own in ((sim_i2t, other_text, matches[:6]), (sim_t2i, other_image, matches[6:])):
            log_p = F.log_softmax(sim, dim=1)
            terms += [-(log_p[i, i] + log_p[i, others[i]]) / 2 if own[i] else -log_p[i, i] for i in range(6)]
        assert out['loss_itc'].item() == pytest.approx(sum(terms).item() / 12, rel=1e-5)
    sum(out[name] for name in ('loss_mlm', 'loss_itc', 'loss_itm')).backward()
    assert torch.isfinite(model.vision_proj.weight.grad).all()


def test_with_momentum_what_matches_has_a_teacher_too(tiny_tokenizer, batch):
    """MLM's extra row is distilled like the others, and half of the hard part of ITC's target is the match."""
    model, _ = reference_model('pretrain', 'pretrain_albef', tiny_tokenizer, itm_negatives='hard')
    model.mask_tokens = reference(tiny_tokenizer).mask_tokens
    image, texts = batch
    with torch.no_grad():
        other = model(*batch)['pairs'].texts[2].item()
        model.filter = KnownProbabilities({(2, other): 0.9})
        out, alpha = model(*batch, alpha=0.3), 0.3
        assert out['pairs'].is_match.sum() == 1 + (out['pairs'].images[6 + other] == 2)

        masked, labels = model.mask_tokens(texts.input_ids)
        matched = out['pairs'].is_match
        images = [*range(6), *out['pairs'].images[matched].tolist()]
        numbers = [*range(6), *out['pairs'].texts[matched].tolist()]
        logits = []
        for encoder, vit in (
            (model.text_encoder, model.visual_encoder),
            (model.text_encoder_m, model.visual_encoder_m),
        ):
            states = encoder.bert(masked[numbers], texts.attention_mask[numbers], mode='text')
            memory = encoder.bert.project(vit(image[images]))
            atts = texts.attention_mask[numbers]
            fused = encoder.bert(mode='fusion', hidden=states, attention_mask=atts, memory=memory)
            logits.append(encoder.cls(fused)[labels[numbers] != -100])
        words = labels[numbers][labels[numbers] != -100]
        expected = (1 - alpha) * F.cross_entropy(logits[0], words)
        expected += alpha * F.cross_entropy(logits[0], logits[1].softmax(dim=1))
        assert out['loss_mlm'].item() == pytest.approx(expected.item(), rel=1e-5)

        teacher = model.teach(image, texts, masked)
        terms = []
        for feat, feat_m, candidates, others, found in (
            (out['image_feat'], teacher.image_feat, teacher.texts, out['pairs'].texts[:6], matched[:6]),
            (out['text_feat'], teacher.text_feat, teacher.images, out['pairs'].images[6:], matched[6:]),
        ):
            target = torch.eye(6, 6 + 24)
            for i in range(6):
                if found[i]:
                    target[i, i] = target[i, others[i]] = 0.5
            target = alpha * (feat_m @ candidates.t() / model.temp).softmax(dim=1) + (1 - alpha) * target
            terms.append(-(F.log_softmax(feat @ candidates.t() / model.temp, dim=1) * target).sum(dim=1).mean())
        assert out['loss_itc'].item() == pytest.approx(sum(terms).item() / 2, rel=1e-5)


def test_the_filter_waits_twice_more_for_the_device(tiny_tokenizer, batch):
    """For the number of its positives, and for that of the masked positions with them."""
    model = reference(tiny_tokenizer)
    retrieval, _ = reference_model('retrieval', 'retrieval_plain', tiny_tokenizer)
    model.filter = MatchFilter(retrieval)
    with Waits() as waits:
        model(*batch)
    assert waits.names == ['aten::nonzero'] * 3


def test_smoothed_targets():
    """By hand: row 0 has a second positive; half of every target is uniform over the five candidates."""
    targets = losses.itc_targets((3, 5), torch.tensor([2, 0, 1]), torch.tensor([True, False, False]), smoothing=0.5)
    expected = [[0.35, 0.1, 0.35, 0.1, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1]]
    torch.testing.assert_close(targets, torch.tensor(expected))
    assert torch.equal(losses.itc_targets((2, 2), torch.tensor([1, 0]), torch.tensor([False] * 2)), torch.eye(2))


def test_smoothing_follows_its_schedule(tiny_tokenizer, batch):
    """Epoch 0 is plain; then half of every row is uniform; features of the other side get no gradient."""
    model = reference(tiny_tokenizer, consistency_weight=0, itc_smoothing={0: 0, 1: 0.5})
    plain = model(*batch)['loss_itc'].item()
    sims = similarities(model, batch)
    model.begin_epoch(1)
    out = model(*batch)
    uniform = [-F.log_softmax(sim, dim=1).mean() for sim in sims]
    assert out['loss_itc'].item() == pytest.approx(0.5 * plain + 0.25 * sum(uniform).item(), rel=1e-5)
    model.begin_epoch(0)
    assert model(*batch)['loss_itc'].item() == plain


def test_a_filter_is_a_checkpoint_at_the_resolution_of_the_run(tokenizer, pretrained):
    config = {'false_negative_filter': str(pretrained), 'image_res': 48}
    model = load_filter(config, tokenizer, 25, torch.device('cpu')).model
    assert model.visual_encoder.pos_embed.shape[1] == 1 + 3 * 3 and not model.training
    assert load_filter({'false_negative_filter': None}, tokenizer, 25, torch.device('cpu')) is None


def test_a_filter_that_cannot_be_used_is_refused(tokenizer, shapes, pretrained, tmp_path):
    def load(source):
        load_filter(
            {'false_negative_filter': str(source), 'image_res': 32}, other or tokenizer, tokens, torch.device('cpu')
        )

    other, tokens = None, 25
    with pytest.raises(MissingFileError, match=r'^false_negative_filter: checkpoint .*none.pth: there is no such file'):
        load(tmp_path / 'none.pth')
    content = torch.load(pretrained, weights_only=True)
    torch.save({'model': content['model']}, tmp_path / 'bare.pth')
    with pytest.raises(
        InputError, match=r'^false_negative_filter .*bare.pth: it lacks its configuration .*models.convert'
    ):
        load(tmp_path / 'bare.pth')
    config = {key: value for key, value in content['config'].items() if value is not None}
    nlvr = create_model('nlvr', config, tokenizer)
    torch.save(content | {'model': nlvr.state_dict(), 'task': 'nlvr'}, tmp_path / 'nlvr.pth')
    with pytest.raises(InputError, match='is a checkpoint of nlvr; give one of retrieval or pre-training'):
        load(tmp_path / 'nlvr.pth')
    tokens = 1000
    with pytest.raises(InputError, match='reads texts of at most .* tokens, and those of this run have up to 1000'):
        load(pretrained)
    vocabulary = (shapes / 'vocab' / 'vocab.txt').read_text()
    (tmp_path / 'vocab').mkdir()
    (tmp_path / 'vocab' / 'vocab.txt').write_text(vocabulary.replace('\nheart\n', '\nbanana\n', 1))
    other = create_tokenizer(str(tmp_path / 'vocab'))
    with pytest.raises(InputError, match='has another vocabulary than this run; .*the same --text_encoder'):
        load(pretrained)
