"""The VQA model against the official numbers; ranking against a slow oracle; how its weights are loaded."""

import copy

import pytest
import torch
import torch.nn.functional as F

from models import answer_ranking, create_model
from models.model_vqa import read_question
from models.weights import load_vqa
from tests.helpers import albef_state, check_gradients, reference_model, reference_state, tensor, text, without_dropout
from tests.reference import load_reference


def run_reference(tokenizer, name='vqa', **settings):
    """(model, reference, arguments of the loss, the answer list)"""
    model, reference = reference_model('vqa', name, tokenizer, **settings)
    batch = {
        'image': tensor(reference['image']),
        'question': text(reference['q_ids'], reference['q_mask']),
        'answer': text(reference['a_ids'], reference['a_mask']),
        'k': tensor(reference['n']),
        'weights': tensor(reference['weights']),
        'alpha': float(reference['alpha']),
    }
    return model, reference, batch, text(reference['list_ids'], reference['list_mask'])


def rank(model, batch, answers, k):
    return model.rank_answers(batch['image'], batch['question'], answers, k)


@pytest.mark.parametrize('name', ['vqa', 'vqa_distill'])
def test_loss_gradients_and_ranking_are_the_official_ones(tiny_tokenizer, name):
    model, reference, batch, answers = run_reference(tiny_tokenizer, name)
    loss = model(**batch)
    assert loss.item() == pytest.approx(float(reference['loss']), rel=1e-5)
    loss.backward()
    check_gradients(model, reference)
    assert all(parameter.grad is None for key, parameter in model.named_parameters() if '_m.' in key)
    ids, probabilities = rank(model, batch, answers, 5)
    assert torch.equal(ids, tensor(reference['topk_ids']))
    torch.testing.assert_close(probabilities, tensor(reference['topk_probs']), rtol=1e-4, atol=1e-7)


def test_counts_may_be_a_list_and_checkpointing_changes_nothing(tiny_tokenizer):
    model, reference, batch, _ = run_reference(tiny_tokenizer, grad_checkpointing=True)
    without_dropout(model)
    loss = model(**batch | {'k': [2, 1, 3]})
    assert loss.item() == pytest.approx(float(reference['loss']), rel=1e-5)
    loss.backward()
    check_gradients(model, reference)


def test_the_loss_weights_each_answer(tiny_tokenizer):
    """By hand: sum over answers of weight x sum of token losses, over the number of questions; padding is no target."""
    model, _, batch, _ = run_reference(tiny_tokenizer)
    one_by_one = 0.0
    for number, question in enumerate((0, 0, 1, 2, 2, 2)):
        length = int(batch['answer'].attention_mask[number].sum())
        own = slice(question, question + 1)
        q = text(batch['question'].input_ids[own], batch['question'].attention_mask[own])
        states = read_question(model.visual_encoder, model.text_encoder, batch['image'][own], q)
        ids = batch['answer'].input_ids[number : number + 1, :length]
        logits = slow_logits(model, states, q.attention_mask, ids)
        one_by_one += batch['weights'][number] * F.cross_entropy(logits[:-1], ids[0, 1:], reduction='sum')
    torch.testing.assert_close(model(**batch), one_by_one / 3, rtol=1e-5, atol=0)


def slow_logits(model, states, mask, ids):
    """Vocabulary logits after each token of one answer [1, L] to one question, nothing shared: [L, V]."""
    decoder = model.text_decoder
    hidden = decoder.bert(ids, torch.ones_like(ids), memory=decoder.bert.project(states), memory_mask=mask, causal=True)
    return decoder.cls(hidden)[0]


@torch.no_grad()
def slow_ranking(model, batch, answers, k, first_token_once):
    """Each answer to each question in a pass of its own. The k best by their first token are ranked by all tokens."""
    all_ids, all_probabilities = [], []
    for question in range(len(batch['image'])):
        here = slice(question, question + 1)
        q = text(batch['question'].input_ids[here], batch['question'].attention_mask[here])
        states = read_question(model.visual_encoder, model.text_encoder, batch['image'][here], q)
        first, total = [], []
        for ids in answers.input_ids:
            ids = ids[ids != 0][None]
            logs = slow_logits(model, states, q.attention_mask, ids).log_softmax(dim=1)
            of_token = logs[:-1].gather(1, ids[0, 1:, None])[:, 0]
            first.append(of_token[0].item())
            total.append(of_token.sum().item() + (0 if first_token_once else of_token[0].item()))
        chosen = sorted(range(len(first)), key=lambda i: -first[i])[:k]
        ranked = sorted(chosen, key=lambda i: -total[i])
        all_ids.append(ranked)
        all_probabilities.append(torch.tensor([total[i] for i in ranked]).softmax(dim=0))
    return torch.tensor(all_ids), torch.stack(all_probabilities)


def answer_list(lengths, seed=0):
    """Answers [CLS] word ... [SEP] of 1 + so many words, padded, as in a tokenized list; some share their first
    word."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths) + 2, dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[: length + 2] = torch.tensor([1, *torch.randint(5, 25, (length,), generator=generator).tolist(), 2])
    return text(ids, ids != 0)


@pytest.mark.parametrize('once', [False, True])
@pytest.mark.parametrize('chunk', [1, 3, 32])
def test_ranking_equals_a_slow_oracle(tiny_tokenizer, monkeypatch, once, chunk):
    monkeypatch.setattr(answer_ranking, 'CHUNK', chunk)
    model, _, batch, _ = run_reference(tiny_tokenizer, rank_first_token_once=once)
    for lengths, k in (([1] * 9, 4), ([1, 2, 1, 5, 1, 1, 3, 0, 2, 1, 1, 7] * 2, 7), ([2, 1, 3], 128)):
        answers = answer_list(lengths)
        ids, probabilities = rank(model, batch, answers, k)
        expected_ids, expected = slow_ranking(model, batch, answers, k, once)
        assert ids.shape == (3, min(k, len(lengths)))
        torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-6)
        gaps = F.pad(expected[:, :-1] - expected[:, 1:], (1, 1), value=1)  # to the better and to the worse neighbour
        clear = (gaps[:, :-1] > 1e-4) & (gaps[:, 1:] > 1e-4)  # elsewhere rounding may change the order
        assert clear.sum() >= 4 and torch.equal(ids[clear], expected_ids[clear])


def test_the_first_token_counts_twice_or_once(tiny_tokenizer):
    twice, once = (
        rank(model, batch, answers, 5)
        for model, _, batch, answers in (
            run_reference(tiny_tokenizer, rank_first_token_once=value) for value in (False, True)
        )
    )
    assert not torch.equal(twice[1], once[1])


def test_equal_answers_are_ranked_as_listed(tiny_tokenizer):
    model, _, batch, _ = run_reference(tiny_tokenizer)
    ids = torch.tensor([[1, 7, 2]] * 6)
    assert rank(model, batch, text(ids, ids != 0), 4)[0].tolist() == [[0, 1, 2, 3]] * 3


def test_an_answer_does_not_depend_on_the_other_questions(tiny_tokenizer):
    """A question in a batch of its own, without the padding that its neighbours need, has the same probabilities."""
    model, _, batch, _ = run_reference(tiny_tokenizer)
    answers = answer_list([1, 2, 1, 4, 1, 3])
    _, together = rank(model, batch, answers, 6)
    length = int(batch['question'].attention_mask[2].sum())
    single = text(batch['question'].input_ids[2:, :length], batch['question'].attention_mask[2:, :length])
    torch.testing.assert_close(
        model.rank_answers(batch['image'][2:], single, answers, 6)[1], together[2:], rtol=1e-3, atol=1e-6
    )


def count_rows(model, counts):
    """Hooks that add up the rows that linear maps of the decoder take in, by name."""
    for name, module in model.text_decoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda m, inputs, output, name=name: counts.__setitem__(
                    name, counts.get(name, 0) + inputs[0][..., 0].numel()
                )
            )


def test_what_is_shared_is_computed_once(tiny_tokenizer):
    model, _, batch, _ = run_reference(tiny_tokenizer)
    counts = {}
    count_rows(model, counts)
    answers = answer_list([1] * 30 + [4] * 2)
    rank(model, batch, answers, 32)
    layers = [f'bert.encoder.layer.{i}.' for i in range(6)]
    for layer in layers:  # 3 questions of 10 tokens; [CLS] 3 times; then 3 x 32 candidates of at most 4 words
        assert counts[f'{layer}crossattention.self.key'] == counts[f'{layer}crossattention.self.value'] == 3 * 10
        assert counts[f'{layer}attention.self.key'] == 3 + 3 * 32 * 4
    assert counts['cls.predictions.decoder'] == 3 + 3 * (30 + 2 * 4)  # [CLS], then each word but the list's first

    counts.clear()
    model(**batch)
    assert all(counts[f'{layer}crossattention.self.key'] == 3 * 10 for layer in layers)
    assert counts['cls.predictions.decoder'] == int((batch['answer'].input_ids[:, 1:] != 0).sum())


def test_short_answers_are_not_padded_to_the_longest(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(answer_ranking, 'CHUNK', 8)
    model, _, batch, _ = run_reference(tiny_tokenizer)
    counts = {}
    count_rows(model, counts)
    rank(model, batch, answer_list([1] * 30 + [4] * 2), 32)
    assert counts['bert.encoder.layer.0.attention.self.key'] == 3 + 3 * (24 * 1 + 8 * 4)


def test_a_list_that_cannot_be_ranked_is_refused(tiny_tokenizer):
    model, _, batch, answers = run_reference(tiny_tokenizer)
    with pytest.raises(ValueError, match='k of at least 1'):
        rank(model, batch, answers, 0)
    with pytest.raises(ValueError, match='the same first token'):
        rank(model, batch, text([[1, 5, 2], [3, 5, 2]], [[1, 1, 1]] * 2), 1)


def test_bf16_scores_in_float32(tiny_tokenizer):
    model, reference, batch, answers = run_reference(tiny_tokenizer)
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(**batch)
        _, probabilities = rank(model, batch, answers, 5)
    assert loss.dtype == probabilities.dtype == torch.float32
    assert loss.item() == pytest.approx(float(reference['loss']), rel=0.05)


def test_distillation_adds_the_predictions_of_a_momentum_model_that_is_updated(tiny_tokenizer):
    model, _, batch, _ = run_reference(tiny_tokenizer, 'vqa_distill')
    plain, _, _, _ = run_reference(tiny_tokenizer)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if '_m.' not in key})
    assert model(**batch | {'alpha': 0.0}).item() == pytest.approx(plain(**batch).item(), rel=1e-6)
    before, trained = copy.deepcopy(model.text_decoder_m), model.text_decoder
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    model(**batch)
    for old, new, followed in zip(
        before.parameters(), model.text_decoder_m.parameters(), trained.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.995 * old + 0.005 * followed)


# ---- weights ----


def fresh(tokenizer, **settings):
    return create_model('vqa', load_reference('vqa')['config'] | settings, tokenizer)


def test_from_pre_training_the_decoder_starts_as_the_fusion_layers(tiny_tokenizer):
    model, state = fresh(tiny_tokenizer), reference_state('pretrain')
    report = str(load_vqa(model, state, 'pre.pth'))
    loaded, layers = model.state_dict(), 'encoder.layer'
    for key, value in state.items():
        if key.startswith('text_encoder.bert.'):
            assert torch.equal(loaded[key.replace('.bert', '', 1)], value)
            if layers in key:
                number = int(key.split('layer.')[1].split('.')[0])
                decoder = key.replace('text_encoder', 'text_decoder').replace(f'layer.{number}', f'layer.{number - 6}')
                assert number < 6 or torch.equal(loaded[decoder], value)
            else:
                assert torch.equal(loaded[key.replace('text_encoder', 'text_decoder')], value)
        elif key.startswith('text_encoder.cls.'):
            assert torch.equal(loaded[key.replace('text_encoder', 'text_decoder')], value)
        elif key.startswith('visual_encoder.'):
            assert torch.equal(loaded[key], value)
    assert "answer decoder: the text encoder's layers 6 to 11" in report and 'itm_head (2 tensors)' in report
    assert f'loaded {len(loaded)} tensors' in report and 'missing in the file' not in report

    # Encoder and decoder are not tied: training one leaves the other.
    with torch.no_grad():
        model.text_decoder.bert.embeddings.word_embeddings.weight.zero_()
    assert model.text_encoder.embeddings.word_embeddings.weight.any()
    assert not model.text_decoder.cls.predictions.decoder.weight.any()  # tied to its own embeddings


def test_momentum_weights_of_albef_checkpoints_are_loaded(tiny_tokenizer):
    state = albef_state()
    plain, distilled = fresh(tiny_tokenizer), fresh(tiny_tokenizer, distill=True)
    assert 'text_encoder_m' in str(load_vqa(plain, state, 'albef.pth'))
    report = str(load_vqa(distilled, state, 'albef.pth'))
    assert 'only in the file, not used' in report and 'momentum copies' not in report
    for module, momentum in distilled.momentum_pairs():
        for ours, theirs in zip(module.parameters(), momentum.parameters(), strict=True):
            torch.testing.assert_close(theirs, ours + 1)


def test_momentum_copies_are_copies_of_the_loaded_weights(tiny_tokenizer):
    model = fresh(tiny_tokenizer, distill=True)
    assert 'momentum copies: copies of the weights just loaded' in str(
        load_vqa(model, reference_state('pretrain'), 'pre.pth')
    )
    for module, momentum in model.momentum_pairs():
        for ours, theirs in zip(module.parameters(), momentum.parameters(), strict=True):
            assert torch.equal(ours, theirs) and not theirs.requires_grad


@pytest.mark.parametrize('source', ['vqa', 'vqa_distill'])
@pytest.mark.parametrize('distill', [False, True])
def test_fine_tuning_can_continue_from_a_vqa_checkpoint(tiny_tokenizer, source, distill):
    model, state = fresh(tiny_tokenizer, distill=distill, image_res=96), reference_state(source)
    report = str(load_vqa(model, state, 'vqa.pth'))
    loaded = model.state_dict()
    same = [key for key in loaded if key in state and 'pos_embed' not in key]
    assert all(torch.equal(loaded[key], state[key]) for key in same)
    assert 'resized: visual_encoder.pos_embed' in report
    assert ('momentum copies' in report) == (distill and source == 'vqa')


def test_other_checkpoints_are_refused_by_name(tiny_tokenizer):
    with pytest.raises(ValueError, match=r'nlvr.pth does not fit this model: missing keys: .*text_decoder'):
        load_vqa(fresh(tiny_tokenizer), reference_state('nlvr'), 'nlvr.pth')
    with pytest.raises(ValueError, match='fusion_layer must be below'):
        bert = load_reference('vqa')['config']['bert_config'] | {'fusion_layer': 12}
        fresh(tiny_tokenizer, bert_config=bert)


def test_a_question_of_another_width_than_the_image(tiny_tokenizer):
    """The decoder reads text states, so its keys and values of them are as wide as the text, and start at random."""
    config = load_reference('vqa')['config']
    wide = {
        'vit': config['vit'] | {'embed_dim': 48},
        'vision_width': 48,
        'bert_config': config['bert_config'] | {'encoder_width': 48},
    }
    model = fresh(tiny_tokenizer, **wide)
    pretrain = create_model('pretrain', config | wide, tiny_tokenizer)
    report = str(load_vqa(model, pretrain.state_dict(), 'pre.pth'))
    assert (
        'keys and values of the question are random' in report
        and 'missing in the file, not changed: text_decoder (24' in report
    )
    assert torch.isfinite(model(**run_reference(tiny_tokenizer)[2]))
