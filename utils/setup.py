"""The beginning and the end of every script: configuration, processes, output folder, seeds, model on its device."""

import argparse
import functools
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import distributed
from utils.config import apply_overrides, resolve
from utils.config_files import find_file, read_yaml
from utils.errors import InputError, MissingFileError
from utils.files import WEIGHTS_FILE, temporary_name
from utils.interrupts import handle_signals
from utils.log import append_log, print_rank0
from utils.ownership import own_folder, release_folder
from utils.reporting import require_package
from utils.seeding import seed_everything

PATIENCE = 10.0  # seconds until all machines must see a new file in a shared folder


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
    if not args.evaluate:
        require_shared_folder(args.output_dir)
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


def require_shared_folder(folder: str) -> None:
    """InputError if some process does not see the output folder of rank 0, in which all write checkpoints.

    A collective. Rank 0 leaves a file of a new name, which no machine's cache can know; the others look for it at once,
    and for some seconds more, as a network file system may be slow.
    """
    if not distributed.is_initialized():
        return

    def leave_mark() -> Path:
        mark = temporary_name(Path(folder, 'shared'))  # if it stays, the next run removes it
        mark.touch()
        return mark

    mark = distributed.main_first(leave_mark)
    deadline = time.monotonic() + PATIENCE
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    hosts = distributed.all_gather_objects(None if mark.exists() else socket.gethostname())
    if distributed.is_main():
        mark.unlink(missing_ok=True)
    blind = [f'rank {rank} on {host}' for rank, host in enumerate(hosts) if host is not None]
    if blind:
        raise InputError(
            f'--output_dir {folder}: {blind[0]} and {len(blind) - 1} other processes do not see the folder that rank 0 '
            'uses; give a folder that all machines share, by its absolute path'
        )


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
            wrapped = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == 'cuda' else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        fix_buckets(wrapped)
        return wrapped
    return model


def fix_buckets(wrapped: DistributedDataParallel) -> None:
    """Make the buckets of the gradients the same in every step of every run of this model.

    DDP arranges its buckets anew, once, before the second forward pass, in the order in which gradients were ready in
    the first backward pass. More than two numbers are added in an order that depends on their place in the bucket
    (ring all-reduce), so the first step of a resumed run would differ from the same step of an uninterrupted one in the
    last bits. This is the first backward pass: through the sum of all trainable parameters, with the gradient zero, in
    the reverse order of registration. Weights, gradients and random generators stay as they are.
    """
    module = wrapped.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    module.forward = lambda start: sum((parameter.sum() for parameter in trained), start)
    try:
        with torch.enable_grad():
            total = wrapped(torch.zeros((), device=trained[0].device))  # on a GPU, DDP needs an argument
            total.backward(torch.zeros_like(total))
    finally:
        del module.forward  # the method of the class is visible again
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient


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
