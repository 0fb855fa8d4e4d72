"""Transforms: the official pixels, torchvision's crops, the reference's RandAugment, randomness from `rng` only."""

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from dataset.images import read_image
from dataset.randaugment import TEN, RandAugment, apply_op
from dataset.transforms import (
    MEAN,
    STD,
    EvalTransform,
    TrainTransform,
    draw_crop,
    example_rng,
    reduction,
    resize,
    resize_as_pillow,
)
from tests.reference import load_reference
from utils.errors import InputError

REFERENCE = load_reference('randaugment')
REFERENCE_SIGN = {'ShearX': -1, 'ShearY': -1, 'TranslateX': -1, 'TranslateY': -1}
# OpenCV 4 and 5 round the weights of their warps differently.
WARPS = ('ShearX', 'ShearY', 'Rotate')


def photo(width=320, height=240, seed=0):
    """[H, W, 3] uint8 with detail at several scales, as in photographs."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cell in (4, 16, 64):
        noise = rng.normal(size=(height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        image += cell**0.7 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return (128 + image * (50 / image.std())).clip(0, 255).astype(np.uint8)


@pytest.fixture
def jpeg(tmp_path):
    def write(width, height):
        path = tmp_path / f'{width}x{height}.jpg'
        Image.fromarray(photo(width, height)).save(path, quality=92, subsampling='4:2:0')
        return path

    return write


def levels(tensor):
    """Undo the normalization: [3, R, R] float32 -> [R, R, 3] in levels of 0..255."""
    return (tensor * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).permute(1, 2, 0).numpy() * 255


# RandAugment


@pytest.mark.parametrize('name', TEN[1:])
def test_operations_equal_the_reference(name):
    image = REFERENCE['image'].copy()
    changed = apply_op(name, image, 7, REFERENCE_SIGN.get(name, 1))
    difference = np.abs(changed.astype(int) - REFERENCE[name])
    assert changed.dtype == np.uint8 and changed.shape == image.shape
    assert difference.max() <= (2 if name in WARPS else 1) and difference.mean() < 0.25
    np.testing.assert_array_equal(image, REFERENCE['image'])


@pytest.mark.parametrize('name, axis', [('ShearX', 1), ('ShearY', 0), ('TranslateX', 1), ('TranslateY', 0)])
def test_the_other_sign_does_the_same_to_the_mirror_image(name, axis):
    image = REFERENCE['image']
    one = apply_op(name, image, 7, 1).astype(int)
    other = np.flip(apply_op(name, np.ascontiguousarray(np.flip(image, axis)), 7, -1), axis)
    assert np.abs(one - other).max() <= 2
    assert np.abs(one - apply_op(name, image, 7, -1)).mean() > 10


def test_rotations_of_both_signs_undo_each_other():
    image = cv2.GaussianBlur(photo(100, 80), (0, 0), 3)
    there_and_back = apply_op('Rotate', apply_op('Rotate', image, 7, 1), 7, -1)
    assert np.abs(there_and_back.astype(int) - image)[25:55, 35:65].max() <= 4


def test_levels_scale_the_operations():
    image = REFERENCE['image']
    for name in WARPS + ('TranslateX', 'TranslateY'):
        np.testing.assert_array_equal(apply_op(name, image, 0, 1), image)
    np.testing.assert_array_equal(apply_op('TranslateX', image, 10, 1)[:, :-10], image[:, 10:])
    np.testing.assert_array_equal(apply_op('TranslateY', image, 3, -1)[3:], image[:-3])
    assert (apply_op('TranslateY', image, 3, -1)[:3] == 128).all()
    np.testing.assert_array_equal(apply_op('Brightness', image, 5, 1), image)
    assert (apply_op('Brightness', image, 0, 1) <= image // 10).all()


def test_auto_contrast_stretches_channels_with_black_and_turns_others_white_unless_fixed():
    image = np.zeros((4, 51, 3), np.uint8)
    image[..., 0] = np.arange(51)
    image[..., 1] = 100 + np.arange(51)
    image[..., 2] = 77
    official, fixed = apply_op('AutoContrast', image, 7, 1), apply_op('AutoContrastFixed', image, 7, 1)
    for stretched in (official[..., 0], fixed[..., 0], fixed[..., 1]):
        np.testing.assert_allclose(stretched[0], np.arange(51) * 5.1, atol=1)
    assert (official[..., 1] == 255).all()
    assert (official[..., 2] == 77).all() and (fixed[..., 2] == 77).all()


@pytest.mark.parametrize('name', TEN)
@pytest.mark.parametrize('shape', [(1, 1, 3), (3, 200, 3), (5, 2, 3)])
@pytest.mark.parametrize('value', [0, 255, None])
def test_operations_take_any_size_and_flat_images(name, shape, value):
    image = photo(shape[1], shape[0]) if value is None else np.full(shape, value, np.uint8)
    for sign in (1, -1):
        assert apply_op(name, image, 7, sign).shape == shape


def test_unknown_operations_are_refused():
    for call in (
        lambda: apply_op('Colour', REFERENCE['image'], 7, 1),
        lambda: RandAugment(names=['Rotate', 'Colour']),
        lambda: TrainTransform(64, randaugment=['Colour']),
    ):
        with pytest.raises(InputError, match="'Colour': choose from Identity, AutoContrast.*Rotate"):
            call()


def test_randaugment_draws_operations_signs_and_whether_to_apply(monkeypatch):
    applied = []
    monkeypatch.setattr('dataset.randaugment.apply_op', lambda name, image, level, sign: applied.append((name, sign)))
    augment, rng = RandAugment(), np.random.default_rng(0)
    for _ in range(4000):
        augment(None, rng)
    assert abs(len(applied) / 4000 - 1) < 0.05  # two draws, each applied with probability 0.5
    for pair in [(name, sign) for name in TEN for sign in (1, -1)]:
        assert abs(applied.count(pair) / len(applied) - 0.05) < 0.015


# Crops


class TorchDraws:
    """torch's generator with the interface of numpy's, so that torchvision and `draw_crop` draw the same numbers."""

    def random(self, count):
        return np.array([torch.empty(1).uniform_(0, 1).item() for _ in range(count)])

    def integers(self, high):
        return torch.randint(0, high, (1,)).item()


@pytest.mark.parametrize('size', [(640, 480), (333, 500), (64, 64), (3000, 200), (150, 2000), (5, 3), (1, 1)])
def test_crops_are_drawn_as_by_torchvision(size):
    """Sizes with an extreme aspect ratio result in the central crop."""
    image = Image.new('L', size)
    for seed in range(40):
        torch.manual_seed(seed)
        top, left, height, width = tv.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
        torch.manual_seed(seed)
        assert draw_crop(*size, (0.2, 1.0), TorchDraws()) == (left, top, left + width, top + height)


def test_reduction_keeps_the_crop_at_least_as_large_as_the_resolution():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(n) for n in rng.integers(1, 3000, 2))
        box = draw_crop(width, height, (0.05, 1.0), rng)
        factor = reduction(box, 256)
        shorter = min(box[2] - box[0], box[3] - box[1])
        assert factor == 1 or shorter / factor >= 256
        assert factor == 8 or shorter / (2 * factor) < 256


# Pixels


@pytest.mark.parametrize('size', [(640, 480), (123, 457), (40, 30), (5000, 90), (1, 1)])
@pytest.mark.parametrize('resolution', [64, 256])
def test_resize_is_within_rounding_of_pillow(size, resolution):
    image = photo(*size)
    expected = np.asarray(Image.fromarray(image).resize((resolution, resolution), Image.BICUBIC)).astype(int)
    difference = np.abs(resize(image, resolution) - expected)
    assert difference.max() <= 4 and (difference > 1).mean() < 1e-3
    np.testing.assert_array_equal(resize_as_pillow(image, resolution), expected)


def test_resize_of_a_photo_is_within_one_level_of_pillow():
    image = photo(640, 480)
    expected = np.asarray(Image.fromarray(image).resize((256, 256), Image.BICUBIC)).astype(int)
    difference = np.abs(resize(image, 256) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize('seed', range(4))
def test_exact_training_pixels_are_the_official_ones(seed, jpeg):
    path = jpeg(640, 480)
    transform = TrainTransform(96, flip=False, randaugment=False, reduced_decode=False)
    image = Image.open(path).convert('RGB')
    left, top, right, bottom = draw_crop(640, 480, (0.2, 1.0), example_rng(0, 0, seed))
    steps = tv.Compose(
        [
            lambda i: tv.functional.resized_crop(
                i, top, left, bottom - top, right - left, (96, 96), tv.InterpolationMode.BICUBIC
            ),
            tv.ToTensor(),
            tv.Normalize(MEAN.tolist(), STD.tolist()),
        ]
    )
    ours = transform(path, example_rng(0, 0, seed))
    assert ours.shape == (3, 96, 96) and ours.dtype == torch.float32 and ours.is_contiguous()
    assert torch.equal(ours, steps(image))


def test_exact_evaluation_pixels_are_the_official_ones(jpeg):
    path = jpeg(300, 200)
    official = tv.Compose(
        [
            tv.Resize((64, 64), interpolation=tv.InterpolationMode.BICUBIC),
            tv.ToTensor(),
            tv.Normalize(MEAN.tolist(), STD.tolist()),
        ]
    )(Image.open(path).convert('RGB'))
    assert torch.equal(EvalTransform(64, reduced_decode=False)(path), official)


@pytest.mark.parametrize('size', [(640, 480), (641, 483), (2047, 1025)])
def test_reduced_decode_changes_pixels_little(size, jpeg):
    """In training the edges of the crop are also rounded to decoded pixels, so each moves by at most half a pixel."""
    path = jpeg(*size)
    pairs = [(EvalTransform(100, reduced_decode=False)(path), EvalTransform(100)(path), 3)]
    for index in range(3):
        exact, fast = (
            TrainTransform(100, randaugment=False, reduced_decode=reduced)(path, example_rng(0, 0, index))
            for reduced in (False, True)
        )
        pairs.append((exact, fast, 10))
    for exact, fast, bound in pairs:
        assert 0.1 < np.abs(levels(exact) - levels(fast)).mean() < bound


def test_sources_may_be_paths_pillow_images_or_arrays(jpeg):
    path = jpeg(200, 150)
    pixels = read_image(path)
    transform, evaluate = TrainTransform(128), EvalTransform(128)
    for source in (str(path), Image.open(path), Image.open(path).convert('RGB'), pixels):
        assert torch.equal(transform(source, example_rng(1, 2, 3)), transform(path, example_rng(1, 2, 3)))
        assert torch.equal(evaluate(source), evaluate(path))
    np.testing.assert_array_equal(pixels, read_image(path))


@pytest.mark.parametrize('mode', ['P', 'LA', 'CMYK', 'I;16'])
def test_sources_of_any_mode(mode, tmp_path):
    image = Image.fromarray(photo(40, 30)).convert('P' if mode == 'I;16' else mode)
    if mode == 'I;16':
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200)
    file = io.BytesIO()
    image.save(file, 'TIFF' if mode == 'CMYK' else 'PNG')
    (tmp_path / 'image').write_bytes(file.getvalue())
    assert torch.equal(EvalTransform(32)(tmp_path / 'image'), EvalTransform(32)(image))
    assert EvalTransform(32)(image).std() > 0.1


# Randomness


def test_the_same_generator_gives_the_same_example_whatever_other_generators_do(jpeg):
    path, transform = jpeg(160, 120), TrainTransform(64)
    examples = []
    for noise in range(2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        cv2.setRNGSeed(noise)
        examples.append([transform(path, example_rng(0, 1, index)) for index in range(12)])
    for one, other in zip(*examples, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(examples[0][0], examples[0][1])


def test_generators_differ_in_each_part_of_their_key():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0, 0), (0, 0, 1 << 40)]
    assert len({example_rng(*key).integers(1 << 62) for key in keys}) == len(keys)
    assert example_rng(3, 4, 5).integers(1 << 62) == example_rng(3, 4, 5).integers(1 << 62)


def test_flips_half_of_the_images():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255
    transform = TrainTransform(8, crop_scale=(1.0, 1.0), randaugment=False)
    lefts = [transform(image, example_rng(0, 0, index))[0, 0, 0].item() for index in range(400)]
    assert 150 < sum(value > 0 for value in lefts) < 250
    unflipped = TrainTransform(8, crop_scale=(1.0, 1.0), flip=False, randaugment=False)
    assert all(unflipped(image, example_rng(0, 0, index))[0, 0, 0] > 0 for index in range(50))


@pytest.mark.parametrize('scale', [(0, 1), (0.8, 0.2), (-1, 0.5)])
def test_invalid_crop_scales_are_refused(scale):
    with pytest.raises(InputError, match='crop_scale'):
        TrainTransform(64, crop_scale=scale)


def test_an_empty_list_of_operations_switches_randaugment_off():
    assert TrainTransform(64, randaugment=[]).augment is None
    assert TrainTransform(64, randaugment=False).augment is None
    assert TrainTransform(64, randaugment=True).augment.names == TEN
    assert TrainTransform(64, randaugment=['Rotate']).augment.names == ('Rotate',)
