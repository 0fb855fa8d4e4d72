"""The small synthetic datasets that the tests of dataset.shapes read, without and with duplicates."""

from pathlib import Path

import pytest

from dataset.shapes import Scene, make_dataset
from dataset.shapes.duplicates import scenes_of
from dataset.shapes.sampling import draw_scenes
from tests.dataset.shapes.tools import SCENE_COUNTS


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('dataset')
    make_dataset(out, seed=0, sizes=SCENE_COUNTS)
    return out


@pytest.fixture(scope='session')
def with_duplicates(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('duplicates')
    make_dataset(out, seed=0, sizes=SCENE_COUNTS, duplicates=0.5)
    return out


@pytest.fixture(params=['without duplicates', 'with duplicates'])
def world(request, folder, scene_of) -> tuple[Path, dict[str, Scene]]:
    """(folder, {image path: scene}) of either dataset."""
    if request.param == 'without duplicates':
        return folder, scene_of
    marker = {'seed': 0, 'scenes': SCENE_COUNTS, 'duplicates': 0.5}
    train = {f'images/train/{number:05d}.jpg': scene for number, scene in enumerate(scenes_of(marker, 'train'))}
    return request.getfixturevalue('with_duplicates'), scene_of | train


@pytest.fixture(scope='session')
def scene_of() -> dict[str, Scene]:
    """{image path: scene} of that dataset."""
    return {
        f'images/{split}/{number:05d}.jpg': scene
        for split, count in SCENE_COUNTS.items()
        for number, scene in enumerate(draw_scenes(split, count, seed=0))
    }
