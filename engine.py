"""`TrainingRun`: the bookkeeping around the two training loops that every script writes out itself.

    run = TrainingRun('pretrain', model, dataset, args, config, device, metrics, batch_size, epochs, state)
    run.begin(resume_from)
    for epoch in run.epochs():
        for batch in run.batches():                  # on the device
            loss = model(...)
            run.optimize(loss)                       # learning rate, backward pass, clipping, step
            run.log(loss=loss)                       # never waits for the device
        record = run.summary()                       # {epoch, train_lr, train_METRIC: mean over all ranks}
        run.save()                                   # what follows may fail, or be killed
        record |= evaluate(...)
        run.plan.set_random_order(epoch + 1)         # or GRIT's order
        run.end_epoch(record, metric=...)            # checkpoint, log.txt, checkpoint_best.pth

Invariants:

1. A checkpoint is written only between two bodies of the inner loop or in `end_epoch`; its position names the next
   batch.
2. Whatever outlives a step is in the model, the optimizer, a default random generator, or an entry of `state`: an
   object with `state_dict` and `load_state_dict`, and with `reset` if the end of an epoch resets it.
3. Nothing here draws from a default random generator; the learning rate is a function of (epoch, step).
4. `begin`, `batches`, `optimize`, `summary`, `save` and `end_epoch` are collectives: every rank calls them alike.
5. A step whose gradient is not finite changes neither weights nor averages, and no checkpoint has weights that are not.
6. A signal to stop is obeyed between two bodies of the inner loop, after a checkpoint, on all ranks alike; or at once,
   where nothing is lost: before training, and between `save` and `end_epoch`.
7. Leaving the inner loop early, or not setting the order of the next epoch, fails an assertion.
"""

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dataset.base import BadImages, TrainingSet, report_unknown_tokens
from dataset.grit.epoch_plan import EpochPlan
from dataset.loader import create_loader, move_batch
from dataset.samplers import EpochBatches, PositionSampler
from optim import create_optimizer, set_learning_rate
from scheduler import distillation_weight, learning_rate
from utils import distributed, finite, interrupts
from utils.checkpoint import (
    RunParts,
    Status,
    complete_epoch,
    find_run,
    prune_checkpoints,
    refuse_earlier_run,
    resume_run,
    save_run,
)
from utils.checkpoint_files import STEP_FILE, epoch_file
from utils.checkpoint_shards import remove_old_shards
from utils.config_files import write_yaml
from utils.errors import InputError
from utils.log import Averages, Progress, print_rank0, set_aside, write_log
from utils.reporting import Report


def find_checkpoint(task: str, args: argparse.Namespace) -> str | None:
    """The checkpoint that `--resume` continues from, or None (a collective).

    With --evaluate there is nothing to continue; the checkpoint to resume is then the one to evaluate:
    `args.checkpoint`. InputError if a new run would overwrite an earlier one.
    """
    for flag in ('elastic', 'force'):
        if getattr(args, flag) and not args.resume:
            raise InputError(f'--{flag}: needs --resume; add it, or drop the flag')
    if not (args.resume or args.evaluate):
        refuse_earlier_run(args.output_dir)
    resume_from = find_run(args.output_dir, task, args.checkpoint, args.elastic) if args.resume else None
    if args.evaluate:
        args.checkpoint = resume_from or args.checkpoint
        return None
    return resume_from


class TrainingRun:
    """A run of one script: see the module's docstring.

    model: on its device, wrapped if several processes train it. metrics: the names that `log` takes. batch_size: per
    process. epochs: how many to train. state: {name: object}, see invariant 2; each rank saves its own. identity:
    {name: words}, what a resumed run must find as it was, besides seed, vocabulary and training data.

    Attributes for the script: `plan` (`EpochPlan`), `steps` (per epoch), `epoch`, `step`.
    """

    def __init__(
        self,
        task: str,
        model: nn.Module,
        dataset: TrainingSet,
        args: argparse.Namespace,
        config: Mapping[str, Any],
        device: torch.device,
        metrics: Iterable[str],
        batch_size: int,
        epochs: int,
        state: Mapping[str, Any] | None = None,
        identity: Mapping[str, str] | None = None,
    ):
        self.model, self.config, self.device = model, config, device
        self.args, self.folder, self.batch_size, self.num_epochs = args, args.output_dir, batch_size, epochs
        self.unit = dataset.unit
        self.plan = EpochPlan(len(dataset), batch_size, distributed.rank(), distributed.world_size(), args.seed)
        self.sampler = EpochBatches()
        self.loader = create_loader(dataset, self.sampler, config['num_workers'], device)
        self.parameters = list(model.parameters())  # once: walking through the modules takes a millisecond
        self.optimizer = create_optimizer(config['optimizer'], model)
        self.averages = Averages(metrics, device)
        self.bad_images = BadImages(args.output_dir, len(dataset))
        self.is_finite = torch.tensor(True, device=device)  # [], whether the last gradient was
        self.guard = finite.StepGuard(config['on_nonfinite'], dataset.source, device)
        self.state = {'plan': self.plan, 'averages': self.averages, 'bad_images': self.bad_images, **(state or {})}
        self.report = Report(config, self.folder, self.steps)
        if self.report.name != 'none':
            self.state['report'] = self.report
        identity = {'seed': str(args.seed), **dataset.identity(), **(identity or {})}
        tokenizer = dataset.packed_tokenizer()
        self.parts = RunParts(task, model, self.optimizer, config, self.state, identity, tokenizer)
        self.status = Status()
        print_rank0(f'{len(dataset)} {self.unit} to train on, {self.steps} steps per epoch')
        report_unknown_tokens(dataset, 'train_file')

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def epoch(self) -> int:
        return self.status.epoch

    @property
    def step(self) -> int:
        return self.status.step

    def begin(self, resume_from: str | None = None, order: Tensor | None = None) -> None:
        """Restore the run of a checkpoint, or start a new one.

        order: [n] int64, the examples of a new run's first epoch, of all ranks; random if None.
        """
        if resume_from:
            self.status = resume_run(resume_from, self.parts, self.args.force, self.args.elastic)
            prune_checkpoints(self.folder, self.status, self.config['keep_checkpoints'])
        else:
            if distributed.is_main():
                set_aside(self.folder, self.config)
                remove_old_shards(self.folder, self.status.started)
            if order is None:
                self.plan.set_random_order(0)
            else:
                self.plan.set_order(order)
        if distributed.is_main():
            write_yaml(self.config, f'{self.folder}/config.yaml')
        write_log(self.folder, self.status.records)
        self.report.begin(self.status)

    def epochs(self) -> Iterator[int]:
        """The epochs from the run's position on."""
        try:
            for epoch in range(self.epoch, self.num_epochs):
                self.started, self.completed, self.planned_order = time.perf_counter(), False, self.plan.order
                yield epoch
                assert self.epoch == epoch + 1, 'the epoch was left without end_epoch'
        finally:  # also if the loop's body fails, or a signal stops it
            self.report.close(complete=self.epoch >= self.num_epochs)

    def batches(self) -> Iterator[dict[str, Any]]:
        """The batches of the epoch from the run's position on, on the device.

        After each body: look for gradients that are not finite, record unreadable images, report progress, write the
        checkpoint of `save_every`, and stop if a signal asks for it.
        """
        interrupts.defer()
        self.model.train()
        first = self.step
        self.sampler.set_epoch(self.epoch, PositionSampler(self.plan.order, self.batch_size, first))
        unit_size, every = self.batch_size * distributed.world_size(), self.config['print_freq']
        progress = Progress(f'epoch {self.epoch}', self.steps, first, every, unit_size, self.unit, self.device)
        for step, batch in enumerate(self.loader if first < self.steps else (), start=first):
            self.status.step, self._index = step, batch['index']
            yield move_batch(batch, self.device)
            self.guard.check(now=progress.due(step))
            self.bad_images.record(batch['bad'])
            if progress.due(step):
                recent = {'lr': self.learning_rate(), **self.averages.recent()}
                progress.report(step, **recent)
                self.report.step(step, recent)
            self._save_inside_epoch(step + 1)
        progress.close()
        self.status.step, self.completed = self.steps, True

    def learning_rate(self) -> float:
        """The learning rate of the current step, after the last batch that of the last step."""
        return learning_rate(self.config['schedular'], self.epoch, min(self.step, self.steps - 1))

    def distillation_weight(self) -> float:
        """alpha of the current step: the weight of the momentum model's predictions in the targets."""
        return distillation_weight(self.config, self.epoch, self.step, self.steps)

    def optimize(self, loss: Tensor) -> None:
        """One optimizer step on a loss, at the learning rate of (epoch, step), with `clip_grad_norm` if it is set.

        If loss or gradient are not finite, on any rank, nothing changes. Never waits for a GPU.
        """
        set_learning_rate(self.optimizer, self.learning_rate())
        for parameter in self.parameters:
            parameter.grad = None
        self.is_finite = finite.backward(loss, self.parameters, self.config['clip_grad_norm'])
        finite.step_if(self.is_finite, self.optimizer)
        self.guard.add((self.epoch, self.step), self._index, self.is_finite, loss)

    def log(self, **values: Tensor | float) -> None:
        """Add the metrics of a step, one value for each name; a skipped step does not count. Never waits for a GPU."""
        self.averages.update(counts=self.is_finite, **values)

    def summary(self) -> dict[str, Any]:
        """The epoch's record so far: {epoch, train_lr of the last step, train_METRIC: mean over steps and ranks}."""
        assert self.completed, 'the epoch was left before its last batch'
        means = {f'train_{name}': value for name, value in self.averages.epoch().items()}
        return {'epoch': self.epoch, 'train_lr': self.learning_rate(), **means}

    def save(self) -> None:
        """Write checkpoint_step.pth at the run's position. From here on, until `end_epoch`, a signal stops at once."""
        save_run(f'{self.folder}/{STEP_FILE}', self.parts, self.status)
        self._stop_if_asked(f'{self.folder}/{STEP_FILE}')
        interrupts.allow()

    def seconds(self) -> float:
        """Since the epoch began, or was resumed."""
        return time.perf_counter() - self.started

    def end_epoch(self, record: dict[str, Any], metric: float | None = None) -> None:
        """Reset what an epoch accumulates and write its checkpoint and its line of log.txt.

        metric: the validation metric, larger is better; checkpoint_best.pth is that of the best epoch.
        """
        assert self.completed, 'the epoch was left before its last batch'
        assert self.plan.order is not self.planned_order, 'the order of the next epoch was not set'
        interrupts.defer()
        for part in self.state.values():
            if hasattr(part, 'reset'):
                part.reset()
        self.bad_images.write()
        self.status = complete_epoch(self.folder, self.parts, self.status, record, metric)
        self.report.epoch(record)
        trained = {name: value for name, value in record.items() if not name.startswith(('val_', 'test_'))}
        print_rank0('  '.join(f'{name} {value:.6g}' for name, value in trained.items()))
        print_rank0(f'epoch {record["epoch"]} took {self.seconds():.1f} s')
        self._stop_if_asked(epoch_file(self.folder, record['epoch']))
        interrupts.allow()

    def evaluation_batches(self) -> Iterator[dict[str, Any]]:
        """The batches of a random epoch, on the device, without bookkeeping: for --evaluate on the training files."""
        self.plan.set_random_order(0)
        self.sampler.set_epoch(0, PositionSampler(self.plan.order, self.batch_size))
        for batch in self.loader:
            yield move_batch(batch, self.device)
            self.bad_images.record(batch['bad'])

    def _save_inside_epoch(self, next_step: int) -> None:
        """Write checkpoint_step.pth every `save_every` steps of the run, but not at the end of an epoch; or to stop."""
        every = self.config['save_every']
        due = every and (self.epoch * self.steps + next_step) % every == 0 and next_step < self.steps
        signal = distributed.largest(interrupts.requested())
        if due or signal:
            self.guard.check(now=True)
            self.status.step = next_step
            save_run(f'{self.folder}/{STEP_FILE}', self.parts, self.status)
        if signal:
            self._stop(signal, f'{self.folder}/{STEP_FILE}')

    def _stop_if_asked(self, saved: str | os.PathLike) -> None:
        """Stop on all ranks if one of them got a signal."""
        signal = distributed.largest(interrupts.requested())
        if signal:
            self._stop(signal, saved)

    def _stop(self, signal: int, saved: str | os.PathLike) -> NoReturn:
        place = f'epoch {self.epoch}, step {self.step}'
        raise interrupts.Stopped(
            signal, f'stopped by {interrupts.name_of(signal)} at {place}; --resume continues from {saved}'
        )
