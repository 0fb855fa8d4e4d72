"""The negatives of ITM in pre-training: which policy chooses them in which epoch, and one policy that adapts itself.

A negative is drawn with probability softmax(strength x similarity / temperature) over the batch. The policies differ in
the strength only:

    uniform     0           every other pair alike
    sampled     1           ALBEF
    hard        infinite    GRIT-VLP: the most similar pair
    auto        beta        adapts to how well ITM tells pairs apart
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from models import losses
from utils.running_accuracy import running_accuracy

T = TypeVar('T')
STRENGTHS = {'uniform': 0.0, 'sampled': 1.0}
BETA_RANGE = (0.02, 50.0)
BETA_RATE = 0.2


def of_epoch(schedule: Mapping[int, T], epoch: int) -> T:
    """The entry of an epoch in a schedule {first epoch: entry}, which has one for epoch 0."""
    return schedule[max(first for first in schedule if first <= epoch)]


class ItmNegatives:
    """Chooses one negative for each row of a similarity matrix.

    schedule: {first epoch: policy}, with a policy for epoch 0. target: the ITM accuracy that `auto` aims at.

    With `auto` the strength is beta. After every step the ITM accuracy a (of all ranks) moves the running accuracy and
    beta: A = 0.95 A + 0.05 a, beta = beta x exp(0.2 (A - target)), kept in [0.02, 50]. So the negatives become harder
    while ITM is better than the target, and easier while it is worse.
    """

    def __init__(self, schedule: Mapping[int, str], target: float):
        self.schedule, self.target = dict(schedule), target
        self.adapts = 'auto' in self.schedule.values()
        self.beta = torch.tensor(BETA_RANGE[0])  # []
        self.accuracy = torch.tensor(0.0)  # []
        self.begin_epoch(0)

    def to(self, device: torch.device) -> 'ItmNegatives':
        """Move to the device of the model."""
        self.beta, self.accuracy = self.beta.to(device), self.accuracy.to(device)
        return self

    def begin_epoch(self, epoch: int) -> None:
        """Use the policy of an epoch."""
        self.policy = of_epoch(self.schedule, epoch)

    def pick(self, sim: Tensor, excluded: Tensor) -> Tensor:
        """A negative for each row: sim [B, C], excluded [B, C] bool -> [B] int64."""
        if self.policy == 'hard':
            return losses.hardest_negatives(sim, excluded)
        strength = self.beta if self.policy == 'auto' else STRENGTHS[self.policy]
        return losses.sampled_negatives(sim, excluded, strength)

    def next_choice(self, sim: Tensor, excluded: Tensor, chosen: Tensor, replaced: Tensor) -> Tensor:
        """Pick anew, without the first choice, where `replaced` [B] bool: chosen [B] -> [B]; sim and excluded [B, C].

        A row without another candidate keeps its choice.
        """
        remaining = excluded.scatter(1, chosen[:, None], True)
        replaced = replaced & ~remaining.all(dim=1)
        return torch.where(replaced, self.pick(sim, remaining & replaced[:, None]), chosen)

    @torch.no_grad()
    def adapt(self, accuracy: Tensor, is_finite: Tensor) -> None:
        """Move beta after a step (a collective, only with `auto`). No host sync.

        accuracy: [], ITM's in this step. is_finite: [] bool, False for a step that was skipped: then nothing moves.
        """
        if self.policy != 'auto':
            return
        accuracy = running_accuracy(self.accuracy, accuracy)
        beta = (self.beta * torch.exp(BETA_RATE * (accuracy - self.target))).clamp(*BETA_RANGE)
        self.accuracy, self.beta = accuracy.where(is_finite, self.accuracy), beta.where(is_finite, self.beta)

    def state_dict(self) -> dict[str, Any]:
        return {'beta': self.beta.cpu(), 'accuracy': self.accuracy.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.beta.device
        self.beta, self.accuracy = state['beta'].clone(), state['accuracy'].clone()
        self.to(device)
