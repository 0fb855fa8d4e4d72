"""The key metrics of finished runs, side by side, from the `log.txt` of their output folders."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import InputError, MissingFileError
from utils.reporting import flatten

# The epoch to show is the best one by the metric that chooses the task's best checkpoint; without validation the last.
CHOSEN_BY = ('val_r_mean', 'val_acc', 'val_overall')

# The metrics shown, in this order; keys that match the same pattern keep the order of the log.
SHOWN = [
    *(rf'{split}_{scores}{side}_r{k}' for split in ('val', 'test') for scores in ('', 'itc_') for side in ('txt', 'img')
      for k in (1, 5, 10)),
    r'(val|test)_(acc|overall)', r'(val|test)_.+', r'train_loss.*', r'train_itm_\w+', 'train_temp', r'train_sim_\w+',
    r'train_(grit_quantile|false_negative_rate|match_rate)',
]  # fmt: skip


def log_table(folders: Iterable[str]) -> str:
    """Return a Markdown table: a row for each key metric of the logs, a column for each folder.

    It shows the epoch that is best in validation, the first of equally good ones; without validation the last epoch.
    InputError names the file and line if a log cannot be read.
    """
    folders = list(folders)
    columns = [_key_metrics(read_log(Path(folder) / 'log.txt')) for folder in folders]
    keys = sorted({key: None for column in columns for key in column}, key=_position)
    lines = [['key', *folders], ['---', *['---:'] * len(folders)]]
    lines += [[key, *(_shown(column.get(key)) for column in columns)] for key in keys]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a `log.txt`, one JSON object a line."""
    if not path.is_file():
        raise MissingFileError(f'{path} does not exist; give the output folder of a run')
    entries = []
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 text ({error.reason}); it is not the log of a run') from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f'{path}, line {number}: not a JSON object ({error})') from None
        if not isinstance(entry, dict):
            raise InputError(f'{path}, line {number}: not a JSON object')
        entries.append(entry)
    if not entries:
        raise InputError(f'{path} is empty: no epoch is finished yet; try again after the first')
    return entries


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def best_entry(entries: list[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """Return the entry to report and what chose it: a validation metric, or 'last'."""
    for key in CHOSEN_BY:
        validated = [entry for entry in entries if is_number(entry.get(key))]
        if validated:
            return max(validated, key=lambda entry: entry[key]), key
    return entries[-1], 'last'


def _key_metrics(entries: list[Mapping[str, Any]]) -> dict[str, Any]:
    entry, chosen_by = best_entry(entries)
    metrics = {'chosen by': chosen_by, 'epoch': entry.get('epoch')}
    return metrics | {key: value for key, value in flatten(entry).items() if _position(key) < len(SHOWN)}


def _position(key: str) -> int:
    """The row group of a key; len(SHOWN) for keys that are not shown."""
    if key in ('chosen by', 'epoch'):
        return -1
    return next((position for position, pattern in enumerate(SHOWN) if re.fullmatch(pattern, key)), len(SHOWN))


def _shown(value: Any) -> str:
    if value is None:
        return '-'
    return f'{value:.4g}' if isinstance(value, float) else str(value)
