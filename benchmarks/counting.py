"""What the benchmarks count of a model: FLOPs of a call, bytes of its weights, bytes that a forward pass keeps.

`create_fake` makes a model of tensors with shapes and dtypes but without values (torch's FakeTensorMode), so that
counts at full size and with the full batch need neither time nor memory. It runs inside `without_values`. `FakeStep`
is a training step of any task with such a model.

Legend: B examples, L tokens, R resolution.
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
# A batch is padded to its longest text: training batches to what the dataset cuts at (30 words: about 30 tokens).
TOKENS = {'pretrain': 25, 'retrieval': 30, 'nlvr_pretrain': 25, 'nlvr': 30, 'vqa': 25}
ANSWERS = 1.63  # distinct ones of a question, on average over the questions of VQA: see `cost.DATA`
ANSWER_TOKENS = 4  # [CLS], two, [SEP]
PROJECTED = ('.crossattention.self.key', '.crossattention.self.value')  # called by `project`, outside of the encoder


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


def training_flops(counts: Mapping[str, int]) -> int:
    """FLOPs of a training step, from `count_flops` of its forward pass: 3 x forward, momentum copies 1 x forward."""
    return counts['Global'] + backward_flops(counts)


def backward_flops(counts: Mapping[str, int]) -> int:
    """FLOPs of the backward pass, from `count_flops` of the forward pass: 2 x what is not of momentum copies."""
    copies = [part for part in counts if part.count('.') and part.split('.')[1].endswith('_m')]
    inside = {part for part in copies if any(part.startswith(f'{other}.') for other in copies)}
    momentum = sum(counts[part] for part in copies if part.endswith(PROJECTED) or part not in inside)
    return 2 * (counts['Global'] - momentum)


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


class FakeStep:
    """A training step of a task on random examples, with a model without values.

    config: resolved. Attributes: `batch`, the examples of a GPU in the configuration, and `weights`.
    """

    def __init__(self, task: str, config: Mapping[str, Any]):
        # The attention kernels of GPUs keep no attention matrix; those of the CPU do the same only without dropout.
        bert = config['bert_config'] | {'attention_probs_dropout_prob': 0.0}
        self.task, self.config = task, {**config, 'bert_config': bert}
        self.batch = config.get('batch_size') or config['batch_size_train']
        self.model = create_fake(task, self.config).train()
        self.weights = weight_bytes(self.model)
        tokens = TOKENS[task]  # MLM never predicts [CLS]
        self.share = config['mlm_probability'] * (tokens - 1) / tokens if task == 'pretrain' else 1.0

    def losses(self, batch: int) -> Any:
        """What the model returns for B = `batch` examples; runs inside `without_values`."""
        images = batch * (2 if self.task == 'nlvr' else 1)
        image, text = random_batch(images, TOKENS[self.task], self.config)
        if self.task == 'retrieval':
            return self.model(image, text, torch.arange(batch))
        if self.task == 'nlvr':
            text = Text(*(part[:batch] for part in text))
            return self.model(image, text, torch.zeros(batch, dtype=torch.int64))
        if self.task == 'vqa':
            count = round(ANSWERS * batch)
            ids = torch.ones(count, ANSWER_TOKENS, dtype=torch.int64)
            return self.model(image, text, Text(ids, ids), ids[:batch, 0], torch.ones(count))
        return self.model(image, text)

    def count_flops(self, batch: int) -> dict[str, int]:
        """`count_flops` of the forward pass of B = `batch` examples."""
        with without_values(self.share):
            return count_flops(lambda: self.losses(batch))

    def activation_bytes(self, batch: int, precision: str, recompute: bool) -> int:
        """What the forward pass of B = `batch` examples keeps for the backward pass, with copies of weights.

        recompute: `grad_checkpointing`; then with what one layer of the image encoder keeps while it is recomputed.
        """
        with without_values(self.share):
            set_checkpointing(self.model, recompute)
            size = sum(kept_bytes(self.model, lambda: self.losses(batch), precision))
            if recompute:
                set_checkpointing(self.model, False)
                vit = self.model.visual_encoder
                images = batch * (2 if self.task == 'nlvr' else 1)
                tokens = torch.empty(images, *vit.pos_embed.shape[1:])
                size += kept_bytes(self.model, lambda: vit.blocks[0](tokens), precision)[0]
        return size
