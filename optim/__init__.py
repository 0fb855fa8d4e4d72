"""AdamW with the official two parameter groups: without and with weight decay."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from utils.errors import InputError

KNOWN_KEYS = ('opt', 'lr', 'weight_decay', 'betas', 'eps', 'no_decay')


def create_optimizer(settings: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of `config['optimizer']` for the trainable parameters of `model`.

    `settings`: `opt` (adamW), `lr`, `weight_decay`, and optionally `betas`, `eps` and `no_decay`, a list of parameter
    names (or their last components) without weight decay, besides biases and 1-D parameters.

    InputError for another optimizer, a missing or unknown key, and a `no_decay` name that no parameter has.
    """
    _check(settings)
    groups = parameter_groups(model, float(settings['weight_decay']), settings.get('no_decay') or ())
    parameters = [parameter for group in groups for parameter in group['params']]
    if not parameters:
        raise InputError('the model has no trainable parameter: every one has requires_grad False')
    optimizer = torch.optim.AdamW(
        groups,
        lr=float(settings['lr']),
        betas=tuple(settings.get('betas', (0.9, 0.999))),
        eps=float(settings.get('eps', 1e-8)),
        fused=True,  # one kernel that reads everything once, on the CPU, too
    )
    optimizer.register_load_state_dict_pre_hook(_keep_implementation)
    return optimizer


def parameter_groups(model: nn.Module, weight_decay: float, no_decay: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Split the trainable parameters into [without decay, with decay], each in the order of `model.parameters()`.

    Officially biases and 1-D parameters (LayerNorm) are without decay, and everything else decays: also the 0-D
    temperature, `pos_embed` and `cls_token`, unless `no_decay` names them. A tied parameter is listed once.
    """
    exempt = tuple(no_decay)
    names = [name for name, _ in model.named_parameters()]
    for entry in exempt:
        if not any(_names(entry, name) for name in names):
            raise InputError(f'optimizer.no_decay names {entry!r}, but this model has no such parameter; remove it')
    without, decayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim == 1 or _names('bias', name) or any(_names(entry, name) for entry in exempt)
            (without if free else decayed).append(parameter)
    return [{'params': without, 'weight_decay': 0.0}, {'params': decayed, 'weight_decay': weight_decay}]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group['lr'] = lr


def _names(entry: str, name: str) -> bool:
    """Whether `entry` is the parameter name or its last components: 'temp', 'pos_embed', 'visual_encoder.cls_token'."""
    return name == entry or name.endswith('.' + entry)


def _keep_implementation(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Load the numbers of a checkpoint but not its choice of kernel.

    torch keeps `fused` and `foreach` among a group's hyperparameters. On the CPU earlier versions had no fused kernel,
    which is the one that leaves a step out if its gradient is not finite (`utils.finite.step_if`).
    """
    if len(state['param_groups']) != len(optimizer.param_groups):
        return state  # torch reports what is wrong
    current = [{key: group[key] for key in ('fused', 'foreach')} for group in optimizer.param_groups]
    groups = [{**loaded, **own} for loaded, own in zip(state['param_groups'], current, strict=True)]
    return {**state, 'param_groups': groups}


def _check(settings: Mapping[str, Any]) -> None:
    for key in settings:
        if key not in KNOWN_KEYS:
            raise InputError(f'optimizer.{key} is not a known key; known are {", ".join(KNOWN_KEYS)}')
    for key in ('opt', 'lr', 'weight_decay'):
        if key not in settings:
            raise InputError(f'optimizer.{key} is missing; add it to the configuration')
    if isinstance(settings.get('no_decay'), str):
        raise InputError(f'optimizer.no_decay must be a list of parameter names: [{settings["no_decay"]}]')
    if str(settings['opt']).lower() != 'adamw':
        raise InputError(f"optimizer.opt is {settings['opt']!r}; the only optimizer is 'adamW'")
