"""The small synthetic dataset that the tests of dataset.shapes read."""

from pathlib import Path

import pytest

from dataset.shapes import Scene, make_dataset
from dataset.shapes.sampling import draw_scenes
from tests.dataset.shapes.tools import SCENE_COUNTS


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('dataset')
    make_dataset(out, seed=0, sizes=SCENE_COUNTS)
    return out


@pytest.fixture(scope='session')
def scene_of() -> dict[str, Scene]:
    """{image path: scene} of that dataset."""
    return {
        f'images/{split}/{number:05d}.jpg': scene
        for split, count in SCENE_COUNTS.items()
        for number, scene in enumerate(draw_scenes(split, count, seed=0))
    }
