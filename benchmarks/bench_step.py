"""Time of one pre-training step on made-up data: forward, backward, optimizer; and what it takes of memory and of the
peak.

    python benchmarks/bench_step.py                                  # ViT-B/16 at 256 px, batch 128: for a GPU
    python benchmarks/bench_step.py --batch 4 --steps 2 --warmup 1   # the same model, a batch that a CPU can wait for

Operations are counted, not estimated: 2 for each multiply-add of a forward pass, times 3 for forward and backward.
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from models import create_model  # noqa: E402
from optim import create_optimizer  # noqa: E402
from utils.config import read_yaml, resolve  # noqa: E402
from utils.setup import compile_layers  # noqa: E402

LOSSES = ('loss_mlm', 'loss_itc', 'loss_itm')


def made_up_batch(batch, image_res, tokens, device):
    ids = torch.randint(1000, 30000, (batch, tokens), device=device)
    ids[:, 0] = 101
    return (
        torch.randn(batch, 3, image_res, image_res, device=device),
        SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids)),
    )


def measure(config, batch, tokens, steps, warmup, device, precision, options):
    """(seconds a step, peak memory in bytes or None, operations of a forward) of one variant."""
    torch.manual_seed(0)
    tokenizer = SimpleNamespace(pad_token_id=0, cls_token_id=101, mask_token_id=103)
    model = create_model('pretrain', config | {'grad_checkpointing': 'checkpointing' in options}, tokenizer).to(device)
    optimizer = create_optimizer(config['optimizer'], model)
    image, text = made_up_batch(batch, config['image_res'], tokens, device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.eval()(image[:4], SimpleNamespace(input_ids=text.input_ids[:4], attention_mask=text.attention_mask[:4]))
    model.train()
    if 'compile' in options:
        compile_layers(model)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    for number in range(warmup + steps):
        if number == warmup:
            wait(device)
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16) if precision == 'bf16' else nullcontext():
            out = model(image, text)
        optimizer.zero_grad(set_to_none=True)
        sum(out[name] for name in LOSSES).backward()
        optimizer.step()
    wait(device)
    memory = torch.cuda.max_memory_allocated() if device.type == 'cuda' else None
    return (time.perf_counter() - began) / steps, memory, counter.get_total_flops() / min(4, batch) * batch


def wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='configs/Pretrain.yaml')
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--tokens', type=int, default=16)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument(
        '--variants',
        nargs='+',
        default=['fp32', 'bf16'],
        help='precision, with options: fp32, bf16, bf16+checkpointing, bf16+compile',
    )
    parser.add_argument('--peak', type=float, help='TFLOP/s that the device can do, to print the share of it')
    args = parser.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    config, _ = resolve('pretrain', read_yaml(args.config), args.config)
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    print(f'{name}; batch {args.batch}, {config["image_res"]} px, {args.tokens} tokens')
    for variant in args.variants:
        precision, *options = variant.split('+')
        seconds, memory, flops = measure(
            config, args.batch, args.tokens, args.steps, args.warmup, device, precision, options
        )
        rate = 3 * flops / seconds / 1e12
        print(
            f'{variant:20} {seconds * 1000:9.1f} ms a step  {args.batch / seconds:8.1f} pairs/s  {rate:7.2f} TFLOP/s'
            + (f'  {rate / args.peak:.0%} of the peak' if args.peak else '')
            + (f'  {memory / 2**30:.1f} GB' if memory else '')
            + f'  ({flops / args.batch / 1e9:.1f} GFLOP a pair forward)'
        )


if __name__ == '__main__':
    main()
