"""What the benchmarks count of a model: FLOPs of a call, bytes of its weights, bytes that a forward pass keeps.

`create_fake` makes a model of tensors with shapes and dtypes but without values (torch's FakeTensorMode), so that
counts at full size and with the full batch need neither time nor memory. It runs inside `without_values`.

Legend: B pairs, L tokens, R resolution.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dataset.tokens import Text
from models import create_model
from utils.setup import autocast

PAD, CLS, MASK = 0, 101, 103
TOKENIZER = SimpleNamespace(pad_token_id=PAD, cls_token_id=CLS, mask_token_id=MASK)
FAKE = FakeTensorMode()
FLOAT = 4  # bytes


def random_batch(
    batch: int, tokens: int, config: Mapping[str, Any], device: torch.device | str = 'cpu'
) -> tuple[Tensor, Text]:
    """(image [B, 3, R, R], text [B, L]) of B = `batch` pairs, L = `tokens`, R and the vocabulary of `config`."""
    ids = torch.randint(MASK + 1, config['bert_config']['vocab_size'], (batch, tokens), device=device)
    ids[:, 0] = CLS
    image = torch.randn(batch, 3, config['image_res'], config['image_res'], device=device)
    return image, Text(ids, torch.ones_like(ids))


def count_flops(call: Callable[[], Any]) -> dict[str, int]:
    """FLOPs of a call without gradients, 2 for each multiply-add, attention counted as products.

    Returns {'Global': all, 'Model.part': those of a part, ...}. Only matrix products and convolutions count.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def create_fake(task: str, config: Mapping[str, Any]) -> nn.Module:
    """The model of a task with fake tensors on the CPU as weights; shared parameters stay shared."""
    with torch.device('meta'):
        model = create_model(task, config, TOKENIZER)
    made: dict[int, tuple[Tensor, nn.Parameter]] = {}  # the first entry keeps an id from being used again
    with FAKE:
        for module in model.modules():
            for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if id(old) not in made:
                    made[id(old)] = old, nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)
                setattr(module, name, made[id(old)][1])
            for name, old in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(old.shape, dtype=old.dtype))
    return model


class Weights(NamedTuple):
    """Bytes of what a training process keeps all the time."""

    trained: int  # float32 parameters
    gradients: int  # DDP's buckets are the gradients themselves
    moments: int  # AdamW's two
    frozen: int  # momentum copies, and what is not trained
    buffers: int  # the queue of momentum features


def weight_bytes(model: nn.Module) -> Weights:
    """A parameter with two names counts once."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) * FLOAT
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad) * FLOAT
    return Weights(trained, trained, 2 * trained, frozen, sum(buffer.nbytes for buffer in model.buffers()))


class ExpectedCount(TorchDispatchMode):
    """Answers `nonzero`, which needs values, with the number of rows to expect: `share` of the entries."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.nonzero.default:
            return args[0].new_empty(round(self.share * args[0].numel()), args[0].ndim, dtype=torch.int64)
        return function(*args, **(kwargs or {}))


@contextmanager
def without_values(share: float = 1.0) -> Iterator[None]:
    """Inside the block tensors have no values. share: of the tokens that MLM or the decoder predicts."""
    with FAKE, ExpectedCount(share):
        yield


class Bookkeeping(TorchDispatchMode):
    """Notes every storage that operations make, apart from the weights: casts of weights, and all others."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.weights = {part.untyped_storage()._cdata for part in [*model.parameters(), *model.buffers()]}
        self.casts: dict[int, tuple[StorageWeakRef, int]] = {}
        self.others: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        is_cast = function is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.weights
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            key = storage._cdata  # stays taken as long as the weak reference exists
            if key not in self.weights and key not in self.casts:
                (self.casts if is_cast else self.others).setdefault(key, (StorageWeakRef(storage), storage.nbytes()))
        return out


def alive(storages: Mapping[int, tuple[StorageWeakRef, int]]) -> int:
    """Bytes of the storages that something still refers to."""
    return sum(size for reference, size in storages.values() if not reference.expired())


def kept_bytes(model: nn.Module, forward: Callable[[], Any], precision: str = 'fp32') -> tuple[int, int]:
    """What a forward pass keeps for the backward pass: bytes of (activations, weights in another precision).

    forward: makes the inputs, which count as activations, and returns the loss. The bytes are those of the storages
    that still exist after it, so also the inputs of layers whose activations will be recomputed.
    """
    with Bookkeeping(model) as kept, autocast(torch.device('cpu'), {'precision': precision}):
        loss = forward()
    sizes = alive(kept.others), alive(kept.casts)
    del loss
    return sizes


def set_checkpointing(model: nn.Module, recompute: bool) -> None:
    """Switch `grad_checkpointing` of all encoders of a model."""
    for module in model.modules():
        if hasattr(module, 'grad_checkpointing'):
            module.grad_checkpointing = recompute
