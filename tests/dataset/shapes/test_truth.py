"""Statements and questions of the synthetic dataset, parsed from their words, are true of its scenes."""

import re
from collections import Counter, defaultdict

from dataset.shapes.captions import plural
from dataset.shapes.scene import CONVERSE, SHAPES
from dataset.shapes.vqa import ANSWERS
from tests.dataset.shapes.tools import VQA, read

NLVR = {'train': 'nlvr_train.json', 'dev': 'nlvr_dev.json', 'test': 'nlvr_test.json'}


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
    if sight == 'one object above another':
        return scene.relation == 'above'
    if sight == 'two objects beside each other':
        return scene.relation == 'beside'
    if match := re.fullmatch(r'(an? .*) (above|below|beside) (an? .*)', sight):
        return related(scene, match[1], match[2], match[3])
    return bool(matching_items(scene, sight))


def related(scene, first, relation, second):
    """Whether two unambiguously named items, which must be the related pair, have this relation."""
    a, b = matching_items(scene, first), matching_items(scene, second)
    assert sorted(a + b) == [0, 1], 'a name fits another item, or not one of the related pair'
    return relation == (scene.relation if a == [0] else CONVERSE[scene.relation])


def test_statements_are_true_or_false_as_labelled(world):
    folder, scene_of = world
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
    if match := re.fullmatch(r'is the (.*) (above|below|beside) the (.*)\?', question):
        return 'yes' if related(scene, *match.groups()) else 'no'
    if match := re.fullmatch(r'is there an? (.*)\?', question):
        return 'yes' if matching_items(scene, match[1]) else 'no'
    relation, name = re.fullmatch(r'what is (\w+) the (.*)\?', question).groups()
    (i,) = matching_items(scene, name)
    assert relation == (scene.relation if i == 1 else CONVERSE[scene.relation])
    return scene.items[1 - i].shape


def test_annotators_mostly_tell_the_truth(world):
    folder, scene_of = world
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
