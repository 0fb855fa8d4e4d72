"""Functions of several test files: files that runs write, reference models, and what a forward pass waits for."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import create_model
from tests.reference import load_reference
from utils.checkpoint_shards import all_states

# ---- files ----


def read_lines(path):
    """The objects in a file of JSON lines, such as log.txt or predictions."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def read_log(folder):
    """The records of a run's log.txt."""
    return read_lines(Path(folder, 'log.txt'))


def read_rows(shapes, name):
    """The rows of an annotation file of the synthetic dataset."""
    return json.loads((shapes / f'{name}.json').read_text())


def write_rows(path, rows):
    """Write an annotation file -> its path as a string."""
    path.write_text(json.dumps(rows))
    return str(path)


def read_pth(path):
    return torch.load(path, weights_only=True)


def weights(path):
    """The model's state dict in a checkpoint."""
    return read_pth(path)['model']


def differing(one, two):
    """The names of tensors that two mappings do not share to the bit; the other values must be equal."""
    return sorted(
        name
        for name in {*one, *two}
        if name not in one or name not in two or not torch.equal(*map(torch.as_tensor, (one[name], two[name])))
    )


def state_of_run(path):
    """What a checkpoint must restore, by name: weights, optimizer state, every rank's next order and generator."""
    content = read_pth(path)
    tensors = dict(content['model'])
    for number, state in content['optimizer']['state'].items():
        tensors |= {f'optimizer.{number}.{name}': value for name, value in state.items()}
    for rank, state in enumerate(all_states(path, content)):
        tensors |= {f'rank {rank} order': state['plan']['order'], f'rank {rank} rng': state['rng']['torch']}
    return tensors


def examples_of(plans):
    """All examples in the saved plans of all ranks, in ascending order."""
    return sorted(torch.cat([part for plan in plans for part in (plan['order'], plan['left_out'])]).tolist())


def through_a_file(state):
    """A state as a checkpoint returns it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- models ----


def tensor(value):
    return value if torch.is_tensor(value) else torch.from_numpy(np.array(value))


def text(ids, mask):
    return SimpleNamespace(input_ids=tensor(ids), attention_mask=tensor(mask))


def reference_state(name):
    """The weights of a reference model."""
    reference = load_reference(name)
    return {key.removeprefix('state/'): tensor(value) for key, value in reference.items() if key.startswith('state/')}


def reference_model(task, name, tokenizer, **settings):
    """(model in eval mode with the reference's weights, the reference's entries)."""
    reference = load_reference(name)
    model = create_model(task, reference['config'] | settings, tokenizer)
    model.load_state_dict(reference_state(name), strict=True)
    return model.eval(), reference


def without_dropout(model):
    """Training mode, in which activations are recomputed, but every forward pass is the same."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, 'dropout', None), float):
            module.dropout = 0.0
    return model


def check_gradients(model, reference, tolerance=1e-4):
    """Every gradient of the reference agrees, relative to its largest entry."""
    parameters = dict(model.named_parameters())
    names = [key.removeprefix('grad/') for key in reference if key.startswith('grad/')]
    assert names
    for name in names:
        expected = tensor(reference[f'grad/{name}'])
        error = (parameters[name].grad - expected).abs().max() / expected.abs().max()
        assert error < tolerance, (name, error)


def albef_state():
    """A pre-training checkpoint as ALBEF's: momentum copies, with weights of their own, and queues."""
    state = reference_state('pretrain')
    copies = {
        f'{part}_m.{rest}': value + 1
        for key, value in state.items()
        for part, _, rest in [key.partition('.')]
        if part in ('visual_encoder', 'text_encoder', 'vision_proj', 'text_proj') and value.is_floating_point()
    }
    queues = {'image_queue': torch.zeros(16, 65536), 'text_queue': torch.zeros(16, 65536), 'queue_ptr': torch.zeros(1)}
    return state | copies | queues


class Waits(TorchDispatchMode):
    """`names`: the operations under it for which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))
