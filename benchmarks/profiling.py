"""What a training step makes the device do: operators, kernel launches and host syncs, and the largest batch that fits.

`count_operators` needs no GPU and is deterministic. `profile_step` prints torch.profiler's table. The host waits at
least as often as they count: both know the operators and calls of the lists below, other ones may wait, too.
"""

import gc
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import wait

# Operators for which the host waits until a GPU has computed the value that they return.
WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
LAUNCHES = ('cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernel', 'cuLaunchKernelEx')
SYNCS = ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize')
ITEMS = ('aten::_local_scalar_dense', 'aten::nonzero')
TOP = 20  # operations of the table
NO_MEMORY = ('out of memory', 'STATUS_ALLOC_FAILED')  # also in errors of CUDA and cuBLAS that are plain RuntimeErrors
Result = TypeVar('Result')


class Operators(NamedTuple):
    """total: operators that compute. waiting: at least so many of them make the host wait for a GPU."""

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
    reads. There are at least so many. What the profiler calls itself, at its end, is in the table but does not count.
    On the CPU there are no launches and no syncs.
    """
    own = count_events(profile(lambda: None, device)) if device.type == 'cuda' else {}
    events = profile(step, device)
    order = 'self_cuda_time_total' if device.type == 'cuda' else 'self_cpu_time_total'
    print(events.table(sort_by=order, row_limit=TOP, max_name_column_width=60))
    return {name: count - own.get(name, 0) for name, count in count_events(events).items()}


def profile(step: Callable[[], object], device: torch.device) -> torch.autograd.profiler_util.EventList:
    """The events of one call by name."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    wait(device)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    wait(device)
    return profiler.key_averages()


def count_events(events: torch.autograd.profiler_util.EventList) -> dict[str, int]:
    """{'kernel launches', 'host syncs', 'items': counts}"""
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

    def complete() -> None:
        step()
        torch.cuda.synchronize()

    fits, _ = within_memory(complete)
    if fits:
        free_memory()
    return fits


def within_memory(call: Callable[[], Result]) -> tuple[bool, Result | None]:
    """(True, the result of a call), or (False, None) if it ran out of a GPU's memory; what it left is freed."""
    try:
        return True, call()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    free_memory()  # here nothing refers to the error and its frames
    return False, None


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def free_memory() -> None:
    """Free what nothing refers to any more, on a GPU also what the allocator keeps."""
    gc.collect()
    torch.cuda.empty_cache()
