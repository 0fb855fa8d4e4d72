"""Captions with one swapped word: the true one is true of its picture and the other is not."""

from itertools import combinations

import pytest

from dataset.shapes import choices
from dataset.shapes.choices import KINDS, choice_rows
from dataset.shapes.sampling import draw_scenes
from dataset.shapes.scene import COLORS, RELATION_WORDS, SHAPES, SIZES, SPLITS
from tests.dataset.shapes.tools import SCENE_COUNTS, parse_caption, read
from utils.errors import InputError

WORDS = {'size': SIZES, 'color': COLORS, 'shape': SHAPES, 'relation': RELATION_WORDS}


def is_true(caption, scene):
    """Whether a picture shows what the words of a caption say, by the places of its items in pixels."""
    items, relation, pair = parse_caption(caption)
    place = {tuple(item): place for item, place in zip(scene.items, scene.places, strict=True)}
    if not items <= place.keys() or len(items) != len(scene.items):
        return False
    first, second = (place[item] for item in pair)
    if relation == 'above':
        return first.y < second.y and abs(first.x - second.x) < 16
    return abs(first.y - second.y) < 16


@pytest.mark.parametrize('split', SPLITS)
def test_one_caption_is_true_and_the_other_differs_in_one_word_of_its_kind(split):
    scenes = draw_scenes(split, 100, 0)
    rows = choice_rows(scenes, split, 0)
    assert [(row['image'], row['kind']) for row in rows] == [
        (f'images/{split}/{number:05d}.jpg', kind) for number in range(100) for kind in KINDS
    ]
    swapped = set()
    for number, row in enumerate(rows):
        true, false = row['captions']
        assert is_true(true, scenes[number // 4]) and not is_true(false, scenes[number // 4]), row
        (pair,) = (pair for pair in zip(true.split(), false.split(), strict=True) if len({*pair}) == 2)
        assert {*pair} <= {*WORDS[row['kind']]}
        swapped.update(pair)
    assert swapped == {word for words in WORDS.values() for word in words}


def test_an_item_of_the_picture_is_never_swapped_in():
    """Although another color or shape of one item gives another item of the same picture in some scenes."""
    scenes = draw_scenes('train', 1000, 5)
    near = [
        any(sum(x != y for x, y in zip(a, b, strict=True)) == 1 for a, b in combinations(s.items, 2)) for s in scenes
    ]
    assert sum(near) > 100
    for number, row in enumerate(choice_rows(scenes, 'train', 5)):
        items, _, _ = parse_caption(row['captions'][1])
        assert len(items - {*map(tuple, scenes[number // 4].items)}) == (row['kind'] != 'relation')


def test_the_command_writes_what_follows_from_the_seed(folder, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    for name in ('one.json', 'two.json'):
        choices.main(['--data', str(folder), '--out', str(tmp_path / name)])
    assert '160 rows of 40 scenes, 4 kinds' in capsys.readouterr().out
    assert (tmp_path / 'one.json').read_bytes() == (tmp_path / 'two.json').read_bytes()
    rows = read(tmp_path / 'one.json')
    assert (
        rows == choice_rows(draw_scenes('test', 40, 0), 'test', 0) != choice_rows(draw_scenes('test', 40, 0), 'test', 1)
    )
    assert all((folder / row['image']).is_file() for row in rows)
    choices.main(['--data', str(folder), '--out', str(tmp_path / 'val.json'), '--split', 'val'])
    assert len(read(tmp_path / 'val.json')) == 4 * SCENE_COUNTS['val']
    assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match='there is no world.json of version 2 in it; give a folder'):
        choices.main(['--data', str(tmp_path), '--out', str(tmp_path / 'x.json')])
    (tmp_path / 'world.json').write_text('{"version": 1, "seed": 0, "scenes": {"test": 5}}')
    with pytest.raises(InputError, match='there is no world.json of version 2 in it'):
        choices.main(['--data', str(tmp_path), '--out', str(tmp_path / 'x.json')])


def test_no_file_of_the_dataset_is_overwritten(shapes):
    for name in ('retrieval_test.json', 'world.json'):
        before = (shapes / name).read_bytes()
        with pytest.raises(InputError, match=f'--out .*{name} is an input of the command'):
            choices.main(['--data', str(shapes), '--out', str(shapes / name)])
        assert (shapes / name).read_bytes() == before
