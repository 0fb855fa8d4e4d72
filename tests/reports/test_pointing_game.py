"""The pointing game on the synthetic dataset."""

import json
from random import Random

import numpy as np
import pytest
import torch

import reports.pointing_game
from dataset.shapes.captions import all_captions
from dataset.shapes.drawing import IMAGE_SIDE, draw
from dataset.shapes.sampling import draw_scenes
from dataset.shapes.scene import Item, Place, Scene
from predict import EXAMPLE
from reports.pointing_game import described_items, overlapping, score_words
from utils.errors import InputError


def scene(*items):
    """Items (size, color, shape, x, y, radius)."""
    return Scene(tuple(Item(*item[:3]) for item in items), 'above', tuple(Place(*item[3:]) for item in items))


def test_words_of_one_shape_only_are_scored():
    """'small' is true of both; a repeated color is not scored, and a word is that of the shape it stands before."""
    two = scene(('small', 'red', 'ring', 16, 16, 10), ('small', 'red', 'star', 80, 112, 10))
    words = 'there is a small red star below a small red ring'.split()
    found = [(words[position], kind, place.x) for position, kind, place in described_items(words, two)]
    assert found == [('star', 'shape', 80), ('ring', 'shape', 16)]
    heat = torch.zeros(len(words), 4, 4)
    heat[5, 3, 2] = 1  # the star is in row 3, column 2
    heat[10, 1, 0] = 1  # the ring is in row 0
    scored = list(score_words([*zip(words, heat, strict=True)], two))
    assert scored == [('shape', True, 1 / 16), ('shape', False, 1 / 16)]


def test_patches_overlap_the_square_around_a_shape():
    assert overlapping(Place(16, 16, 10), 4) == [0] and overlapping(Place(31, 16, 1), 4) == [0, 1]
    for number, place in enumerate(place for some in draw_scenes('test', 20, 3) for place in some.places):
        side = Random(number).choice((4, 8))
        mask = np.zeros((IMAGE_SIDE, IMAGE_SIDE))
        mask[
            place.y - place.radius : place.y + place.radius + 1, place.x - place.radius : place.x + place.radius + 1
        ] = 1
        patches = mask.reshape(side, IMAGE_SIDE // side, side, -1).max(axis=(1, 3)).flatten()
        assert overlapping(place, side) == np.flatnonzero(patches).tolist()


def test_a_map_of_the_shape_itself_always_hits():
    """Where a picture differs from the same picture without the shape, a word of the shape points."""
    for some in draw_scenes('test', 15, 0):
        words = all_captions(some)[0].split()
        found = []
        for position, word in enumerate(words):
            places = [place for at, _, place in described_items(words, some) if at == position]
            heat = torch.zeros(4, 4)
            if places:
                number = some.places.index(places[0])
                keep = [i for i in range(len(some.items)) if i != number]
                rest = Scene(*(tuple(part[i] for i in keep) for part in (some.items,)), some.relation,
                             tuple(some.places[i] for i in keep), some.background)  # fmt: skip
                change = np.abs(np.asarray(draw(some), int) - np.asarray(draw(rest), int)).sum(axis=2)
                heat = torch.from_numpy(change.reshape(4, 32, 4, 32).sum(axis=(1, 3)))
            found.append((word, heat))
        assert all(hit for _, hit, _ in score_words(found, some))


def test_the_game_of_the_shipped_weights(shapes, tmp_path, capsys):
    reports.pointing_game.main([EXAMPLE, '--data', str(shapes), '--out', str(tmp_path / 'o.json')])
    metrics = json.loads((tmp_path / 'o.json').read_text())
    assert list(metrics) == ['size', 'color', 'shape', 'all']
    assert metrics['all']['words'] == sum(metrics[kind]['words'] for kind in ('size', 'color', 'shape')) > 50
    assert metrics['all']['chance'] == 6.25 and metrics['all']['hits'] > 40
    assert f'| color | {metrics["color"]["words"]} | {metrics["color"]["hits"]:.1f} |' in capsys.readouterr().out


def test_another_folder_is_named(tmp_path):
    with pytest.raises(InputError, match='there is no world.json of version 2 in it; give a folder that'):
        reports.pointing_game.main([EXAMPLE, '--data', str(tmp_path)])
