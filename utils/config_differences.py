"""What differs between two configurations, in words."""

from collections.abc import Mapping
from typing import Any

from utils.config_keys import TASKS, key_of


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
    """The keys whose values differ between two configurations, those in sections by their full name: {key: words}.

    A key that `before` lacks, as older versions wrote it, counts as its default.
    """
    lines = {}
    for name in sorted({*before, *now}):
        one, two = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(two, dict) and all(isinstance(key, str) for key in {**one, **two}):
            lines |= differences(one, two, f'{prefix}{name}.')
        elif one != two and not (name not in before and _is_default(f'{prefix}{name}', two)):
            lines[f'{prefix}{name}'] = f'{prefix}{name} was {one!r} and is now {two!r}'
    return lines


def _is_default(name: str, value: Any) -> bool:
    key = key_of(name)
    return key is not None and any(key.default_for(task) == value for task in key.tasks or TASKS)
