"""The cache of images: the transforms give what they give without it, and read a file once."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.image_cache import ImageCache, create_cache
from dataset.images import BadImage
from dataset.transforms import EvalTransform, TrainTransform, eval_transform, example_rng, train_transform

RESOLUTION = 32


@pytest.fixture
def paths(tmp_path):
    """A square image, for which a complete crop is sometimes drawn and else the central one, and a wide one."""
    draw = np.random.default_rng(0)
    found = []
    for name, size in (('square.png', (64, 64)), ('wide.jpg', (90, 60))):
        path = tmp_path / name
        Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)
        found.append(str(path))
    return found


@pytest.mark.parametrize('reduced_decode', [True, False])
@pytest.mark.parametrize('randaugment', [True, False])
@pytest.mark.parametrize('crop', [(1.0, 1.0), (0.2, 1.0)])
def test_every_epoch_gives_the_images_of_a_transform_without_cache(paths, crop, randaugment, reduced_decode):
    settings = RESOLUTION, crop, True, randaugment, reduced_decode
    plain, cached = TrainTransform(*settings), TrainTransform(*settings, ImageCache())
    for epoch in range(8):
        for index, path in enumerate(paths):
            one, two = example_rng(0, epoch, index), example_rng(0, epoch, index)
            assert torch.equal(plain(path, one), cached(path, two))
            assert one.random() == two.random()  # as many draws
    kept = {path: cached.cache.get(path) is not None for path in paths}
    assert kept == {paths[0]: crop == (1.0, 1.0), paths[1]: False}  # the crop of the wide image is never all of it


def test_a_file_is_read_once(paths, tmp_path):
    transform = EvalTransform(RESOLUTION, cache=ImageCache())
    before = [transform(path) for path in paths]
    for path in paths:
        (tmp_path / path).unlink()
    assert all(torch.equal(transform(path), image) for path, image in zip(paths, before, strict=True))
    assert len(transform.cache) == 2
    with pytest.raises(BadImage):
        EvalTransform(RESOLUTION)(paths[0])


def test_what_cannot_be_read_is_not_kept(tmp_path):
    path = str(tmp_path / 'later.png')
    transform = EvalTransform(RESOLUTION, cache=ImageCache())
    with pytest.raises(BadImage):
        transform(path)
    Image.new('RGB', (40, 40), (9, 9, 9)).save(path)
    assert transform(path).shape == (3, RESOLUTION, RESOLUTION)


def test_an_image_in_the_cache_cannot_be_changed(paths):
    cache = ImageCache()
    EvalTransform(RESOLUTION, cache=cache)(paths[0])
    with pytest.raises(ValueError, match='read-only'):
        cache.get(paths[0]).pixels[0] = 0


def test_a_dataset_that_does_not_fit_is_not_kept():
    config = {'image_res': 256, 'image_cache_mb': 6, 'crop_scale': [1, 1], 'flip': True, 'randaugment': False}
    config |= {'reduced_decode': True}
    assert create_cache(config, 32) is not None and create_cache(config, 33) is None  # 192 KiB each
    assert create_cache(config | {'image_cache_mb': 0}, 1) is None
    assert train_transform(config, 32).cache is not None and train_transform(config, 33).cache is None
    assert eval_transform(config, 33).cache is None and eval_transform(config).cache is None
