"""Small functions that several test files need."""

from types import SimpleNamespace

import numpy as np
import torch

from models import create_model
from tests.reference import load_reference


def tensor(value):
    return torch.from_numpy(np.array(value))


def text(ids, mask):
    return SimpleNamespace(input_ids=tensor(ids), attention_mask=tensor(mask))


def reference_model(task, name, tokenizer, **settings):
    """(model in eval mode with the reference's weights, the reference's entries)."""
    reference = load_reference(name)
    model = create_model(task, reference['config'] | settings, tokenizer)
    state = {key.removeprefix('state/'): tensor(value) for key, value in reference.items() if key.startswith('state/')}
    model.load_state_dict(state, strict=True)
    return model.eval(), reference


def check_gradients(model, reference, tolerance=1e-4):
    """Every gradient of the reference agrees, relative to its largest entry."""
    parameters = dict(model.named_parameters())
    names = [key.removeprefix('grad/') for key in reference if key.startswith('grad/')]
    assert names
    for name in names:
        expected = tensor(reference[f'grad/{name}'])
        error = (parameters[name].grad - expected).abs().max() / expected.abs().max()
        assert error < tolerance, (name, error)
