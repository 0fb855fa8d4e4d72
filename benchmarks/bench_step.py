"""Time, memory and operators of a training step of every task, ours and plain, and its share of the measured peak.

    python benchmarks/bench_step.py                           # all tasks at full size; on a CPU with few examples
    python benchmarks/bench_step.py --task vqa --batch 8      # one task, another batch
    python benchmarks/bench_step.py --variants bf16 bf16+compile bf16+checkpointing
    python benchmarks/bench_step.py --largest                 # also the largest batch of pre-training that fits a GPU
    python benchmarks/bench_step.py --task pretrain --config configs/shapes/Pretrain.yaml --batch 32 --profile

A step is forward, backward and optimizer on random data. The plain step (`plain_steps.py`) has the same weights and
gives the same losses and gradients, which is checked first, without dropout in float32, with fewer examples if a GPU
has no memory for all; if they differ the variant is not measured. Our step has the checks of `engine.optimize`. Both
take turns; times are the best of all rounds. On a CPU the models have their full size.

What goes wrong is in the column `error`; the other rows are measured, and the exit code is 2. If only the plain step is
out of memory, our numbers stay.

FLOPs are those of our step, counted: 2 for each multiply-add of a forward pass, times 3 for forward and backward, and
once for momentum copies. What the plain step adds is not counted. `of peak` is their rate divided by that of a
product of two large matrices, measured first, in the same precision (TF32 for fp32 on a GPU). `ops` are operators per
step, views excluded. GiB are the peak of a GPU's allocated memory in a step.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.counting import TOKENIZER, count_flops, set_checkpointing, training_flops  # noqa: E402
from benchmarks.plain_steps import plain_optimizer  # noqa: E402
from benchmarks.profiling import (  # noqa: E402
    fits_memory,
    free_memory,
    largest_batch,
    profile_step,
    within_memory,
)
from benchmarks.report import Report, add_arguments, exact_products, matrix_peak  # noqa: E402
from benchmarks.step_tasks import (  # noqa: E402
    TASKS,
    OurStep,
    Step,
    check_supported,
    compare_losses,
    losses_and_gradients,
    our_losses,
    plain_losses,
    random_inputs,
    run_steps,
)
from models import create_model  # noqa: E402
from optim import create_optimizer  # noqa: E402
from utils.arguments import Parser, add_flag, positive_int  # noqa: E402
from utils.config import apply_overrides, resolve  # noqa: E402
from utils.config_files import find_file, read_yaml  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.setup import autocast, compile_layers  # noqa: E402

PRECISIONS, OPTIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16}, ('checkpointing', 'compile')
VARIANTS = {'cpu': ['fp32'], 'cuda': ['fp32', 'bf16', 'bf16+checkpointing', 'bf16+compile']}
ROUNDS = {'cpu': 2, 'cuda': 5}
BF16_TOLERANCE = 0.01  # of the losses, relative to those in float32
Config = Mapping[str, Any]


def bf16_difference(model: nn.Module, inputs: tuple) -> float:
    """The largest relative difference of our losses in bfloat16 from those in float32; InputError above 1 %."""

    def in_bf16(*args: Any) -> dict[str, torch.Tensor]:
        with autocast(inputs[0].device, {'precision': 'bf16'}):
            return our_losses(*args)

    exact, _ = losses_and_gradients(our_losses, model, inputs)
    rounded, _ = losses_and_gradients(in_bf16, model, inputs)
    difference = max(abs(rounded[name] / exact[name] - 1) for name in exact)
    if not difference <= BF16_TOLERANCE:
        raise InputError(f'losses in bf16 differ by {difference:.1%} from fp32, more than {BF16_TOLERANCE:.0%}')
    return difference


def batch_of(task: str, config: Config, args: argparse.Namespace, device: torch.device) -> int:
    """The number of examples: --batch, the official one on a GPU, few on a CPU."""
    return args.batch or (TASKS[task].cpu_batch if device.type == 'cpu' else config[TASKS[task].batch_key])


def create(
    task: str, config: Config, batch: int, args: argparse.Namespace, device: torch.device
) -> tuple[nn.Module, tuple]:
    """(a model with random weights in training mode, random inputs), made on the device."""
    torch.manual_seed(0)
    with device:
        model = create_model(task, config, TOKENIZER).train()
    return model, random_inputs(task, config, batch, args.tokens or TASKS[task].tokens, device)


def measure(task: str, variant: str, config: Config, args: argparse.Namespace, report: Report) -> None:
    """Check and time one variant of a task's step and the plain step in the same precision: a row of the report."""
    device, (precision, *options) = report.device, variant.split('+')
    batch = batch_of(task, config, args, device)
    model, inputs = create(task, config, batch, args, device)
    details = check_within_memory(task, precision, config, args, model, inputs, batch)
    flops = training_flops(count_flops(lambda: model.eval()(*inputs)))
    model.train()
    set_checkpointing(model, 'checkpointing' in options)
    if is_compiled := 'compile' in options:
        compile_layers(model)
    steps = {
        'plain': Step(model, inputs, plain_losses(task), plain_optimizer(config['optimizer'], model), precision),
        'ours': our_step(model, inputs, config, precision),
    }
    both_fit, measured = within_memory(partial(run_steps, steps, is_compiled, args.rounds, device))
    if not both_fit:
        for step in steps.values():
            step.forget()
        measured = run_steps({'ours': steps['ours']}, is_compiled, args.rounds, device)
    memory, operators, seconds = measured
    details['seconds'] = seconds
    if args.profile:
        print(f'{task} {variant}:')
        details |= profile_step(steps['ours'], device)
    plain, ours = min(seconds['plain']) if both_fit else None, min(seconds['ours'])
    row = {'task': task, 'variant': variant, 'batch': batch, 'px': config['image_res']}
    row |= {'plain ms': plain and plain * 1e3, 'ms': ours * 1e3, 'ratio': plain and plain / ours}
    row |= {'GFLOP': flops / 1e9, 'TFLOP/s': (rate := flops / ours / 1e12)}
    row['of peak'] = rate / (args.peak or report.facts[peak_name(precision, device)])
    row |= {'plain GiB': memory.get('plain'), 'GiB': memory['ours']}
    ops = {name: counted.total for name, counted in operators.items()}
    row |= {'plain ops': ops.get('plain'), 'ops': ops.get('ours')}
    row |= {} if both_fit else {'error': 'plain: out of memory'}
    details['operators that wait'] = {name: counted.waiting for name, counted in operators.items()} or None
    details['examples/s'] = batch / ours
    report.add(row, **details)


def our_step(model: nn.Module, inputs: tuple, config: Config, precision: str) -> OurStep:
    """A step of ours as the training scripts take it."""
    optimizer = create_optimizer(config['optimizer'], model)
    return OurStep(model, inputs, optimizer, precision, config['clip_grad_norm'])


def check_within_memory(
    task: str, precision: str, config: Config, args: argparse.Namespace, model: nn.Module, inputs: tuple, batch: int
) -> dict[str, float]:
    """`check`, with half of the examples as long as it is out of memory, in float32 without checkpointing."""
    fits, found = within_memory(partial(check, task, precision, model, inputs))
    while not fits and batch > 2:
        batch = max(2, batch // 2)
        model.train().zero_grad(set_to_none=True)
        fewer = random_inputs(task, config, batch, args.tokens or TASKS[task].tokens, inputs[0].device)
        fits, found = within_memory(partial(check, task, precision, model, fewer))
    if not fits:
        raise torch.OutOfMemoryError
    return found | {'checked batch': batch}


def check(task: str, precision: str, model: nn.Module, inputs: tuple) -> dict[str, float]:
    """The differences of our losses and gradients from the plain ones, and of losses in bf16 if it is the precision;
    InputError above the tolerances.
    """
    with exact_products(inputs[0].device):
        differences = compare_losses(task, model, inputs)
        if precision == 'bf16':
            differences['bf16 difference'] = bf16_difference(model, inputs)
    return differences


def search_largest(config: Config, args: argparse.Namespace, report: Report) -> None:
    """Rows: the largest batch of pre-training in bf16 that fits the GPU, at 256 and 384 px, also with checkpointing."""
    for size in (256, 384):
        for recompute in (False, True):
            sized = config | {'image_res': size, 'grad_checkpointing': recompute}
            batch, is_complete = largest_batch(partial(batch_fits, sized, args, report.device))
            variant = f'bf16{"+checkpointing" if recompute else ""}, largest batch'
            report.add({'task': 'pretrain', 'variant': variant, 'batch': batch, 'px': size}, complete=is_complete)


def batch_fits(config: Config, args: argparse.Namespace, device: torch.device, batch: int) -> bool:
    """Whether two steps of pre-training in bf16 fit the memory; the first makes the moments."""

    def train() -> None:
        model, inputs = create('pretrain', config, batch, args, device)
        step = our_step(model, inputs, config, 'bf16')
        step()
        step()

    return fits_memory(train)


def peak_name(precision: str, device: torch.device) -> str:
    """The name of a precision's peak in the report."""
    return f'peak TFLOP/s, {"tf32" if precision == "fp32" and device.type == "cuda" else precision}'


def measure_peaks(variants: Sequence[str], report: Report) -> None:
    """Put the peak of every precision into the report; of a GPU also that of float32 without TF32."""
    device = report.device
    for precision in dict.fromkeys(variant.split('+')[0] for variant in variants):
        report.facts[peak_name(precision, device)] = matrix_peak(device, PRECISIONS[precision]) / 1e12
    if device.type == 'cuda':
        with exact_products(device):
            report.facts['peak TFLOP/s, fp32'] = matrix_peak(device, torch.float32) / 1e12


def read_config(task: str, args: argparse.Namespace) -> Config:
    """The configuration of a task, by default its official one; checked."""
    path = find_file(args.config or f'configs/{TASKS[task].config}.yaml')
    config, _ = resolve(task, apply_overrides(read_yaml(path), args.set), path)
    check_supported(task, config, path)
    return config


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', nargs='+', choices=TASKS, default=list(TASKS), help='(default: all)')
    parser.add_argument('--config', help="a YAML configuration, for one --task (default: the official one's)")
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='as for the training scripts')
    parser.add_argument('--batch', type=positive_int, help='examples per step (default: the official; on a CPU few)')
    parser.add_argument('--tokens', type=positive_int, help='of the longest text (default: what the task cuts at)')
    parser.add_argument('--rounds', type=positive_int, help='timed steps (default: 2 on a CPU, 5 on a GPU)')
    parser.add_argument(
        '--variants', nargs='+', help='fp32 or bf16, with +checkpointing or +compile (default: fp32; on a GPU four)'
    )
    parser.add_argument('--peak', type=float, help="peak TFLOP/s of the device, in place of the measured one's")
    add_flag(parser, '--profile', False, 'print the top operations of a steady step; count launches and syncs')
    add_flag(parser, '--largest', False, 'also search the largest batch of pre-training that fits a GPU')
    add_arguments(parser, 'step')
    args = parser.parse_args(argv)
    for variant in args.variants or []:
        precision, *options = variant.split('+')
        if precision not in PRECISIONS or not set(options) <= set(OPTIONS):
            raise InputError(
                f'--variants {variant}: must be {" or ".join(PRECISIONS)}, with +{" or +".join(OPTIONS)} if wanted'
            )
    if args.config and len(args.task) > 1:
        raise InputError(f'--config {args.config}: is of one task; name it with --task')
    if args.batch == 1 and {'pretrain', 'retrieval'} & set(args.task):
        raise InputError('--batch 1: must be at least 2, for ITM takes negatives from the batch')
    if args.tokens is not None and args.tokens < 3:
        raise InputError(f'--tokens {args.tokens}: must be at least 3')
    if args.peak is not None and not 0 < args.peak < float('inf'):
        raise InputError(f'--peak {args.peak}: must be above 0')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    report = Report('step', args, argv)
    kind = report.device.type
    if args.largest and kind == 'cpu':
        raise InputError('--largest: needs a GPU; omit it')
    args.rounds = args.rounds or ROUNDS[kind]
    variants = args.variants or VARIANTS[kind]
    configs = {task: read_config(task, args) for task in args.task}
    largest = (configs.get('pretrain') or read_config('pretrain', args)) if args.largest else None
    measure_peaks(variants, report)
    failed = []
    for task, config in configs.items():
        for variant in variants:
            if error := try_measure(task, variant, config, args, report):
                batch = batch_of(task, config, args, report.device)
                report.add({'task': task, 'variant': variant, 'batch': batch, 'error': error})
                failed.append(f'{task} {variant} ({error})')
            free_memory()
    if largest:
        search_largest(largest, args, report)
    report.finish()
    if failed:
        raise InputError(f'{args.out}: not measured: {"; ".join(failed)}; leave these out, or give a smaller --batch')


def try_measure(task: str, variant: str, config: Config, args: argparse.Namespace, report: Report) -> str | None:
    """`measure`; returns why there is no row, or None."""
    try:
        fits, _ = within_memory(partial(measure, task, variant, config, args, report))
    except InputError as error:
        return str(error)
    return None if fits else 'out of memory'


if __name__ == '__main__':
    run_main(main)
