"""The images of the synthetic dataset: one item per cell, one visible relation, and captions that are true."""

from collections import Counter
from dataclasses import replace
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
RADIUS = {'small': 10, 'large': 13}  # pixels
MIDDLE = {15, 16}  # the two middle pixels of a cell
PALETTE = np.array(list(RGB.values()))


@pytest.fixture(scope='module')
def scenes():
    return [scene for split in SPLITS for scene in draw_scenes(split, 500, seed=0)]


# ---- the positions ----


def cells(scene):
    """(column, row) of the center of each item."""
    return [(place.x // CELL, place.y // CELL) for place in scene.places]


def mirrored(scene):
    return replace(scene, places=tuple(place._replace(x=SIDE - 1 - place.x) for place in scene.places))


def check_places(scene):
    """Each item is in its cell: the related pair touches the edge between its cells, all else is in the middle."""
    for item, place, (column, row) in zip(scene.items, scene.places, cells(scene), strict=True):
        assert place.radius == RADIUS[item.size]
        assert 0 <= column < 4 and CELL * column <= place.x - place.radius
        assert 0 <= row < 4 and CELL * row <= place.y - place.radius
        assert place.x + place.radius < CELL * (column + 1) and place.y + place.radius < CELL * (row + 1)
    first, second, *others = scene.places
    if scene.relation == 'beside':
        first, second = sorted((first, second))  # the left one first
        last, start, across = first.x + first.radius, second.x - second.radius, (first.y, second.y)
    else:
        last, start, across = first.y + first.radius, second.y - second.radius, (first.x, second.x)
    assert start == last + 1 and start % CELL == 0
    centers = [*across, *(center for place in others for center in (place.x, place.y))]
    assert {center % CELL for center in centers} <= MIDDLE


def test_the_related_pair_is_at_its_common_edge_and_all_else_in_the_middle(scenes):
    for scene in scenes:
        check_places(scene)


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


def horizontal(scene):
    """What a flip can change: size, column and offset of the two related items, and of each other item."""
    seen = [(place.radius, *divmod(place.x, CELL)) for place in scene.places]
    return {(scene.relation, *seen[:2]), *(('other', place) for place in seen[2:])}


def test_a_flip_gives_possible_places(scenes):
    """Augmented images look like the others: the generator draws every position of a mirrored scene."""
    drawn = set().union(*map(horizontal, scenes))
    for scene in scenes:
        check_places(mirrored(scene))
        assert horizontal(mirrored(scene)) <= drawn
    # Two sizes: 4 columns and 2 pixels each in the middle; 3 edges and 2 orders beside; 16 places elsewhere.
    assert Counter(kind for kind, *_ in drawn) == {'above': 4 * 4 * 4, 'beside': 4 * 3 * 2, 'other': 2 * 4 * 2}


def test_a_flipped_image_is_the_image_of_the_mirrored_scene(scenes):
    for scene in scenes[::10]:
        assert ImageOps.mirror(draw(scene)).tobytes() == draw(mirrored(scene)).tobytes()


# ---- the images ----


def box(mask):
    """The rows and columns of a mask between the first and the last pixel that is set."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


MASKS = {(shape, size): np.asarray(shape_mask(shape, RADIUS[size])) / 255 for shape in SHAPES for size in RADIUS}
TEMPLATES = {known: mask > 0.5 for known, mask in MASKS.items()}


def centroid(mask):
    """(x, y), in pixels."""
    return [mask.sum(axis) @ np.arange(mask.shape[1 - axis]) / mask.sum() for axis in (0, 1)]


def disagreement(first, second):
    """The number of pixels in which two masks differ when they are boxed and centered."""
    first, second = box(first), box(second)
    canvas = np.zeros((2, CELL, CELL), int)
    for layer, mask in zip(canvas, (first, second), strict=True):
        top, left = (CELL - mask.shape[0]) // 2, (CELL - mask.shape[1]) // 2
        layer[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return np.abs(canvas[0] - canvas[1]).sum()


def look(image):
    """{(column, row): ((size, color, shape), (x, y) in the cell)} of what an image shows, from its pixels only."""
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
        mask = contrast > np.abs(PALETTE[color] - background).sum() / 2
        shape, size = min(TEMPLATES, key=lambda known: disagreement(mask, TEMPLATES[known]))
        center = np.subtract(centroid(mask), centroid(TEMPLATES[shape, size])) + RADIUS[size]
        found[column, row] = (size, list(RGB)[color], shape), center
    return found


def edge(center):
    """(across, down) of a center (x, y) in its cell: 1 if at the far edge, -1 if at the near edge, 0 in the middle."""
    return tuple(0 if abs(offset) < 1.5 else int(np.sign(offset)) for offset in np.subtract(center, (CELL - 1) / 2))


def meaning(seen):
    """(items, relation, related pair), as `parse_caption` returns it, of what an image shows.

    The relation is visible twice: in the cells of the items, and in the edges at which two of them lie.
    """
    ((a, b),) = [pair for pair in combinations(sorted(seen), 2) if pair[0][0] == pair[1][0] or pair[0][1] == pair[1][1]]
    step = b[0] - a[0], b[1] - a[1]
    assert step in {(0, 1), (1, 0)}
    at_edge = {where: edge(center) for where, (_, center) in seen.items() if edge(center) != (0, 0)}
    assert at_edge == {a: step, b: (-step[0], -step[1])}
    pair = seen[a][0], seen[b][0]  # the upper one first
    items = frozenset(item for item, _ in seen.values())
    return (items, 'above', pair) if step == (0, 1) else (items, 'beside', frozenset(pair))


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
    extent = {known: box(template).shape for known, template in TEMPLATES.items()}
    longest = {size: [max(extent[shape, size]) for shape in SHAPES] for size in RADIUS}
    assert max(longest['small']) <= 21 and min(longest['large']) >= 23
    for shape in SHAPES:
        assert min(np.subtract(extent[shape, 'large'], extent[shape, 'small'])) >= 4
        assert MASKS[shape, 'large'].sum() > 1.5 * MASKS[shape, 'small'].sum()


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


@pytest.mark.parametrize('way', ['reduced_decode', 'official', 'area'])
def test_sizes_and_edges_survive_jpeg_and_shrinking(folder, scene_of, way):
    """At 64 pixels an item covers the area of its own size, and its centroid tells the edge at which it lies."""
    for path, scene in scene_of.items():
        pixels, background = read_64(folder / path, way), np.array(BACKGROUNDS[scene.background])
        a, b = cells(scene)[:2]
        to_b = b[0] - a[0], b[1] - a[1]
        sides = [to_b, (-to_b[0], -to_b[1]), (0, 0), (0, 0)]
        for item, (column, row), side in zip(scene.items, cells(scene), sides, strict=False):
            cell = pixels[16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)]
            ink = PALETTE[list(RGB).index(item.color)] - background
            covered = (cell - background) @ ink / (ink @ ink)  # [16, 16], 1 where the item covers a pixel
            area = {size: MASKS[item.shape, size].sum() / 4 for size in RADIUS}
            assert min(RADIUS, key=lambda size: abs(covered.sum() - area[size])) == item.size, (path, item)
            middle = np.subtract(centroid(MASKS[item.shape, item.size]), RADIUS[item.size])  # of the shape itself
            assert edge(2 * np.array(centroid(covered)) + 0.5 - middle) == side, (path, item)
