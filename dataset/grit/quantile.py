"""The quantile of similarity at which GRIT's chains take their next example: a constant, or one that adapts itself."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils.running_accuracy import running_accuracy

START = 0.02
DISTANCE_RANGE = (0.001, 0.5)
RATE = 0.2


class GritQuantile:
    """The setting `grit_quantile`: q in [0, 1], where 1 is GRIT's most similar candidate; or `auto`.

    target: the ITM accuracy that `auto` aims at. `distance` is u = 1 - q of `auto`: [] on the device of the model, so
    that it can be logged without waiting. It starts at 0.02. After every step the ITM accuracy a (of all ranks) moves
    the running accuracy and u: A = 0.95 A + 0.05 a, u = u x exp(-0.2 (A - target)), kept in [0.001, 0.5]. So neighbors
    become more similar while ITM is better than the target, and less similar while it is worse. A starts at the target:
    nothing moves before there is evidence. A constant leaves u and A as they are.
    """

    def __init__(self, setting: float | str, target: float):
        self.adapts, self.target = setting == 'auto', target
        self.setting = setting if self.adapts else float(setting)
        self.distance = torch.tensor(START)  # []
        self.accuracy = torch.tensor(float(target))  # []
        self.moves = self.adapts

    @property
    def value(self) -> float:
        """The quantile of the queue that is grouped now. With `auto` the host waits for the device."""
        return (1 - self.distance).item() if self.adapts else self.setting

    def to(self, device: torch.device) -> 'GritQuantile':
        """Move to the device of the model."""
        self.distance, self.accuracy = self.distance.to(device), self.accuracy.to(device)
        return self

    def begin_epoch(self, grouped: bool) -> None:
        """Move in this epoch only if GRIT ordered it: ITM's accuracy of other batches says nothing about chains."""
        self.moves = self.adapts and grouped

    @torch.no_grad()
    def adapt(self, accuracy: Tensor) -> None:
        """Move the quantile after a step (a collective, only where it moves). accuracy: [], ITM's. No host sync."""
        if self.moves:
            self.accuracy = running_accuracy(self.accuracy, accuracy)
            self.distance = (self.distance * torch.exp(-RATE * (self.accuracy - self.target))).clamp(*DISTANCE_RANGE)

    def state_dict(self) -> dict[str, Any]:
        return {'distance': self.distance.cpu(), 'accuracy': self.accuracy.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.distance.device
        self.distance, self.accuracy = state['distance'].clone(), state['accuracy'].clone()
        self.to(device)
