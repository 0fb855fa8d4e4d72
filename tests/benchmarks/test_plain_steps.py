"""The plain training steps: each gives the losses and gradients of our model, and a difference is found."""

import pytest
import torch

from benchmarks import plain_steps, step_tasks
from benchmarks.counting import TOKENIZER
from models import create_model, xbert
from optim import create_optimizer
from tests.helpers import differing
from tests.tiny import resolved
from utils.errors import InputError

CPU = torch.device('cpu')
MOMENTUM = ['use_momentum=true', 'queue_size=64']
CASES = {
    'hardest negatives': ('pretrain', [], {}),
    'sampled negatives': ('pretrain', ['itm_negatives=sampled', 'consistency_weight=0'], {}),
    'queue': ('retrieval', MOMENTUM, {}),
    'queue and soft targets': ('retrieval', [*MOMENTUM, 'distill=true'], {'alpha': 0.4}),
    'statements': ('nlvr', [], {}),
    'statements and soft targets': ('nlvr', ['distill=true'], {'alpha': 0.4}),
    'answers': ('vqa', [], {}),
    'answers and soft targets': ('vqa', ['distill=true'], {'alpha': 0.4}),
}
DEEPER = ['bert_config.num_hidden_layers=4', 'bert_config.fusion_layer=2', 'vit.depth=2']


def create(task, settings=(), batch=5):
    """(a model in training mode whose weights, biases and copies differ from a new one's, random inputs)"""
    torch.manual_seed(0)
    config = resolved(task, '.', *DEEPER, *settings)
    model = create_model(task, config, TOKENIZER).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != 'temp':
                parameter += 0.05 * torch.randn_like(parameter)
    return model, step_tasks.random_inputs(task, config, batch, 12, CPU)


@pytest.mark.parametrize('case', CASES)
def test_losses_and_gradients_are_ours(case):
    task, settings, options = CASES[case]
    model, inputs = create(task, settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = step_tasks.compare_losses(task, model, inputs, **options)
    assert found['loss difference'] <= 1e-5 and found['gradient difference'] <= 1e-3
    assert not differing(before, model.state_dict()) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_both_ways_end_with_the_same_momentum_copies_and_queue():
    states = []
    for losses in (step_tasks.our_losses, plain_steps.retrieval):
        model, inputs = create('retrieval', MOMENTUM)
        losses(model.eval(), *inputs)
        states.append(model.state_dict())
    ours, plain = states
    moved = [name for name in ours if '_m.' in name or 'queue' in name]
    assert len(moved) > 20
    for name in moved:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-5, atol=1e-6)


def test_keys_and_values_of_another_image_are_found(monkeypatch):
    """A fault in our model: what the texts attend to is moved by one image."""
    project = xbert.BertModel.project
    monkeypatch.setattr(xbert.BertModel, 'project', lambda bert, states: project(bert, states.roll(1, dims=0)))
    for task in ('pretrain', 'vqa'):
        model, inputs = create(task)
        with pytest.raises(InputError, match=f'{task}: loss difference of ours and plain is .*, more than 1e-05'):
            step_tasks.compare_losses(task, model, inputs)


def test_other_gradients_of_the_same_loss_are_found(monkeypatch):
    model, inputs = create('nlvr')

    def halved(*args):
        return {name: loss.detach() + (loss - loss.detach()) / 2 for name, loss in plain_steps.nlvr(*args).items()}

    monkeypatch.setitem(plain_steps.STEPS, 'nlvr', halved)
    with pytest.raises(InputError, match='nlvr: gradient difference of ours and plain is 1'):
        step_tasks.compare_losses('nlvr', model, inputs)
    monkeypatch.setitem(plain_steps.STEPS, 'nlvr', lambda *args: {'loss': plain_steps.nlvr(*args)['loss'] * torch.nan})
    with pytest.raises(InputError, match='nlvr: loss difference'):
        step_tasks.compare_losses('nlvr', model, inputs)


def test_a_halved_gradient_of_one_small_layer_is_found(monkeypatch):
    """Although that of the temperature is 10^7 times as large."""
    model, inputs = create('pretrain')
    model.temp.data.fill_(0.001)
    step_tasks.compare_losses('pretrain', model, inputs)

    def halved(model, *args):
        model.text_encoder.bert.encoder.layer[3].attention.self.query.weight.register_hook(lambda grad: grad / 2)
        return plain_steps.pretrain(model, *args)

    monkeypatch.setitem(plain_steps.STEPS, 'pretrain', halved)
    with pytest.raises(InputError, match='pretrain: gradient difference of ours and plain is'):
        step_tasks.compare_losses('pretrain', model, inputs)


def test_the_second_run_has_the_negatives_of_the_first():
    model, inputs = create('pretrain', ['itm_negatives=uniform'])
    chosen, pairs = [], []
    for replay in (False, True):
        with step_tasks.same_choices(chosen, replay), torch.no_grad():
            pairs.append(model(*inputs)['pairs'])  # dropout is on, and no seed is set
    assert len(chosen) == 2 and all(torch.equal(*both) for both in zip(*pairs, strict=True))


@pytest.mark.parametrize('task', ['pretrain', 'retrieval'])
def test_the_plain_optimizer_makes_the_same_update(task):
    states = []
    for make in (create_optimizer, plain_steps.plain_optimizer):
        model, inputs = create(task, MOMENTUM if task == 'retrieval' else [])
        optimizer = make({'opt': 'adamW', 'lr': 0.01, 'weight_decay': 0.02}, model)
        torch.manual_seed(0)
        sum(step_tasks.our_losses(model.eval(), *inputs).values()).backward()
        optimizer.step()
        states.append(model.state_dict())
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-7)


def test_texts_are_padded_and_answers_have_their_questions():
    texts = step_tasks.random_texts(50, 4, 9, 199)
    lengths = texts.attention_mask.sum(dim=1)
    assert lengths[0] == 9 and set(lengths.tolist()) == {4, 5, 6, 7, 8, 9}
    assert (texts.input_ids[:, 0] == 101).all() and ((texts.input_ids != 0) == texts.attention_mask.bool()).all()
    image, question, answer, k, weights = step_tasks.random_inputs('vqa', resolved('vqa', '.'), 4, 12, CPU)
    assert len(image) == len(question.input_ids) == len(k) == 4 and k.tolist() == [3, 1, 1, 3]
    assert len(answer.input_ids) == len(weights) == 8 and weights.sum().item() == pytest.approx(4)


@pytest.mark.parametrize(
    ('task', 'setting', 'message'),
    [
        ('pretrain', 'use_momentum=true', 'use_momentum must be false'),
        ('retrieval', 'use_momentum=false', 'use_momentum must be true'),
        ('pretrain', 'exclude_equal_negatives=true', 'exclude_equal_negatives must be false'),
        ('pretrain', 'itc_smoothing=0.5', 'itc_smoothing must begin with 0'),
        ('vqa', 'bert_config.vocab_size=104', 'vocab_size must be above 104'),
    ],
)
def test_what_the_plain_step_lacks_is_refused(task, setting, message):
    with pytest.raises(InputError, match=f'x.yaml: .*{message}'):
        step_tasks.check_supported(task, resolved(task, '.', setting), 'x.yaml')
