"""The learning rate of a step, as a pure function of the schedule, the epoch and the iteration.

There is no scheduler object and therefore no state to restore: a resumed run computes the rate of its step.
"""

import math
from collections.abc import Mapping
from typing import Any

from utils.errors import InputError

STAIR = 100  # iterations between two warm-up steps; `warmup_epochs` counts these steps, not epochs


def learning_rate(schedular: Mapping[str, Any], epoch: int, iteration: int) -> float:
    """Return the learning rate that the optimizer step of `iteration` in `epoch` uses (both count from 0).

    Epoch 0 warms up: a stair from `warmup_lr` to the peak `lr` in `warmup_epochs` equal steps, one every 100 iterations
    (an iteration that is a multiple of 100 still has the lower rate), and then stays at the peak. A shorter epoch 0
    cuts the stair. Every later epoch has one rate: the cosine from `lr` at epoch 0 to `min_lr` at epoch `epochs`, and
    `min_lr` after that. Training may stop earlier: Pretrain.yaml trains 20 epochs of a 30-epoch cosine.

    `decay_rate` scales the peak of each cosine cycle after the first and `cooldown_epochs` lengthens the training that
    the schedule announces; there is one cycle and the scripts read `train_epochs`, so neither changes a rate.

    InputError if a key is missing or is not a number, and for a `sched` other than cosine.
    """
    if schedular.get('sched', 'cosine') != 'cosine':
        raise InputError(f"schedular.sched is {schedular['sched']!r}; the only schedule is 'cosine'")
    peak = _number(schedular, 'lr')
    if epoch == 0:
        return _warmup(schedular, peak, iteration)
    return _cosine(peak, _number(schedular, 'min_lr'), epoch, _number(schedular, 'epochs'))


def distillation_weight(config: Mapping[str, Any], epoch: int, iteration: int, iterations: int) -> float:
    """Return the weight of the momentum model's predictions in the target of a step: `alpha` of the configuration.

    With `warm_up` it rises in epoch 0 from 0 towards `alpha`, in equal parts over the epoch's `iterations`.
    """
    progress = min(1.0, iteration / iterations) if config['warm_up'] and epoch == 0 else 1.0
    return config['alpha'] * progress


def _warmup(schedular: Mapping[str, Any], peak: float, iteration: int) -> float:
    """The stair of epoch 0. The rate changes after the step of each 100th iteration, hence `iteration - 1`."""
    steps = _number(schedular, 'warmup_epochs')
    step = max(iteration - 1, 0) // STAIR
    if step >= steps:
        return peak
    start = _number(schedular, 'warmup_lr')
    return start + step * (peak - start) / steps


def _cosine(peak: float, floor: float, epoch: int, epochs: float) -> float:
    if epoch >= epochs:
        return floor
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * epoch / epochs))


def _number(schedular: Mapping[str, Any], key: str) -> float:
    if key not in schedular:
        raise InputError(f'schedular.{key} is missing; add it to the configuration')
    value = schedular[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f'schedular.{key} must be a number, not {value!r}')
    return value
