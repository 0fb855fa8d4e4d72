"""When GRIT orders an epoch: from which on, or as soon as ITM is ready for it."""

from collections.abc import Iterable, Mapping
from typing import Any


def may_be_grouped(epoch: int, config: Mapping[str, Any]) -> bool:
    """Whether GRIT may order an epoch: not the first, nor those before `grit_from_epoch`."""
    first = 1 if config['grit_from_epoch'] == 'auto' else max(1, config['grit_from_epoch'])
    return config['sampler'] == 'grit' and epoch >= first


def is_grouped(epoch: int, config: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether GRIT orders an epoch. With `grit_from_epoch: auto`, as soon as an earlier epoch's mean beta reached 1.

    ITM then reaches its target accuracy with ALBEF's negatives. records: the lines of log.txt of the epochs before.
    """
    ready = config['grit_from_epoch'] != 'auto' or any(record.get('train_itm_beta', 0) >= 1 for record in records)
    return may_be_grouped(epoch, config) and ready
