"""The quantile of similarity at which GRIT's chains take their next example: a constant, or one that adapts itself."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils.running_accuracy import running_accuracy

START = 0.02
DISTANCE_RANGE = (0.001, 0.5)
RATE = 10.0  # of an epoch


class GritQuantile:
    """The setting `grit_quantile`: q in [0, 1], where 1 is GRIT's most similar candidate; or `auto`.

    target: the ITM accuracy that `auto` aims at. `distance` is u = 1 - q: [] on the device of the model, so that it can
    be logged without waiting. With `auto` it starts at 0.02, and after every step of an epoch of S steps the ITM
    accuracy a (of all ranks) moves the running accuracy and u: A = 0.95 A + 0.05 a, u = u exp(-10 / S (A - target)),
    kept in [0.001, 0.5]. So neighbors become more similar while ITM is better than the target, and less similar while
    it is worse. A starts at the target: nothing moves before there is evidence.

    What is grouped now is trained on in the next epoch, so ITM answers an epoch later. Therefore the rate is that of an
    epoch: an accuracy 0.1 above the target in all of its steps divides u by 2.7, however many steps there are.
    """

    def __init__(self, setting: float | str, target: float):
        self.adapts, self.target = setting == 'auto', target
        self.setting = setting if self.adapts else float(setting)
        self.distance = torch.tensor(START)  # []; moves with `auto` only
        self.accuracy = torch.tensor(float(target))  # []
        self.rate = 0.0  # of a step, until an epoch begins

    @property
    def value(self) -> float:
        """The quantile of the queue that is grouped now. With `auto` the host waits for the device."""
        return (1 - self.distance).item() if self.adapts else self.setting

    def to(self, device: torch.device) -> 'GritQuantile':
        """Move to the device of the model."""
        self.distance, self.accuracy = self.distance.to(device), self.accuracy.to(device)
        return self

    def begin_epoch(self, grouped: bool, steps: int) -> None:
        """Move in this epoch, of so many steps, only if GRIT ordered it: other batches say nothing about chains."""
        self.rate = RATE / steps if self.adapts and grouped else 0.0

    @torch.no_grad()
    def adapt(self, accuracy: Tensor, is_finite: Tensor) -> None:
        """Move the quantile after a step (a collective, only where it moves). No host sync.

        accuracy: [], ITM's in this step. is_finite: [] bool, False for a step that was skipped: then nothing moves.
        """
        if not self.rate:
            return
        accuracy = running_accuracy(self.accuracy, accuracy)
        distance = (self.distance * torch.exp(-self.rate * (accuracy - self.target))).clamp(*DISTANCE_RANGE)
        self.accuracy = accuracy.where(is_finite, self.accuracy)
        self.distance = distance.where(is_finite, self.distance)

    def state_dict(self) -> dict[str, Any]:
        return {'distance': self.distance.cpu(), 'accuracy': self.accuracy.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.distance.device
        self.distance, self.accuracy = state['distance'].clone(), state['accuracy'].clone()
        self.to(device)
