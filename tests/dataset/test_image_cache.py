"""The cache of images: the transforms give what they give without it, and read a file once."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import transforms
from dataset.image_cache import ImageCache, create_cache
from dataset.images import BadImage, open_image
from dataset.randaugment import TEN, apply_op
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
@pytest.mark.parametrize('crop', [(1.0, 1.0), (0.97, 1.0)])
def test_every_epoch_gives_the_images_of_a_transform_without_cache(
    paths, crop, randaugment, reduced_decode, monkeypatch
):
    settings = RESOLUTION, crop, True, randaugment, reduced_decode
    plain, cached = TrainTransform(*settings), TrainTransform(*settings, ImageCache())
    read = []
    monkeypatch.setattr(transforms, 'open_image', lambda path: read.append(path) or open_image(path))
    for epoch in range(30):
        for index, path in enumerate(paths):
            one, two = example_rng(0, epoch, index), example_rng(0, epoch, index)
            assert torch.equal(plain(path, one), cached(path, two))
            assert one.random() == two.random()  # as many draws
    kept = {path: cached.cache.get(path) is not None for path in paths}
    assert kept == {paths[0]: True, paths[1]: False}  # the crop of the wide image is never all of it
    again = read.count(paths[0]) - 30  # 30 reads without the cache
    assert again == 1 if crop == (1.0, 1.0) else 1 < again < 30  # of the kept image another crop is read anew


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


@pytest.mark.parametrize('name', TEN)
def test_every_operation_takes_an_image_that_is_read_only(name):
    image = np.random.default_rng(0).integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    expected = apply_op(name, image, 7, 1)
    image.flags.writeable = False
    assert np.array_equal(apply_op(name, image, 7, 1), expected)


def test_a_dataset_that_does_not_fit_is_not_kept():
    config = {'image_res': 256, 'image_cache_mb': 6, 'crop_scale': [1, 1], 'flip': True, 'randaugment': False}
    config |= {'reduced_decode': True, 'num_workers': 0}
    assert create_cache(config, 32) is not None and create_cache(config, 33) is None  # 192 KiB each
    assert create_cache(config | {'image_cache_mb': 0}, 1) is None
    of_workers = [create_cache(config | {'num_workers': 4}, images) for images in (8, 9)]
    assert of_workers[0] is not None and of_workers[1] is None  # each of the four may hold all
    assert train_transform(config, 32).cache is not None and train_transform(config, 33).cache is None
    assert eval_transform(config, 33).cache is None and eval_transform(config).cache is None
