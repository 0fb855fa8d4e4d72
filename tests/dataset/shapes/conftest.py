"""The small synthetic dataset that the tests of dataset.shapes read."""

from pathlib import Path

import pytest

from dataset.shapes import make_dataset
from tests.dataset.shapes.tools import SCENE_COUNTS


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('dataset')
    make_dataset(out, seed=0, sizes=SCENE_COUNTS)
    return out
