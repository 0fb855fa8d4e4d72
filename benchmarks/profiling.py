"""What a training step makes the device do: operators, kernel launches and host syncs, and the largest batch that fits.

`count_operators` needs no GPU and is deterministic. `profile_step` prints torch.profiler's table.
"""

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import wait

# Operators for which the host waits until a GPU has computed the value that they return.
WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
LAUNCHES = ('cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernel', 'cuLaunchKernelEx')
SYNCS = ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize')
ITEMS = ('aten::_local_scalar_dense', 'aten::nonzero')
TOP = 20  # operations of the table


class Operators(NamedTuple):
    """total: operators that compute. waiting: those of them for which the host would wait for a GPU."""

    total: int
    waiting: int


class _Counter(TorchDispatchMode):
    """Counts operators, also those of the backward pass; views compute nothing and do not count."""

    def __init__(self):
        super().__init__()
        self.total = self.waiting = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += not function.is_view
        self.waiting += function.overloadpacket in WAITING
        return function(*args, **(kwargs or {}))


def count_operators(step: Callable[[], object]) -> Operators:
    """The operators of one call."""
    with _Counter() as counter:
        step()
    return Operators(counter.total, counter.waiting)


def profile_step(step: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Print the operations of one call that take most time -> {'kernel launches', 'host syncs', 'items': counts}.

    The call should not be the first. A host sync is a call of CUDA that waits; items are operators whose value the host
    reads. On the CPU there are no launches and no syncs.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    wait(device)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    wait(device)
    events = profiler.key_averages()
    order = 'self_cuda_time_total' if device.type == 'cuda' else 'self_cpu_time_total'
    print(events.table(sort_by=order, row_limit=TOP, max_name_column_width=60))
    groups = {'kernel launches': LAUNCHES, 'host syncs': SYNCS, 'items': ITEMS}
    return {name: sum(event.count for event in events if event.key in keys) for name, keys in groups.items()}


def largest_batch(
    fits: Callable[[int], bool], start: int = 8, seconds: float = 45.0, clock: Callable[[], float] = time.monotonic
) -> tuple[int, bool]:
    """The largest batch that fits, by doubling and then by bisection to an eighth of it or less.

    fits: whether a step with so many examples fits into the memory. seconds: after which no other size is tried.
    Returns (the largest that was found to fit, 0 if `start` does not; whether the search came to its end).
    """
    end = clock() + seconds
    good, bad, size = 0, None, start
    while size and clock() < end:
        if fits(size):
            good = size
        else:
            bad = size
        if bad is None:
            size = 2 * good
        elif bad - good <= max(1, good // 8) or not good:
            return good, True
        else:
            size = (good + bad) // 2
    return good, False


def fits_memory(step: Callable[[], object]) -> bool:
    """Whether a call does not run out of a GPU's memory; what it left is freed."""
    fits = True
    try:
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        fits = False
    free_memory()
    return fits


def free_memory() -> None:
    """Free what nothing refers to any more, on a GPU also what the allocator keeps."""
    gc.collect()
    torch.cuda.empty_cache()
