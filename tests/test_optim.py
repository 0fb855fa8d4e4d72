"""Parameter groups as officially, AdamW as the paper's formula, and a state that moves between kernels."""

import copy

import pytest
import torch
from torch import nn

from optim import create_optimizer, parameter_groups, set_learning_rate
from utils.finite import step_if

SETTINGS = {'opt': 'adamW', 'lr': 1e-2, 'weight_decay': 0.1}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.randn(1, 3, 4))
        self.norm = nn.LayerNorm(4)
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight  # tied
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.matrix_bias = nn.Module()
        self.matrix_bias.bias = nn.Parameter(torch.randn(2, 2))  # a bias by name though not 1-D


def names_of(model, params):
    by_id = {id(p): n for n, p in model.named_parameters()}
    return [by_id[id(p)] for p in params]


def test_official_groups():
    model = Model()
    without, decayed = create_optimizer(SETTINGS, model).param_groups
    assert names_of(model, without['params']) == ['norm.weight', 'norm.bias', 'head.bias', 'matrix_bias.bias']
    assert names_of(model, decayed['params']) == ['temp', 'cls_token', 'pos_embed', 'embed.weight']
    assert (without['weight_decay'], decayed['weight_decay']) == (0.0, 0.1)
    assert decayed['betas'] == (0.9, 0.999) and decayed['eps'] == 1e-8 and decayed['lr'] == 1e-2


def test_exempting_by_name():
    model = nn.ModuleDict({'visual': Model()})
    without, decayed = parameter_groups(model, 0.1, ['temp', 'visual.pos_embed', 'cls_token'])
    assert {'visual.temp', 'visual.pos_embed', 'visual.cls_token'} < set(names_of(model, without['params']))
    assert names_of(model, decayed['params']) == ['visual.embed.weight']


@pytest.mark.parametrize('entry', ['embed_pos', 'mp', 'head'])  # a complete component, and a parameter, not a module
def test_exempting_nothing_is_an_error(entry):
    with pytest.raises(ValueError, match=f"names '{entry}'"):
        create_optimizer({**SETTINGS, 'no_decay': [entry]}, Model())


def test_one_step_is_decoupled_weight_decay():
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = create_optimizer(SETTINGS, model)
    set_learning_rate(optimizer, 0.5)
    model(torch.ones(1, 2)).sum().backward()  # every gradient is 1, so Adam's first step is lr in each coordinate
    optimizer.step()
    torch.testing.assert_close(model.bias.data, before['bias'] - 0.5)
    torch.testing.assert_close(model.weight.data, before['weight'] * (1 - 0.5 * 0.1) - 0.5)


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 3), step + 1.0)).square().sum().backward()
        optimizer.step()


def test_a_saved_state_continues_to_the_bit_whichever_kernel_wrote_it(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    optimizer = create_optimizer(SETTINGS, model)
    train(model, optimizer, 3)
    saved = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
    for group in saved['optimizer']['param_groups']:
        group['fused'], group['foreach'] = None, None  # as earlier versions wrote it on the CPU
    torch.save(saved, tmp_path / 'state.pth')
    train(model, optimizer, 2)

    loaded = torch.load(tmp_path / 'state.pth', weights_only=True)
    twin.load_state_dict(loaded['model'])
    resumed = create_optimizer(SETTINGS, twin)
    own = [(group['fused'], group['foreach']) for group in resumed.param_groups]
    resumed.load_state_dict(loaded['optimizer'])
    assert [(group['fused'], group['foreach']) for group in resumed.param_groups] == own
    train(twin, resumed, 2)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


def test_a_checkpoint_of_the_loop_over_parameters_continues_in_the_fused_kernel():
    """Also its decision to leave a step out; the numbers are those of the loop up to rounding."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    loop = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2)
    train(model, loop, 3)
    fused = create_optimizer(SETTINGS, twin)
    twin.load_state_dict(model.state_dict())
    fused.load_state_dict(copy.deepcopy(loop.state_dict()))
    train(model, loop, 2)
    train(twin, fused, 2)
    torch.testing.assert_close(twin.state_dict(), model.state_dict())
    before = copy.deepcopy(twin.state_dict())
    step_if(torch.tensor(False), fused)
    torch.testing.assert_close(twin.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'opt': 'sgd'}, "optimizer.opt is 'sgd'; the only optimizer is 'adamW'"),
        ({'no_decay': 'temp'}, 'optimizer.no_decay must be a list'),
        ({'momentum': 0.9}, 'optimizer.momentum is not a known key'),
        ({'weight_decay': None}, 'optimizer.weight_decay is missing'),
    ],
)
def test_bad_settings(change, message):
    settings = {k: v for k, v in {**SETTINGS, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        create_optimizer(settings, Model())


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match='no trainable parameter'):
        create_optimizer(SETTINGS, nn.Linear(2, 2).requires_grad_(False))
