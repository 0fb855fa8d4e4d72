"""Notice losses, gradients and weights that are not finite, without waiting for the device at every step."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import InputError

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
    """Take the optimizer's step if `finite` [] bool holds. A fused optimizer decides on its device."""
    if optimizer.param_groups[0].get('fused'):
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
        optimizer.step()
    elif finite:
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
