"""Time of one pre-training step on random data (forward, backward, optimizer), its memory, and its share of the peak.

    python benchmarks/bench_step.py                                  # ViT-B/16 at 256 px, batch 128: for a GPU
    python benchmarks/bench_step.py --batch 4 --steps 2 --warmup 1   # the same model, a batch small enough for a CPU

FLOPs are counted, not estimated: 2 for each multiply-add of a forward pass, times 3 for forward and backward.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.counting import MASK, TOKENIZER, count_flops, random_batch  # noqa: E402
from dataset.tokens import Text  # noqa: E402
from models import create_model  # noqa: E402
from optim import create_optimizer  # noqa: E402
from utils.arguments import Parser  # noqa: E402
from utils.config import resolve  # noqa: E402
from utils.config_files import find_file, read_yaml  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.setup import autocast, compile_layers  # noqa: E402

LOSSES = ('loss_mlm', 'loss_itc', 'loss_itm')
PRECISIONS, OPTIONS = ('fp32', 'bf16'), ('checkpointing', 'compile')


def measure(
    variant: str, config: Mapping[str, Any], args: argparse.Namespace, device: torch.device
) -> tuple[float, int | None, float]:
    """(seconds per step, peak memory in bytes or None, FLOPs of a forward pass) of one variant."""
    precision, *options = variant.split('+')
    batch, tokens, steps, warmup = args.batch, args.tokens, args.steps, args.warmup
    torch.manual_seed(0)
    model = create_model('pretrain', config | {'grad_checkpointing': 'checkpointing' in options}, TOKENIZER).to(device)
    optimizer = create_optimizer(config['optimizer'], model)
    image, text = random_batch(batch, tokens, config, device)
    model.eval()
    flops = count_flops(lambda: model(image[:4], Text(*(part[:4] for part in text))))['Global']
    model.train()
    if 'compile' in options:
        compile_layers(model)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    for number in range(warmup + steps):
        if number == warmup:
            wait(device)
            began = time.perf_counter()
        with autocast(device, {'precision': precision}):
            out = model(image, text)
        optimizer.zero_grad(set_to_none=True)
        sum(out[name] for name in LOSSES).backward()
        optimizer.step()
    wait(device)
    memory = torch.cuda.max_memory_allocated() if device.type == 'cuda' else None
    return (time.perf_counter() - began) / steps, memory, flops / min(4, batch) * batch


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize()


def check_variant(variant: str) -> None:
    """InputError unless a variant is a precision with known options."""
    precision, *options = variant.split('+')
    if precision not in PRECISIONS or not set(options) <= set(OPTIONS):
        raise InputError(
            f'--variants {variant}: must be {" or ".join(PRECISIONS)}, with +{" or +".join(OPTIONS)} if wanted'
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/Pretrain.yaml', help='a YAML configuration of pre-training')
    parser.add_argument('--batch', type=int, default=128, help='pairs per step (default %(default)s)')
    parser.add_argument('--tokens', type=int, default=16, help='of each text (default %(default)s)')
    parser.add_argument('--steps', type=int, default=10, help='timed steps (default %(default)s)')
    parser.add_argument('--warmup', type=int, default=3, help='steps before them (default %(default)s)')
    parser.add_argument(
        '--variants',
        nargs='+',
        default=['fp32', 'bf16'],
        help='precision, with options: fp32, bf16, bf16+checkpointing, bf16+compile',
    )
    parser.add_argument('--peak', type=float, help='peak TFLOP/s of the device, to print the share of it')
    args = parser.parse_args(argv)
    for name, least in (('batch', 2), ('tokens', 2), ('steps', 1), ('warmup', 0)):
        if getattr(args, name) < least:
            raise InputError(f'--{name} {getattr(args, name)}: must be at least {least}')
    for variant in args.variants:
        check_variant(variant)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    args.config = find_file(args.config)
    config, _ = resolve('pretrain', read_yaml(args.config), args.config)
    if config['bert_config']['vocab_size'] <= MASK + 1:
        raise InputError(f'{args.config}: bert_config.vocab_size must be above {MASK + 1}')
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    print(f'{name}; batch {args.batch}, {config["image_res"]} px, {args.tokens} tokens')
    for variant in args.variants:
        seconds, memory, flops = measure(variant, config, args, device)
        rate = 3 * flops / seconds / 1e12
        print(
            f'{variant:20} {seconds * 1000:9.1f} ms per step  {args.batch / seconds:8.1f} pairs/s  {rate:7.2f} TFLOP/s'
            + (f'  {rate / args.peak:.0%} of the peak' if args.peak else '')
            + (f'  {memory / 2**30:.1f} GB' if memory else '')
            + f'  ({flops / args.batch / 1e9:.1f} GFLOP per pair forward)'
        )


if __name__ == '__main__':
    run_main(main)
