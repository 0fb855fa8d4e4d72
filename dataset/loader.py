"""Data loaders whose workers outlive an epoch, and batches on their way to the device."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from dataset.base import EvalSet, report_unknown_tokens
from dataset.samplers import ShardBatches
from dataset.tokens import Text
from utils import distributed
from utils.log import print_rank0

LINUX = sys.platform.startswith('linux')
PR_SET_PDEATHSIG = 1  # of Linux's prctl
ON_HOST = ('index', 'requested')  # which rows a batch holds: read on the CPU, so that nothing waits for the device


def create_loader(dataset: Dataset, batches: Iterable[list], num_workers: int, device: torch.device) -> DataLoader:
    """A loader over `dataset` in the order of `batches` (any batch sampler), with workers that outlive an epoch.

    It draws nothing from torch's default generator, so a run does not depend on when loaders are made.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=dataset.collate,
        pin_memory=device.type == 'cuda',
        persistent_workers=num_workers > 0,
        worker_init_fn=worker_init,
        generator=torch.Generator(),
    )


def worker_init(worker_id: int) -> None:
    """For DataLoader: a worker computes in one thread, dies with the main process, and leaves signals to it."""
    compute_in_one_thread()
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if LINUX:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_by_parent, daemon=True).start()


def compute_in_one_thread() -> None:
    """For worker processes, of which there are as many as cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def die_with_parent() -> None:
    """Let the system kill this child process when the thread that started it ends, however that happens (on Linux)."""
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before. With a fork server the parent is another process than the one that is known here.
    if multiprocessing.get_start_method() == 'fork' and os.getppid() != multiprocessing.parent_process().pid:
        os._exit(1)


def _end_by_parent() -> None:
    """End this process at a SIGTERM of the main process, as multiprocessing sends it at exit, and at no other.

    A scheduler sends SIGTERM to all processes of a run, and the main process still needs its workers then.
    """
    main_process = multiprocessing.parent_process().pid
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main_process:
        pass
    os._exit(0)


def evaluation_splits(
    config: Mapping[str, Any], make: Callable[[str], EvalSet], batch_size: int, device: torch.device
) -> dict[str, tuple[EvalSet, DataLoader]]:
    """{'val': (dataset, loader), 'test': ...} for the files of the configuration; a loader yields this rank's shard.

    make: the dataset of a split by its name.
    """
    splits = {}
    for name in ('val', 'test'):
        if config[f'{name}_file']:
            dataset = make(name)
            shard = ShardBatches(len(dataset), batch_size, distributed.rank(), distributed.world_size())
            splits[name] = dataset, create_loader(dataset, shard, config['num_workers'], device)
            print_rank0(f'{len(dataset)} {dataset.unit} in {name}')
            report_unknown_tokens(dataset, f'{name}_file')
    return splits


def fingerprints(splits: Mapping[str, tuple[EvalSet, DataLoader]]) -> dict[str, str]:
    """{val_file: number of rows and digest, ...} of the splits, for the identity of a run."""
    return {f'{name}_file': dataset.table.fingerprint() for name, (dataset, _) in splits.items()}


def move_batch(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors and texts on the device; `index` and `requested` stay on the CPU."""
    moved = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Text):
            moved[name] = value.to(device)
        elif torch.is_tensor(value) and name not in ON_HOST:
            moved[name] = value.to(device, non_blocking=True)
    return moved
