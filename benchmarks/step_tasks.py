"""Training steps of every task: random batches, losses ours and plain, their comparison, and a step's counts.

Legend: B examples, L tokens, R resolution, N answers of all questions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import plain_steps
from benchmarks.counting import CLS, MASK, PAD
from benchmarks.profiling import Operators, count_operators
from benchmarks.report import take_turns
from dataset.tokens import Text
from models import losses
from utils import finite
from utils.errors import InputError
from utils.setup import autocast

Losses = dict[str, Tensor]
GIB = 2**30
ANSWERS = (3, 1, 1)  # distinct answers of a question: of VQA v2, of Visual Genome, ...; 1.6 on average (cost.py)
ANSWER_TOKENS = 5  # of the longest: [CLS], three, [SEP]; the shortest have 3
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3  # relative, float32
FLOOR = 1e-3  # gradients below this part of the matrices' largest are compared with it: those of keys' biases are noise


class Task(NamedTuple):
    """config: its YAML file. batch_key: the key with the official batch. cpu_batch: that of a CPU. tokens: of a text.

    The texts of a training batch are padded to the longest, so to what the task cuts at.
    """

    config: str
    batch_key: str
    cpu_batch: int
    tokens: int


TASKS = {
    'pretrain': Task('Pretrain', 'batch_size', 4, 25),
    'retrieval': Task('Retrieval_flickr', 'batch_size_train', 2, 30),
    'nlvr': Task('NLVR', 'batch_size', 1, 30),
    'vqa': Task('VQA', 'batch_size_train', 2, 25),
}


def check_supported(task: str, config: Mapping[str, Any], name: str) -> None:
    """InputError for a configuration that the plain step does not have. name: of its file."""
    if config['bert_config']['vocab_size'] <= MASK + 1:
        raise InputError(f'{name}: bert_config.vocab_size must be above {MASK + 1}')
    wanted = {
        'pretrain': {'use_momentum': False, 'exclude_equal_negatives': False},
        'retrieval': {'use_momentum': True},
    }
    for key, value in wanted.get(task, {}).items():
        if config[key] != value:
            raise InputError(f'{name}: {key} must be {str(value).lower()}: the plain step has nothing else; use --set')
    if task == 'pretrain' and config['itc_smoothing'][0]:
        raise InputError(f'{name}: itc_smoothing must begin with 0: the plain step has none; use --set')


def random_texts(rows: int, shortest: int, longest: int, vocabulary: int) -> Text:
    """Texts of [CLS] and random tokens with `shortest` to `longest` tokens, padded: [rows, longest]."""
    lengths = torch.randint(shortest, longest + 1, (rows,))
    lengths[0] = longest
    mask = torch.arange(longest) < lengths[:, None]
    ids = torch.randint(MASK + 1, vocabulary, (rows, longest))
    ids[:, 0] = CLS
    return Text(ids.where(mask, PAD), mask.long())


def random_inputs(
    task: str, config: Mapping[str, Any], batch: int, tokens: int, device: torch.device
) -> tuple[Any, ...]:
    """What `forward` of a task's model takes, for B = `batch` random examples with texts of up to `tokens` tokens."""
    size, vocabulary = config['image_res'], config['bert_config']['vocab_size']
    image = torch.randn(batch * (2 if task == 'nlvr' else 1), 3, size, size).to(device)
    text = random_texts(batch, max(2, tokens // 2), tokens, vocabulary).to(device)
    if task == 'pretrain':
        return image, text
    if task == 'retrieval':
        return image, text, torch.arange(batch, device=device)
    if task == 'nlvr':
        return image, text, (torch.arange(batch) % 2).to(device)
    k = torch.tensor([ANSWERS[i % len(ANSWERS)] for i in range(batch)])
    answer = random_texts(int(k.sum()), 3, ANSWER_TOKENS, vocabulary).to(device)
    weights = (1 / k).repeat_interleave(k)
    return image, text, answer, k.to(device), weights.to(device)


def our_losses(model: nn.Module, *inputs: Any, **options: Any) -> Losses:
    """The losses of a model of this repository by name."""
    out = model(*inputs, **options)
    return {'loss': out} if isinstance(out, Tensor) else {name: out[name] for name in out if name.startswith('loss_')}


def plain_losses(task: str) -> Callable[..., Losses]:
    """The function that computes the same losses plainly: (model, *inputs) -> {name: []}."""
    return plain_steps.STEPS[task]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Whatever a forward pass changes without training, momentum copies and queues, is as before after the block."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    state = [(tensor, tensor.clone()) for tensor in [*frozen, *model.buffers()]]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in state:
                tensor.copy_(before)


@contextmanager
def same_choices(chosen: list[Tensor], replay: bool) -> Iterator[None]:
    """Note the negatives that are chosen inside the block in `chosen`, or with `replay` choose those in it again.

    Rounding may otherwise change which of two equally similar candidates is the hardest.
    """
    left = iter(list(chosen))

    def choosing(choose: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def chooses(*args: Any) -> Tensor:
            if replay:
                return next(left)
            chosen.append(choose(*args))
            return chosen[-1]

        return chooses

    names = 'hardest_negatives', 'draw'
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(losses, name, choosing(getattr(losses, name))))
        yield


def losses_and_gradients(
    compute: Callable[..., Losses], model: nn.Module, inputs: tuple[Any, ...], **options: Any
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """({name: loss}, {parameter: gradient}) without dropout, from one seed; afterwards the model is as before."""
    training = model.training
    model.eval().zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with unchanged(model):
        out = compute(model, *inputs, **options)
        sum(out.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.train(training).zero_grad(set_to_none=True)
    return {name: loss.item() for name, loss in out.items()}, gradients


def compare_losses(task: str, model: nn.Module, inputs: tuple[Any, ...], **options: Any) -> dict[str, float]:
    """The largest differences of our losses and gradients from the plain ones; InputError above the tolerances.

    A loss is compared with itself, a gradient with the largest entry of its parameter (see `FLOOR`, which the gradient
    of the temperature, larger than all others, does not set).
    """
    chosen: list[Tensor] = []
    with same_choices(chosen, replay=False):
        ours, our_gradients = losses_and_gradients(our_losses, model, inputs, **options)
    with same_choices(chosen, replay=True):
        plain, plain_gradients = losses_and_gradients(plain_losses(task), model, inputs, **options)
    if ours.keys() != plain.keys() or our_gradients.keys() != plain_gradients.keys():
        raise InputError(f'{task}: ours and plain train other parameters; no times are measured')
    largest = max(gradient.abs().max().item() for gradient in plain_gradients.values() if gradient.ndim >= 2)
    worst = {'loss difference': max(abs(ours[name] - plain[name]) / max(abs(plain[name]), 1e-6) for name in plain)}
    worst['gradient difference'] = max(
        (our_gradients[name] - gradient).abs().max().item() / max(gradient.abs().max().item(), FLOOR * largest)
        for name, gradient in plain_gradients.items()
    )
    for what, tolerance in zip(worst, (LOSS_TOLERANCE, GRADIENT_TOLERANCE), strict=True):
        if not worst[what] <= tolerance:
            raise InputError(f'{task}: {what} of ours and plain is {worst[what]:.1e}, more than {tolerance:.0e}')
    return worst


class Step:
    """One plain training step: forward, backward, optimizer. losses: a plain one, for `OurStep` `our_losses`."""

    def __init__(self, model: nn.Module, inputs: tuple, losses: Callable, optimizer: Any, precision: str):
        self.model, self.inputs, self.losses = model, inputs, losses
        self.optimizer, self.precision = optimizer, precision

    def __call__(self) -> None:
        self.differentiate()
        self.update()

    def differentiate(self) -> None:
        """Forward and backward."""
        with autocast(self.inputs[0].device, {'precision': self.precision}):
            out = self.losses(self.model, *self.inputs)
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(sum(out.values()))

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        """The optimizer's part."""
        self.optimizer.step()

    def make_moments(self) -> None:
        """Let the optimizer make its moments, which only its first step does."""
        for group in self.optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def forget(self) -> None:
        """Free the gradients and the moments."""
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)


class OurStep(Step):
    """A step with the checks of `engine.optimize`: a loss or gradient that is not finite changes nothing."""

    def __init__(self, model: nn.Module, inputs: tuple, optimizer: Any, precision: str, max_norm: float | None):
        super().__init__(model, inputs, our_losses, optimizer, precision)
        self.max_norm = max_norm
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]

    def backward(self, loss: Tensor) -> None:
        self.is_finite = finite.backward(loss, self.parameters, self.max_norm)

    def update(self) -> None:
        finite.step_if(self.is_finite, self.optimizer)


def count_step(step: Step) -> Operators:
    """The operators of a step. Its waits are those of forward and backward: AdamW's counter of steps is on the host."""
    gradients, update = count_operators(step.differentiate), count_operators(step.update)
    return Operators(gradients.total + update.total, gradients.waiting)


def peak_memory(step: Step, device: torch.device) -> float | None:
    """GiB of a GPU's memory at the peak of a steady step, the model included; None on a CPU.

    Only this step's optimizer has moments while it runs.
    """
    if device.type == 'cpu':
        return None
    step.make_moments()
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    step.forget()
    return torch.cuda.max_memory_allocated() / GIB


def run_steps(
    steps: Mapping[str, Step], is_compiled: bool, rounds: int, device: torch.device
) -> tuple[dict[str, float | None], dict[str, Operators], dict[str, list[float]]]:
    """(GiB at the peak, operators, none of compiled steps, seconds of each round), of each step by name."""
    memory = {name: peak_memory(step, device) for name, step in steps.items()}
    for step in steps.values():
        step.make_moments()
    operators = {} if is_compiled else {name: count_step(step) for name, step in steps.items()}  # also warms up
    warmup = 1 if is_compiled or device.type == 'cuda' else 0
    return memory, operators, take_turns(steps, rounds, device, warmup)
