"""Helpers of the tests of `python -m dataset.prepare`."""

import json

import numpy as np
import pytest
from PIL import Image

from dataset.prepare.__main__ import main


def write(path, data) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding='utf-8')
    return str(path)


def read(path) -> list:
    return json.loads(path.read_text())


def run(*args) -> None:
    main([str(arg) for arg in args])


def refuse(*args) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert '\n' not in str(stop.value) and str(stop.value).startswith('error: ')
    return str(stop.value)


def jpeg(path, seed=0, size=(24, 16), **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, 'JPEG', **options)
    return str(path)
