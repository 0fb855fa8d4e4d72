"""Pictures of heat maps, and the pointing game on the synthetic dataset."""

import json
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

import reports.pointing_game
from dataset.shapes.captions import all_captions
from dataset.shapes.drawing import IMAGE_SIDE, draw
from dataset.shapes.sampling import draw_scenes
from dataset.shapes.scene import Item, Place, Scene
from predict import EXAMPLE, load_model
from reports.heatmaps import draw_heatmaps, overlaid
from reports.pointing_game import described_items, overlapping, score_words
from utils.errors import InputError


def test_colors_are_where_a_map_is_high():
    pixels = np.full((8, 8, 3), 200, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 3e-7  # only the order of a map's values counts
    drawn = overlaid(pixels, heat)
    changed = np.abs(drawn - 200 / 255).max(axis=2) > 0.05
    assert drawn.shape == (8, 8, 3) and np.argwhere(changed).tolist() == [[2, 5]]
    assert np.allclose(overlaid(pixels, 0 * heat), 200 / 255)


@pytest.mark.parametrize('words', [1, 9])
def test_every_word_has_a_panel(tmp_path, words):
    """Any word is drawn as it is, and the picture has a row for every six panels."""
    maps = {f'$w_{number}{{': torch.rand(40, 60) for number in range(words)}
    image = Image.new('RGB', (60, 40), 'white')
    sizes = []
    for some in (maps, {'a': maps['$w_0{'], 'b': maps['$w_0{']}):
        draw_heatmaps(image, some | {'all of it': torch.rand(40, 60)}, tmp_path / 'a.png')
        with Image.open(tmp_path / 'a.png') as drawn:
            sizes.append(drawn.size)
    assert (sizes[0][1] > sizes[1][1]) == (words == 9)


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
    assert metrics['all']['hits'] > 4 * metrics['all']['chance'] == 25
    assert f'| color | {metrics["color"]["words"]} | {metrics["color"]["hits"]:.1f} |' in capsys.readouterr().out


def test_another_folder_is_named(tmp_path):
    with pytest.raises(InputError, match='there is no world.json of version 2 in it; give a folder that'):
        reports.pointing_game.main([EXAMPLE, '--data', str(tmp_path)])


def test_heat_maps_have_the_size_of_the_picture_and_a_name_for_every_word():
    model = load_model(EXAMPLE)
    pixels = np.asarray(draw(draw_scenes('test', 1, 0)[0]).resize((200, 90)))
    text = 'a small pink ring above a small black star'
    maps = model.heatmap(pixels, text.replace('pink', 'PINK,'))
    assert list(maps) == ['a', 'small', 'pink', 'ring', 'above', 'a (2)', 'small (2)', 'black', 'star', text]
    assert all(heat.shape == (90, 200) and heat.dtype == torch.float32 and (heat >= 0).all() for heat in maps.values())
    *words, whole = maps.values()
    torch.testing.assert_close(whole, torch.stack(words).mean(dim=0))
    ring, grid = maps['ring'], dict(model.word_maps(pixels, text)[0])['ring']
    y, x = divmod(int(ring.argmax()), 200)
    assert (y * 4 // 90, x * 4 // 200) == divmod(int(grid.argmax()), 4)
    pieces = model.word_maps(pixels, 'a zebra')[0]  # a word of many tokens
    assert [word for word, _ in pieces] == ['a', 'zebra'] and list(model.heatmap(pixels, 'ring')) == ['ring']
    with pytest.raises(InputError, match='has no word in it'):
        model.heatmap(pixels, '!')
