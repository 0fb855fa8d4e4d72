"""The images of the synthetic dataset: one item per cell, one visible relation, and captions that are true."""

from collections import Counter, defaultdict
from itertools import combinations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from dataset.shapes.drawing import BACKGROUNDS, RGB, draw, shape_mask
from dataset.shapes.sampling import draw_scenes
from dataset.shapes.scene import SHAPES, SPLITS
from dataset.transforms import read_resized
from tests.dataset.shapes.tools import as_list, parse_caption, read

CAPTIONS = ('pretrain.json', 'retrieval_train.json', 'retrieval_val.json', 'retrieval_test.json')
SIDE, CELL = 128, 32  # pixels
RADIUS = {'small': 10, 'large': 14}  # pixels
PALETTE = np.array(list(RGB.values()))


@pytest.fixture(scope='module')
def scenes():
    return [scene for split in SPLITS for scene in draw_scenes(split, 500, seed=0)]


# ---- the positions ----


def cells(scene):
    """(column, row) of the center of each item."""
    return [(place.x // CELL, place.y // CELL) for place in scene.places]


def test_an_item_never_leaves_its_cell(scenes):
    for scene in scenes:
        for item, place in zip(scene.items, scene.places, strict=True):
            assert place.radius == RADIUS[item.size]
            for center in (place.x, place.y):
                assert 0 <= center - place.radius and center + place.radius < SIDE
                assert (center - place.radius) // CELL == (center + place.radius) // CELL
                assert abs(center % CELL - (CELL - 1) / 2) < 3


def test_only_the_related_pair_shares_a_row_or_a_column(scenes):
    for scene in scenes:
        found = cells(scene)
        (first_column, first_row), (second_column, second_row) = found[:2]
        if scene.relation == 'above':
            assert first_column == second_column and second_row - first_row == 1
        else:
            assert first_row == second_row and abs(first_column - second_column) == 1
        for i, j in combinations(range(len(found)), 2):
            if (i, j) != (0, 1):
                assert found[i][0] != found[j][0] and found[i][1] != found[j][1]


def test_related_pairs_are_everywhere(scenes):
    pairs = {(scene.relation, *cells(scene)[:2]) for scene in scenes}
    above = {('above', (x, y), (x, y + 1)) for x in range(4) for y in range(3)}
    beside = {('beside', (x, y), (x + 1, y)) for x in range(3) for y in range(4)}
    assert pairs == above | beside | {(relation, second, first) for relation, first, second in beside}


def test_a_flip_gives_possible_positions(scenes):
    """An item is as often left as right of the center of its cell: augmented images look like the others."""
    offsets = defaultdict(set)
    for scene in scenes:
        for place in scene.places:
            offsets[place.radius].add(place.x % CELL)
    assert set(offsets) == set(RADIUS.values())
    for found in offsets.values():
        assert found == {CELL - 1 - offset for offset in found} and len(found) >= 4


# ---- the images ----


def box(mask):
    """The rows and columns of a mask between the first and the last pixel that is set."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def template(shape, size):
    return box(np.asarray(shape_mask(shape, RADIUS[size])) > 127)


def disagreement(first, second):
    """The number of pixels in which two masks with a common center differ."""
    canvas = np.zeros((2, CELL, CELL), int)
    for layer, mask in zip(canvas, (first, second), strict=True):
        top, left = (CELL - mask.shape[0]) // 2, (CELL - mask.shape[1]) // 2
        layer[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return np.abs(canvas[0] - canvas[1]).sum()


def look(image):
    """{(column, row): (size, color, shape)} of what an image of 128 pixels shows, from its pixels only."""
    pixels = np.asarray(image).astype(int)
    background = np.median(pixels, (0, 1))
    found = {}
    for row, column in np.ndindex(SIDE // CELL, SIDE // CELL):
        cell = pixels[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)]
        contrast = np.abs(cell - background).sum(2)
        if contrast.max() < 100:
            continue
        core = cell[contrast > contrast.max() / 2]
        color = Counter(np.abs(core[:, None] - PALETTE).sum(2).argmin(1)).most_common(1)[0][0]
        mask = box(contrast > np.abs(PALETTE[color] - background).sum() / 2)
        size = 'small' if max(mask.shape) < 22.5 else 'large'
        shape = min(SHAPES, key=lambda shape: disagreement(mask, template(shape, size)))
        found[column, row] = size, list(RGB)[color], shape
    return found


def meaning(seen):
    """(items, relation, related pair), as `parse_caption` returns it, of what an image shows."""
    ((a, b),) = [pair for pair in combinations(sorted(seen), 2) if pair[0][0] == pair[1][0] or pair[0][1] == pair[1][1]]
    assert abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1
    pair = seen[a], seen[b]  # the upper one first
    items = frozenset(seen.values())
    return (items, 'above', pair) if a[0] == b[0] else (items, 'beside', frozenset(pair))


def test_captions_are_true_of_the_images_and_of_flipped_ones(folder):
    shown = {}
    for path in folder.glob('images/*/*.jpg'):
        with Image.open(path) as image:
            assert image.format == 'JPEG' and image.size == (SIDE, SIDE) and image.mode == 'RGB'
            shown[str(path.relative_to(folder))] = meaning(look(image))
            assert meaning(look(ImageOps.mirror(image))) == shown[str(path.relative_to(folder))]
    rows = [row for name in CAPTIONS for row in read(folder / name)]
    assert {row['image'] for row in rows} == set(shown)
    for row in rows:
        for caption in as_list(row['caption']):
            assert parse_caption(caption) == shown[row['image']], (row['image'], caption)


def test_each_item_is_alone_in_its_cell(scenes):
    """Exact: not a single pixel of an item, however pale, is outside of its cell."""
    for scene in scenes[::5]:
        painted = (np.asarray(draw(scene)) != BACKGROUNDS[scene.background]).any(2)
        occupied = painted.reshape(4, CELL, 4, CELL).any((1, 3))
        assert {(x, y) for y, x in np.argwhere(occupied)} == set(cells(scene)) and occupied.sum() == len(scene.items)


def test_small_and_large_items_differ_in_extent():
    extent = {size: [max(template(shape, size).shape) for shape in SHAPES] for size in RADIUS}
    assert max(extent['small']) <= 21 and min(extent['large']) >= 24


def read_64(path, way):
    """[64, 64, 3] int, as `EvalTransform` reads a file, with or without `reduced_decode`, or averaged by OpenCV."""
    if way == 'area':
        return cv2.resize(cv2.imread(str(path))[..., ::-1], (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    return read_resized(path, lambda width, height: (0, 0, width, height), 64, way == 'reduced_decode').astype(int)


@pytest.mark.parametrize('way', ['reduced_decode', 'official', 'area'])
def test_colors_survive_jpeg_and_shrinking(folder, scene_of, way):
    """Every item is nearest to its own color at 64 pixels, the resolution of the configurations."""
    for path, scene in scene_of.items():
        pixels = read_64(folder / path, way)
        for item, place in zip(scene.items, scene.places, strict=True):
            mask = np.zeros((SIDE, SIDE), bool)
            rows, columns = (slice(c - place.radius, c + place.radius + 1) for c in (place.y, place.x))
            mask[rows, columns] = np.asarray(shape_mask(item.shape, place.radius)) == 255
            core = mask.reshape(64, 2, 64, 2).all((1, 3))
            nearest = np.abs(pixels[core][:, None] - PALETTE).sum(2).argmin(1)
            assert (nearest == list(RGB).index(item.color)).mean() > 0.9, (path, item)
