"""Notice losses, gradients and weights that are not finite, without waiting for the device at every step."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils import distributed
from utils.errors import InputError
from utils.log import print_rank0

MOST_SKIPPED = 10  # steps in a row, with on_nonfinite: skip
ROWS_NAMED = 64
LAG = 4  # steps on a GPU until the host looks at a result; it has long been computed by then


def backward(loss: Tensor, parameters: Iterable[nn.Parameter], max_norm: float | None = None) -> Tensor:
    """The gradients of a loss, clipped to `max_norm` if it is given. Returns whether they are finite: [] bool.

    A loss that is not finite makes every gradient NaN; averaged gradients carry that to all ranks.
    """
    start = torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss.dtype)
    loss.backward(start)
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.isfinite()


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take the step of a fused optimizer, which decides on its device, if `finite` [] bool holds."""
    optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
    optimizer.step()


class StepResults:
    """Whether each of the last steps was finite, read `lag` steps later, when the device has the result ready."""

    def __init__(self, device: torch.device, lag: int | None = None):
        self.lag = lag if lag is not None else LAG if device.type == 'cuda' else 0
        self._waiting: deque[tuple[Any, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: Any, flags: Tensor) -> None:
        """step: anything that names the step. flags: [n] bool on the device."""
        if flags.is_cuda:
            host, ready = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True), torch.cuda.Event()
            host.copy_(flags, non_blocking=True)
            ready.record()
            self._waiting.append((step, host, ready))
        else:
            self._waiting.append((step, flags, None))

    def ready(self, all_of_them: bool = False) -> list[tuple[Any, list[bool]]]:
        """[(step, flags)] of the steps that are at least `lag` old, or of all; each is returned once."""
        results = []
        while len(self._waiting) > (0 if all_of_them else self.lag):
            step, flags, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            results.append((step, flags.tolist()))
        return results


class StepGuard:
    """Reports the steps whose loss or gradient was not finite: the first is an error, or each a line.

    policy: of `on_nonfinite`, error or skip. source: from an example's number to its (file, row).
    """

    def __init__(self, policy: str, source: Callable[[int], tuple[str, int]], device: torch.device):
        self.policy, self.source, self.skipped = policy, source, 0
        self.results = StepResults(device)

    def add(self, place: tuple[int, int], index: Tensor, finite: Tensor, loss: Tensor) -> None:
        """place: (epoch, step). index: the examples on the CPU. finite: of `backward`. Never waits for a GPU."""
        self.results.add((place, index), torch.stack([finite, loss.detach().isfinite()]))

    def check(self, now: bool) -> None:
        """Report what is known on all ranks alike (a collective if there is something to report).

        now: also the last steps, for which the host may have to wait. InputError with `error`, and after `MOST_SKIPPED`
        steps in a row.
        """
        for (place, index), (is_finite, loss_is_finite) in self.results.ready(now):
            self.skipped = 0 if is_finite else self.skipped + 1
            if is_finite:
                continue
            ranks = distributed.all_gather_objects((loss_is_finite, index.tolist()))
            rows = [rows for loss_was_finite, rows in ranks if not loss_was_finite] or [rows for _, rows in ranks]
            what = 'the gradient is' if all(loss_was_finite for loss_was_finite, _ in ranks) else 'the loss is'
            words = f'epoch {place[0]}, step {place[1]}: {what} not finite, with {self._named(sum(rows, []))}'
            if self.policy == 'error':
                raise InputError(
                    f'{words}; the weights are those from before. --resume continues from the last checkpoint; try '
                    'clip_grad_norm, a lower optimizer.lr, precision: fp32, or on_nonfinite: skip to leave such steps '
                    'out'
                )
            print_rank0(f'skipped {words}')
            if self.skipped >= MOST_SKIPPED:
                raise InputError(
                    f'{self.skipped} steps in a row were not finite, the last: {words}. The training diverged; '
                    '--resume continues from the last checkpoint, with a lower optimizer.lr or clip_grad_norm'
                )

    def _named(self, rows: list[int]) -> str:
        """Examples by file and row."""
        numbers: dict[str, list[int]] = {}
        for file, row in map(self.source, sorted(rows)[:ROWS_NAMED]):
            numbers.setdefault(file, []).append(row)
        words = [f'{file}, rows {", ".join(map(str, some))}' for file, some in numbers.items()]
        return '; '.join(words) + (f' and {len(rows) - ROWS_NAMED} more' if len(rows) > ROWS_NAMED else '')


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """The names of the floating tensors with an entry that is not finite; waits for the device once."""
    floating = {name: value for name, value in tensors.items() if torch.is_tensor(value) and value.is_floating_point()}
    if not floating:
        return []
    device = next(iter(floating.values())).device
    flags = torch.stack([value.isfinite().all().to(device, non_blocking=True) for value in floating.values()])
    return [name for name, finite in zip(floating, flags.tolist(), strict=True) if not finite]


def require_finite(split: str, *scores: Tensor) -> None:
    """InputError if a score of the split is not finite: a metric would be a number without meaning."""
    if not all(part.isfinite().all() for part in scores):
        raise InputError(
            f'scores of {split} are not finite, although the weights are; evaluate with precision: fp32, and check the '
            'checkpoint'
        )
