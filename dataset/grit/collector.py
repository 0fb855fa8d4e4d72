"""GRIT's queues: collect the features of an epoch and return its examples in the order of the next.

Legend: L queue length, M search space, D feature width.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dataset.grit.cuthill_mckee import require_grouping
from dataset.grit.grouping import generator_for, group_queue
from dataset.grit.quantile import GritQuantile
from utils.errors import InputError


class GritCollector:
    """Collects what a rank trains on in an epoch and returns it, at the end, in the order of the next epoch.

    queue_size: L, search_space: M, both per rank. Features stay in float32 on their own device, 8 * L * D bytes; the
    examples' indices in int64 on the CPU. All randomness is derived from (seed, epoch, rank, number of the queue), so a
    collector that is restored from its state continues as if it had never stopped.

    quantile: each queue is grouped at its value at that moment; None is GRIT, 1. The caller saves its state. grouping:
    see `group_queue`. InputError if it is not available.
    """

    SETTINGS = ('queue_size', 'search_space', 'seed', 'rank')

    def __init__(
        self,
        queue_size: int,
        search_space: int,
        seed: int,
        rank: int = 0,
        quantile: GritQuantile | None = None,
        grouping: str = 'chain',
    ):
        require_grouping(grouping)
        self.queue_size, self.search_space, self.seed, self.rank = queue_size, search_space, seed, rank
        self.quantile, self.grouping = quantile, grouping
        self.index = torch.empty(queue_size, dtype=torch.int64)  # [L]
        self.image_feat = self.text_feat = None  # [L, D], allocated when the first features say how wide and where
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Discard everything and collect for epoch `epoch`."""
        self.epoch = epoch
        self.filled = 0
        self.queues_grouped = 0
        self.grouping_seconds = 0.0  # up to the last finish_epoch() or state_dict()
        self._grouped = torch.empty(0, dtype=torch.int64)
        self._ungrouped = torch.empty(0, dtype=torch.int64)
        self._on_device = []  # of each full queue: index [L] on the CPU, order [L] still on its device, stopwatch

    @torch.no_grad()
    def add(self, index: Tensor, image_feat: Tensor, text_feat: Tensor) -> None:
        """Collect n examples (any n): index [n] int64 on the CPU, image_feat [n, D], text_feat [n, D]."""
        assert len(index) == len(image_feat) == len(text_feat)
        if self.image_feat is None or self.image_feat.device != image_feat.device:
            self._allocate(image_feat.shape[1], image_feat.device)
        while len(index):
            n = min(len(index), self.queue_size - self.filled)
            free = slice(self.filled, self.filled + n)
            self.index[free] = index[:n]
            self.image_feat[free] = image_feat[:n]
            self.text_feat[free] = text_feat[:n]
            self.filled += n
            index, image_feat, text_feat = index[n:], image_feat[n:], text_feat[n:]
            if self.filled == self.queue_size:
                self._group()

    def collect(self, batch: Mapping[str, Any], image_feat: Tensor, text_feat: Tensor) -> None:
        """Collect a batch of N under its examples' indices; one whose image was replaced has no features of its own.

        batch: `index` and `requested`, both [N] int64 on the CPU: nothing waits for the device. image_feat, text_feat:
        [N, D].
        """
        index, requested = batch['index'], batch['requested']
        own = index == requested
        if not own.all():
            self.add_ungrouped(requested[~own])
            image_feat, text_feat = image_feat[own.to(image_feat.device)], text_feat[own.to(text_feat.device)]
        self.add(index[own], image_feat, text_feat)

    def add_ungrouped(self, index: Tensor) -> None:
        """index [n] int64: examples without features of their own, because their image could not be read.

        They come last in the order, ungrouped, so that it stays a permutation of the epoch's examples.
        """
        self._ungrouped = torch.cat([self._ungrouped, index])

    def finish_epoch(self) -> Tensor:
        """Group the rest of the queue -> order [n] int64 on the CPU: every example since `begin_epoch`, once."""
        if self.filled:
            self._group()
        self._fetch_orders()
        return torch.cat([self._grouped, self._ungrouped])

    def state_dict(self) -> dict[str, Any]:
        """Everything since `begin_epoch`, as tensors on the CPU and plain values; only the filled part of the queue."""
        self._fetch_orders()
        state = {
            **{key: getattr(self, key) for key in self.SETTINGS},
            'epoch': self.epoch,
            'queues_grouped': self.queues_grouped,
            'grouping_seconds': self.grouping_seconds,
            'grouped': self._grouped,
            'aside': self._ungrouped,
            'index': self.index[: self.filled].clone(),
        }
        if self.filled:
            state['device'] = self.image_feat.device.type
            state['image_feat'] = self.image_feat[: self.filled].cpu().clone()
            state['text_feat'] = self.text_feat[: self.filled].cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict()` was taken. InputError if the settings differ."""
        for key in self.SETTINGS:
            if state[key] != getattr(self, key):
                raise InputError(
                    f"the checkpoint's GRIT queue was collected with {key} {state[key]}, and this run has "
                    f"{getattr(self, key)}; resume with the checkpoint's setting"
                )
        self.begin_epoch(state['epoch'])
        self.queues_grouped = state['queues_grouped']
        self.grouping_seconds = state['grouping_seconds']
        self._grouped, self._ungrouped = state['grouped'].clone(), state['aside'].clone()
        self.filled = len(state['index'])
        self.index[: self.filled] = state['index']
        if self.filled:
            self.image_feat, self.text_feat = state['image_feat'], state['text_feat']
            device = torch.device(state['device'] if torch.cuda.is_available() else 'cpu')
            self._allocate(self.image_feat.shape[1], device)

    def redistribute(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue at the beginning of an epoch, when nothing is collected yet, with another number of ranks."""
        self.begin_epoch(states[0]['epoch'])

    def _allocate(self, width: int, device: torch.device) -> None:
        """Allocate L features of this width on this device; the filled part is copied."""
        image_feat, text_feat = (torch.empty(self.queue_size, width, device=device) for _ in range(2))
        if self.filled:
            image_feat[: self.filled] = self.image_feat[: self.filled]
            text_feat[: self.filled] = self.text_feat[: self.filled]
        self.image_feat, self.text_feat = image_feat, text_feat

    def _group(self) -> None:
        """Group the filled part of the queue and empty it.

        On a GPU this only enqueues work, unless the quantile adapts, or the grouping is not the chain.
        """
        quantile = 1.0 if self.quantile is None else self.quantile.value
        generator = generator_for('grit queue', self.seed, self.epoch, self.rank, self.queues_grouped)
        image_feat, text_feat = self.image_feat[: self.filled], self.text_feat[: self.filled]
        stopwatch = _Stopwatch(image_feat.device)
        order = group_queue(image_feat, text_feat, self.search_space, generator, quantile, self.grouping)
        stopwatch.stop()
        self._on_device.append((self.index[: self.filled].clone(), order, stopwatch))
        self.queues_grouped += 1
        self.filled = 0

    def _fetch_orders(self) -> None:
        """Fetch the orders of full queues from their device."""
        orders = [index[order.cpu()] for index, order, _ in self._on_device]
        self._grouped = torch.cat([self._grouped, *orders])
        self.grouping_seconds += sum(stopwatch.seconds() for _, _, stopwatch in self._on_device)
        self._on_device = []


class _Stopwatch:
    """Measures from its creation to `stop()`, on a GPU in the GPU's time; only `seconds()` waits for a GPU."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == 'cuda'
        self.first = self._mark()

    def stop(self) -> None:
        self.last = self._mark()

    def seconds(self) -> float:
        if not self.on_gpu:
            return self.last - self.first
        self.last.synchronize()
        return self.first.elapsed_time(self.last) / 1000

    def _mark(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
