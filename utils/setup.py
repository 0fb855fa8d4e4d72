"""The beginning and the end of every script: configuration, processes, output folder, seeds, model on its device."""

import argparse
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import distributed
from utils.config import apply_overrides, resolve
from utils.config_files import find_file, read_yaml
from utils.errors import InputError, MissingFileError
from utils.files import WEIGHTS_FILE
from utils.interrupts import handle_signals
from utils.log import append_log, print_rank0
from utils.ownership import own_folder, release_folder
from utils.reporting import require_package
from utils.seeding import seed_everything


def script(main: Callable[[Sequence[str] | None], None]) -> Callable[..., None]:
    """Decorate a script's main: it handles signals, and at its end leaves the processes and the output folder."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> None:
        with handle_signals():
            try:
                main(argv)
                distributed.close()
            finally:
                release_folder()

    return wrapped


def start(task: str, args: argparse.Namespace) -> tuple[dict[str, Any], torch.device]:
    """Join the other processes, check everything that can be checked before work is done, seed, own the output folder.

    Returns (config, device): the resolved configuration, and this process's device.
    """
    given, args.config = args.config, find_file(args.config)
    config, unused = resolve(task, apply_overrides(read_yaml(args.config), args.set), args.config)
    if args.checkpoint and not os.path.exists(args.checkpoint):
        raise MissingFileError(f'--checkpoint {args.checkpoint}: there is no such file')
    if os.path.isdir(args.checkpoint) and not os.path.isfile(os.path.join(args.checkpoint, WEIGHTS_FILE)):
        raise InputError(
            f'--checkpoint {args.checkpoint} is a folder without {WEIGHTS_FILE}; give a file in it, or a folder of '
            'save_pretrained'
        )
    device = distributed.init(args, config['collective_timeout'])
    if not args.evaluate:
        distributed.main_first(functools.partial(require_package, config['report_to']))
    seed_everything(args.seed)
    if device.type == 'cuda':  # the default of torch 1.8, with which the official results were made on A100s
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    distributed.main_first(functools.partial(make_folder, args.output_dir))
    fallback = ', no GPU was found' if args.device.startswith('cuda') and device.type == 'cpu' else ''
    processes = f'{distributed.world_size()} process(es) on {device.type}{fallback}'
    print_rank0(f'{task}: {processes}, {config["precision"]}, output in {args.output_dir}')
    if args.config != given:
        print_rank0(f'configuration {args.config}')
    if unused:
        print_rank0('keys of other tasks, not used here: ' + ', '.join(unused))
    return config, device


def make_folder(folder: str) -> None:
    """Make the output folder and take it."""
    try:
        os.makedirs(folder, exist_ok=True)
        own_folder(folder)
    except OSError as error:
        raise InputError(
            f'--output_dir {folder!r} cannot be used ({error.strerror}); give a folder that you can write to'
        ) from None


def finish_evaluation(args: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """End a run of --evaluate: append the checkpoint and its metrics to log.txt."""
    append_log(args.output_dir, {'checkpoint': args.checkpoint} | dict(record))


def to_device(model: nn.Module, device: torch.device, config: Mapping[str, Any]) -> nn.Module:
    """Move the model to its device, compile it if `compile` is set, wrap it if several processes train it."""
    model.to(device)
    if config['compile']:
        compile_layers(model)
    if distributed.is_initialized():
        for buffer in model.buffers():  # DDP synchronizes parameters only; retrieval's queue starts as random features
            distributed.broadcast(buffer)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', FutureWarning)  # newer torch has another name for broadcast_buffers
            return DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == 'cuda' else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without the wrapper that averages gradients over processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def compile_layers(model: nn.Module) -> None:
    """torch.compile each transformer layer in place; state-dict keys stay. InputError if it does not work here."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=next(model.parameters()).device))
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'compile: true does not work here: {reason}; set compile: false') from None
    for module in model.modules():
        if type(module).__name__ in ('Block', 'Layer'):
            module.compile()


def autocast(device: torch.device, config: Mapping[str, Any]) -> torch.autocast:
    """The context of a forward pass: matrix products in bfloat16 with `precision: bf16`, no effect with fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config['precision'] == 'bf16')


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On the CPU, compute in one thread: the last bits of a product depend on how many threads share it."""
    threads = torch.get_num_threads()
    if device.type == 'cpu':
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
