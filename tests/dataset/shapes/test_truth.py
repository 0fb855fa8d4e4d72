"""The texts of the synthetic dataset are true of its images: captions, statements and questions."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageOps

from dataset.shapes.captions import plural
from dataset.shapes.drawing import IMAGE_SIDE, RGB, draw, shape_mask
from dataset.shapes.layout import GAP
from dataset.shapes.sampling import draw_scenes
from dataset.shapes.scene import CONVERSE, SHAPES, SPLITS
from dataset.shapes.vqa import ANSWERS
from tests.dataset.shapes.tools import SCENE_COUNTS, VQA, read

NLVR = {'train': 'nlvr_train.json', 'dev': 'nlvr_dev.json', 'test': 'nlvr_test.json'}


@pytest.fixture(scope='module')
def scenes():
    return {split: draw_scenes(split, 80, seed=0) for split in SPLITS}


@pytest.fixture(scope='module')
def scene_of():
    """{image path: scene} of the small dataset."""
    return {
        f'images/{split}/{number:05d}.jpg': scene
        for split, count in SCENE_COUNTS.items()
        for number, scene in enumerate(draw_scenes(split, count, seed=0))
    }


# ---- the images ----


def coverage(scene, i, solid=False):
    """[side, side] bool, the pixels of item i of a scene. solid: including the hole of a ring."""
    item, place = scene.items[i], scene.places[i]
    mask = np.zeros((IMAGE_SIDE, IMAGE_SIDE), bool)
    rows, columns = (slice(center - place.radius, center + place.radius + 1) for center in (place.y, place.x))
    shape = 'circle' if solid and item.shape == 'ring' else item.shape
    mask[rows, columns] = np.asarray(shape_mask(shape, place.radius)) > 127
    return mask


def grown(mask, pixels):
    out = mask.copy()
    for dy in range(-pixels, pixels + 1):
        for dx in range(-pixels, pixels + 1):
            out |= np.roll(mask, (dy, dx), (0, 1))
    return out


def bounds(mask, axis):
    """First and last index along the other axis at which the mask is set."""
    found = np.flatnonzero(mask.any(axis))
    return found[0], found[-1]


def test_relations_are_visible(scenes):
    for scene in [scene for split in SPLITS for scene in scenes[split]]:
        masks = [coverage(scene, i, solid=True) for i in range(len(scene.items))]
        rows, columns = ([bounds(mask, axis) for mask in masks] for axis in (1, 0))
        if scene.relation == 'above':
            assert rows[0][1] < rows[1][0]
            for start, end in columns[2:]:
                assert end < min(columns[0][0], columns[1][0]) or start > max(columns[0][1], columns[1][1])
        elif scene.relation == 'inside':
            assert not (grown(masks[0], 1) & ~masks[1]).any()
        else:
            assert (coverage(scene, 0) & grown(coverage(scene, 1), 1)).any()
            assert abs(scene.places[0].y - scene.places[1].y) <= 3
        for i, j in combinations(range(len(masks)), 2):
            if scene.relation == 'above' or (i, j) != (0, 1):
                assert not (grown(masks[i], GAP // 2) & masks[j]).any()


def test_a_flipped_image_is_the_image_of_the_flipped_scene(scenes):
    for scene in scenes['train'][:60]:
        flipped = replace(scene, places=tuple(p._replace(x=IMAGE_SIDE - 1 - p.x) for p in scene.places))
        assert ImageOps.mirror(draw(scene)).tobytes() == draw(flipped).tobytes()


def test_colors_survive_jpeg_and_shrinking(folder, scene_of):
    """Every item is nearest to its own color at 64 pixels, the resolution of the configurations."""
    palette = np.array(list(RGB.values()))
    for image, scene in scene_of.items():
        with Image.open(folder / image) as file:
            assert file.format == 'JPEG' and file.size == (IMAGE_SIDE, IMAGE_SIDE)
            pixels = np.asarray(file.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
        for i, item in enumerate(scene.items):
            seen = coverage(scene, i)
            if i == 1 and scene.relation == 'inside':
                seen &= ~grown(coverage(scene, 0), 3)
            core = seen.reshape(64, 2, 64, 2).all((1, 3))
            nearest = np.abs(pixels[core][:, None] - palette).sum(2).argmin(1)
            assert Counter(nearest).most_common(1)[0][0] == list(RGB).index(item.color), (image, item)


# ---- the statements and the questions, each parsed from its words ----


def matching_items(scene, words):
    """Indices of the items that 'a red object', 'star' or 'red star' may mean."""
    return [
        i
        for i, item in enumerate(scene.items)
        if set(words.split()) <= {'a', 'an', 'the', 'object', item.color, item.shape}
    ]


def count_items(scene, plural_name):
    """The number of items that 'objects', 'red objects' or 'stars' may mean."""
    if plural_name.endswith('objects'):
        return len(matching_items(scene, plural_name.removesuffix('objects')))
    return len(matching_items(scene, next(shape for shape in SHAPES if plural(shape) == plural_name)))


def shows(scene, sight):
    if match := re.fullmatch(r'exactly (\w+) (.*)', sight):
        return count_items(scene, match[2]) == ['zero', 'one', 'two', 'three', 'four'].index(match[1])
    if sight == 'one object inside another':
        return scene.relation == 'inside'
    if sight == 'two touching objects':
        return scene.relation == 'touching'
    if match := re.fullmatch(r'(an? .*) (above|below|inside|around|touching) (an? .*)', sight):
        return related(scene, match[1], match[2], match[3])
    return bool(matching_items(scene, sight))


def related(scene, first, relation, second):
    """Whether two unambiguously named items, which must be the related pair, have this relation."""
    a, b = matching_items(scene, first), matching_items(scene, second)
    assert sorted(a + b) == [0, 1], 'a name fits another item, or not one of the related pair'
    return relation == (scene.relation if a == [0] else CONVERSE[scene.relation])


def test_statements_are_true_or_false_as_labelled(folder, scene_of):
    for name in NLVR.values():
        for row in read(folder / name):
            left, right = (scene_of[image] for image in row['images'])
            sight = re.sub(r'^there (is|are) |^\w+ pictures? shows? |^the \w+ picture shows ', '', row['sentence'])
            sight = re.sub(r'^(at least|only) one picture shows ', '', sight)
            sight = re.sub(r' in (the (left|right)|each) picture$', '', sight)
            seen = shows(left, sight), shows(right, sight)
            where = row['sentence'].replace(sight, '')
            rules = {'left': seen[0], 'right': seen[1], 'both': all(seen), 'each': all(seen)}
            rules |= {'at least one': any(seen), 'only one': sum(seen) == 1}
            assert [str(truth) for word, truth in rules.items() if word in where] == [row['label']], row


def test_statements_come_in_balanced_sets(folder):
    for split, name in NLVR.items():
        sets = defaultdict(list)
        for row in read(folder / name):
            where, number, pair, sentence = row['identifier'].split('-')
            assert (where, int(pair), sentence) == (split, len(sets[number]), '0') and row['images'][0] != row[
                'images'
            ][1]
            sets[number].append(row)
        for rows in sets.values():
            assert len({row['sentence'] for row in rows}) == 1 and len({tuple(row['images']) for row in rows}) == 4
            assert Counter(row['label'] for row in rows) == {'True': 2, 'False': 2}
        kinds = Counter(rows[0]['kind'] for rows in sets.values())
        assert set(kinds) == {'presence', 'count', 'relation'} and max(kinds.values()) - min(kinds.values()) <= 1


def answer(scene, question):
    """The true answer, from the words of the question."""
    if match := re.fullmatch(r'what color is the (\w+)\?', question):
        (i,) = matching_items(scene, match[1])
        return scene.items[i].color
    if match := re.fullmatch(r'what shape is the (\w+) object\?', question):
        (i,) = matching_items(scene, match[1])
        return scene.items[i].shape
    if match := re.fullmatch(r'how many (.*) are there\?', question):
        return str(count_items(scene, match[1]))
    if match := re.fullmatch(r'is the (.*) above or below the (.*)\?', question):
        return 'above' if related(scene, match[1], 'above', match[2]) else 'below'
    if match := re.fullmatch(r'is the (.*) (above|below|inside|around|touching) the (.*)\?', question):
        return 'yes' if related(scene, *match.groups()) else 'no'
    if match := re.fullmatch(r'is there an? (.*)\?', question):
        return 'yes' if matching_items(scene, match[1]) else 'no'
    relation, name = re.fullmatch(r'what is (\w+) the (.*)\?', question).groups()
    (i,) = matching_items(scene, name)
    assert relation == (scene.relation if i == 1 else CONVERSE[scene.relation])
    return scene.items[1 - i].shape


def test_annotators_mostly_tell_the_truth(folder, scene_of):
    types = {'colour': 'other', 'shape': 'other', 'relation': 'other', 'count': 'number', 'yes/no': 'yes/no'}
    noisy = 0
    for name in VQA:
        for row in read(folder / name):
            truth = answer(scene_of[row['image']], row['question'])
            assert (
                len(row['answer']) == 10 and row['answer'].count(truth) >= 7 and set(row['answer']) <= set(ANSWERS)
            ), row
            assert row['dataset'] == 'vqa' and row['answer_type'] == types[row['kind']]
            assert row['question'].startswith(row['question_type'].removesuffix(' a'))
            noisy += len(set(row['answer'])) > 1
        kinds = Counter(row['kind'] for row in read(folder / name))
        assert set(kinds) == set(types) and kinds['yes/no'] == kinds['count'] == kinds['relation']
    assert noisy


def test_question_ids_and_hidden_answers(folder):
    ids = [row['question_id'] for name in VQA for row in read(folder / name)]
    assert len(ids) == len(set(ids))
    hidden, annotated = read(folder / 'vqa_test.json'), read(folder / 'vqa_test_annotated.json')
    keys = ('question_id', 'question', 'image', 'dataset')
    assert hidden == [{key: row[key] for key in keys} for row in annotated]
