"""Pictures of heat maps, and the maps of the shipped weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.shapes.drawing import draw
from dataset.shapes.sampling import draw_scenes
from inference import load_model
from predict import EXAMPLE
from reports.heatmaps import draw_heatmaps, overlaid
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
    assert model.word_maps([], []) == []
    one, two = (model.word_maps([pixels] * 3, [text, 'a ring', text], batch_size=size) for size in (1, 2))
    assert [[word for word, _ in found] for found in one] == [[word for word, _ in found] for found in two]
    torch.testing.assert_close(one[2][3][1], two[0][3][1])
