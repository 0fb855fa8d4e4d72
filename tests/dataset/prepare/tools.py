"""Helpers of the tests of `python -m dataset.prepare`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.prepare.__main__ import main
from utils.errors import InputError


def write(path: Path, data: Any) -> str:
    """Write a string, or other data as JSON; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding='utf-8')
    return str(path)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def run(*args: object) -> None:
    main([str(arg) for arg in args])


def refuse(*args: object) -> str:
    """The message, one line, with which a command refuses its input."""
    with pytest.raises(InputError) as caught:
        run(*args)
    message = str(caught.value)
    assert message and '\n' not in message
    return message


def jpeg(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16), **options: Any) -> str:
    """Write a JPEG file of noise; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, 'JPEG', **options)
    return str(path)


def coco_name(number: int, split: str = 'val2014') -> str:
    return f'COCO_{split}_{number:012d}.jpg'
