"""What a run must have in common with the checkpoint that it is resumed from, and what may not be saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.config_keys import KEYS
from utils.errors import InputError
from utils.finite import not_finite
from utils.log import print_rank0

SHAPING = {name for name, key in KEYS.items() if key.shapes_model}


def refuse_diverged(model: Mapping[str, Any], optimizer: torch.optim.Optimizer, place: str) -> None:
    """InputError if weights or the optimizer's state are not finite; every rank has the same. place: in words."""
    moments = {
        f'optimizer state {number}.{name}': value
        for number, state in enumerate(optimizer.state.values())
        for name, value in state.items()
    }
    faults = not_finite(dict(model)) or not_finite(moments)
    if faults:
        raise InputError(
            f'{faults[0]} and {len(faults) - 1} others are not finite at {place}: the training diverged. They were not '
            'saved; --resume continues from the checkpoint before, with a lower optimizer.lr or clip_grad_norm'
        )


def refuse_other_identity(path: str, before: Mapping[str, str], now: Mapping[str, str], force: bool) -> None:
    """InputError if seed, vocabulary or data are not those of the checkpoint, with before and now, unless `force`."""
    lines = [
        f'{name} was {before[name]} and is now {now.get(name)}' for name in before if before[name] != now.get(name)
    ]
    if lines and not force:
        raise InputError(
            f'{path} is of a run with other input: {"; ".join(lines)}; give the same as before, or --force to continue '
            'with what is given now'
        )
    for line in lines:
        print_rank0(f'--force: {line}')


def refuse_other_shapes(
    path: str, before: Mapping[str, Any], now: Mapping[str, Any], changed: Mapping[str, str]
) -> None:
    """InputError if weights are missing, superfluous, or of another shape, with the settings that may be the cause."""
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (before, now)]
    names = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if names:
        one, two = (shape.get(names[0], 'absent') for shape in shapes)
        causes = [line for name, line in changed.items() if name.split('.')[0] in SHAPING]
        raise InputError(
            f'{path} does not fit this model: {names[0]} was {one} and is now {two}, and {len(names) - 1} others differ'
            + ''.join(f'; {line}' for line in causes)
            + '; resume with the settings of the config.yaml beside it, or start a new run from its weights with '
            '--checkpoint and another --output_dir'
        )


def refuse_other_runs(task: str, opened: list[tuple[Path, dict[str, Any]]]) -> None:
    """InputError if one of the checkpoints is another task's, or they are of several runs."""
    for path, content in opened:
        if content['task'] != task:
            raise InputError(
                f'{path} is a checkpoint of {content["task"]}, not of {task}; give the --output_dir of this run'
            )
        first, other = opened[0]
        if content['started'] != other['started']:
            raise InputError(
                f'{first} and {path.name} are of two different runs; move the checkpoints of one of them away'
            )
